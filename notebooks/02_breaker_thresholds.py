# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When should the breaker open, and for how long?
#
# A breaker that trips late makes people wait for nothing; one that stays open for long refuses them though the provider
# is well again. Some thresholds are tried one by one, then a search looks for the best of them. All points meet the
# same arrivals with the same luck, so that points are compared and not chance.
#
# Short runs and few seeds, so that this takes seconds: `orchestra sim sweep` and `orchestra sim tune` do more of them,
# on all cores or on a cluster, and go on where they were stopped.

# %% tags=["parameters"]
import os

scenario_file = os.environ.get("SCENARIO", "notebooks/stories/brownout.yaml")
seed = int(os.environ.get("SEED", "0"))
seeds = int(os.environ.get("SEEDS", "2"))  # a point
trials = int(os.environ.get("TRIALS", "8"))

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

from IPython.display import display

import sim
from sim import charts, plots
from sim.design import axes
from sim.scenario import load
from sim.sweep import sweep
from sim.tune import Search, constraint, settings_toml, tune
from sim.world import rehearse

root = Path(sim.__file__).parent.parent  # wherever the notebook is started from
scenario = load(root / scenario_file)
print(scenario.description)

# %% [markdown]
# ## As it is
#
# Two kinds of turns: the quick ones, and those that wait for a provider that is not well.

# %%
display(plots.latency_heat(rehearse(scenario, seed=seed)))

# %% [markdown]
# ## One threshold after the other
#
# After how many failures in a row it opens; each point under the same seeds, with the 95 % interval of its mean.

# %%
failures = "guards.unified.breaker.failures_max"
with tempfile.TemporaryDirectory() as folder:
    frame = sweep(
        scenario, axes([f"{failures}=2,5,20"], scenario), Path(folder) / "breaker.parquet", runs=seeds, first_seed=seed
    )

# %%
display(charts.load_curve(frame, failures, ("availability", "p95", "refusal_p95")))

# %% [markdown]
# ## All of them at once
#
# Availability and waiting pull in two directions, so there is no best point but a front: none on it is beaten in both.
# What keeps people waiting for a refusal for more than twelve seconds is no choice at all.

# %%
varied = axes(
    [
        f"{failures}=2..20",
        "guards.unified.breaker.open_seconds=1.0..30.0",
        "guards.unified.attempt.first_seconds_max=2.0..8.0",
    ],
    scenario,
)
search = Search(varied, ("availability", "p95"), (constraint("refusal_p95 <= 12s"),), runs=seeds, first_seed=seed)
tried = tune(scenario, search, trials)
display(charts.pareto(tried, "p95", "availability"))

# %%
paths = [each.path for each in varied]
display(tried.loc[tried.front, ["trial", *paths, "availability", "p95", "refusal_p95"]])

# %% [markdown]
# ## What to paste into orchestra.toml

# %%
for point in tried.loc[tried.front, paths].to_dict("records"):
    print(settings_toml(point), end="\n\n")
