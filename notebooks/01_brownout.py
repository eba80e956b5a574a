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
# # What happens to the users when the provider browns out?
#
# For some minutes the LLM provider is slow and many of its calls fail. The real orchestrator lives through it in
# virtual time: ten minutes take a few seconds, and a seed reproduces every microsecond.

# %% tags=["parameters"]
import os

scenario_file = os.environ.get("SCENARIO", "chaos/scenarios/provider_brownout.yaml")
seed = int(os.environ.get("SEED", "0"))

# %%
# %matplotlib inline
from pathlib import Path

from IPython.display import display

import sim
from sim import plots
from sim.compare import side_by_side, what_if
from sim.scenario import load
from sim.world import rehearse

root = Path(sim.__file__).parent.parent  # wherever the notebook is started from
scenario = load(root / scenario_file)
print(scenario.description)

# %% [markdown]
# ## Rehearse it

# %%
run = rehearse(scenario, seed=seed)
print(f"{run.virtual_seconds:.0f} s of virtual time in {run.wall_seconds:.1f} s, journal {run.journal.digest[:16]}")

# %% [markdown]
# ## The journal
#
# Everything that happened, in order. Every plot and every expectation reads it, and nothing else.

# %%
frame = run.journal.frame()
display(frame[["at", "event", "correlation_id", "outcome", "error", "seconds"]].head(8))

# %%
display(frame.loc[frame.event == "breaker_changed", ["at", "breaker", "before", "after", "reason"]])

# %% [markdown]
# ## Second by second

# %%
display(plots.timeline(run))

# %%
display(plots.answered_within(run))

# %% [markdown]
# ## The verdict

# %%
print(run.verdict.status.name, "-", run.verdict.meaning)
for result in run.verdict.results:
    print(f"held: {result.held!s:5} | {result.text} | {result.measured}")

# %% [markdown]
# ## What if the breaker opened for a shorter or a longer time?
#
# Short: more people meet a failing provider, but service is back sooner. Long: the other way round. All runs meet the
# same arrivals with the same luck.

# %%
shorter = rehearse(what_if(scenario, guards={"unified": {"breaker": {"open_seconds": 2}}}), seed=seed)
longer = rehearse(what_if(scenario, guards={"unified": {"breaker": {"open_seconds": 60}}}), seed=seed)

# %%
display(side_by_side({"open for 2 s": shorter, "as it is": run, "open for 60 s": longer}))
