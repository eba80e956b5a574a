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
# # How much traffic before each level?
#
# Nothing breaks; there is only more and more traffic. Up to some rate everybody is answered, at some rate the service
# starts to do with less, and from some rate on more traffic gives no more answers. Each rate is lived through under the
# same seeds; what happens before the service has warmed up does not count.

# %% tags=["parameters"]
import os

scenario_file = os.environ.get("SCENARIO", "notebooks/stories/capacity.yaml")
seed = int(os.environ.get("SEED", "0"))
seeds = int(os.environ.get("SEEDS", "2"))  # a point
rates = os.environ.get("RATES", "4/s,7/s,9/s,11/s,14/s")

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

from IPython.display import display

import sim
from sim import charts
from sim.design import axes
from sim.scenario import load
from sim.sweep import sweep

root = Path(sim.__file__).parent.parent  # wherever the notebook is started from
scenario = load(root / scenario_file)
print(scenario.description)

# %% [markdown]
# ## Live through each rate

# %%
rate = "workload.open_loop.rate"
with tempfile.TemporaryDirectory() as folder:
    frame = sweep(
        scenario,
        axes([f"{rate}={rates}"], scenario),
        Path(folder) / "capacity.parquet",
        runs=seeds,
        first_seed=seed,
        warm_up_s=10,
    )
display(frame[["point", rate, "seed", "availability", "p95", "goodput_per_second", "level_normal_seconds"]])

# %% [markdown]
# ## The load curve
#
# Where goodput leaves the dotted line is the capacity. What comes on top is refused, soon: latency does not explode.

# %%
display(charts.load_curve(frame, rate))

# %% [markdown]
# ## The levels

# %%
display(charts.time_in_levels(frame, rate))
