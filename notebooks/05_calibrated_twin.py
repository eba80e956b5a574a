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
# # From a production trace to a calibrated twin
#
# Records of real calls say when they came, how long the first token and the whole answer took, and how many tokens were
# read and written. From them a model of the provider is fitted, and the twin is asked what nobody dares ask production.
#
# Arrivals come from a trace in the Azure format where there is one (`TRACE`), else from a rehearsed production. Its
# provider stands in for a real one: that its inner workings are known allows to check what the twin foresees.

# %% tags=["parameters"]
import os

scenario_file = os.environ.get("SCENARIO", "notebooks/stories/production.yaml")
trace_file = os.environ.get("TRACE", "../shared/data/azure_llm_2023_conv.csv")
seed = int(os.environ.get("SEED", "0"))
trace_seconds = float(os.environ.get("TRACE_SECONDS", "240"))

# %%
# %matplotlib inline
from pathlib import Path

from IPython.display import display

import sim
from sim import charts
from sim.calibrate import calibrate
from sim.paths import changed
from sim.scenario import load
from sim.twin import percentiles, recorded, traced, twin
from sim.world import rehearse

root = Path(sim.__file__).parent.parent  # wherever the notebook is started from
production = traced(load(root / scenario_file), root / trace_file, trace_seconds)

# %% [markdown]
# ## The records
#
# Yours may be CSV, JSON lines, or spans of OpenTelemetry: `sim.records.read_calls(Path("calls.csv"))`.

# %%
calls = recorded(rehearse(production, seed=seed).journal)
print(f"{len(calls):,} calls, the first of them:")
print(calls[0])

# %% [markdown]
# ## What fits them
#
# The families by maximum likelihood, the best by AIC; how far off it is, is the Kolmogorov-Smirnov distance.

# %%
fitted = calibrate(calls)
display(charts.fits(fitted))

# %% [markdown]
# ## The twin against the records
#
# With another seed: the twin does not know the luck that production had.

# %%
model = twin(production, fitted)
lived = recorded(rehearse(model, seed=seed + 1).journal)
display(percentiles({"recorded": calls, "twin": lived}).round(3))

# %% [markdown]
# ## What the twin foresees
#
# A provider that serves sixteen calls at once, so that some wait: no record shows it. The twin's answer, and what
# really happens then.

# %%
small = {"world.provider.capacity": "16"}
really = recorded(rehearse(changed(production, small), seed=seed).journal)
foreseen = recorded(rehearse(changed(model, small), seed=seed + 1).journal)
display(percentiles({"really": really, "foreseen": foreseen}).round(3))
