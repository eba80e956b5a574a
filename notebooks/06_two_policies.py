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
# # Is the other policy better?
#
# One run of each proves nothing: another seed may say the opposite. Both policies are run under the same seeds, so that
# they meet the same arrivals with the same luck, and what is compared is the difference of each pair. All intervals
# hold together with 95 % confidence; one that includes 0 shows no difference, which is not the same as none.

# %% tags=["parameters"]
import os

scenario_file = os.environ.get("SCENARIO", "notebooks/stories/brownout.yaml")
seed = int(os.environ.get("SEED", "0"))
seeds = int(os.environ.get("SEEDS", "8"))

# %%
# %matplotlib inline
from pathlib import Path

from IPython.display import display

import sim
from sim import charts, plots
from sim.compare import what_if
from sim.replicate import compare
from sim.scenario import load
from sim.world import rehearse

root = Path(sim.__file__).parent.parent  # wherever the notebook is started from
today = load(root / scenario_file)
other = what_if(today, guards={"unified": {"attempt": {"first_seconds_max": 3}, "breaker": {"open_seconds": 3}}})
labels = ("today", "impatient")

# %% [markdown]
# ## One seed
#
# Looks convincing. It is an anecdote.

# %%
display(plots.compared({"today": rehearse(today, seed=seed), "impatient": rehearse(other, seed=seed)}))

# %% [markdown]
# ## The same seeds for both
#
# Few measures, chosen before looking: each one more makes every interval wider.

# %%
measures = ("availability", "p95", "refusal_p95", "cost")
found = compare(today, other, seeds, labels=labels, measures=measures, first_seed=seed)
display(charts.differences(found.summary, labels))

# %%
display(found.summary[["unit", "first", "second", "difference", "low", "high", "verdict"]].round(3))

# %% [markdown]
# ## What pairs were good for
#
# How strongly the two go together over the seeds, and how many times more runs it would have taken with seeds of their
# own, for intervals of the same length. Below 1, pairs did not help for that measure.

# %%
display(found.summary[["runs", "correlation", "variance_ratio"]].round(2))
