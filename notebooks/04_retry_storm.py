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
# # Does the service come back by itself?
#
# A minute's trouble, and clients that ask again at once. Unprotected, their retries keep the service down long after
# their cause is gone: it is metastable (Bronson et al., HotOS 2021). Are guards in the service what it takes, which
# refuse what cannot be served, or clients that wait longer and longer and heed what they are told, or both?

# %% tags=["parameters"]
import os

scenario_file = os.environ.get("SCENARIO", "chaos/scenarios/retry_storm.yaml")
seed = int(os.environ.get("SEED", "0"))

# %%
# %matplotlib inline
from pathlib import Path

from IPython.display import display

import sim
from sim import plots
from sim.compare import side_by_side, unguarded
from sim.paths import changed
from sim.scenario import load
from sim.world import rehearse

root = Path(sim.__file__).parent.parent  # wherever the notebook is started from
scenario = load(root / scenario_file)
print(scenario.description)

# %% [markdown]
# ## The same storm, four times
#
# The same arrivals with the same luck meet a guarded and an unguarded service, with naive and with polite clients.

# %%
polite = changed(scenario, {"workload.open_loop.retries.style": "polite"})
runs = {
    "guarded, naive clients": rehearse(scenario, seed=seed),
    "unguarded, naive clients": rehearse(unguarded(scenario), seed=seed),
    "guarded, polite clients": rehearse(polite, seed=seed),
    "unguarded, polite clients": rehearse(unguarded(polite), seed=seed),
}

# %%
display(plots.goodput(runs))

# %% [markdown]
# ## What their users saw

# %%
display(plots.compared(runs))

# %%
display(side_by_side(runs))
