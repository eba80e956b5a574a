"""Pictures of many runs, or of what was fitted to records: fits, load curves, fronts, differences between policies.

As `sim.plots`, which draws one run: plain `Figure` objects, never pyplot.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sim.calibrate import QUANTILES, Calibration, Fitted, quantile
from sim.ink import BLUE, INK, LINES, MUTED, WIDTH_IN, duration_scale, tidy


def fits(calibration: Calibration, *, width: float = WIDTH_IN) -> Figure:
    """Draw what was recorded of each quantity, as shares of calls below a value, and what was fitted to it.

    Returns
    -------
    Figure
        One panel a quantity, labelled by its name: the records as a broad line, what was chosen as a narrow one on it,
        and the family that came next.
    """
    fitted = (calibration.first_token, calibration.per_token, calibration.context_tokens, calibration.generated_tokens)
    figure = Figure(figsize=(width, 6.0), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    for index, each in enumerate(fitted):
        _draw_fit(figure.add_subplot(grid[index // 2, index % 2], label=each.name), each)
    return figure


def _draw_fit(axes: Axes, fitted: Fitted) -> None:
    shares = (np.arange(QUANTILES - 1) + 0.5) / (QUANTILES - 1)
    recorded = np.interp(shares, np.linspace(0, 1, QUANTILES), fitted.recorded)
    axes.plot(recorded, shares, color=MUTED, linewidth=6, alpha=0.6, solid_capstyle="butt", label="recorded")
    others = [each for each in fitted.tried if each.family not in (fitted.chosen.family, "empirical")][:1]
    for each, (colour, dash) in zip((fitted.chosen, *others), ((BLUE, "-"), LINES[1]), strict=False):
        values = [quantile(each.distribution, share) for share in shares]
        chosen = each is fitted.chosen
        label = f"{each.family}, off by {each.distance:.1%}"
        axes.plot(values, shares, color=colour, linestyle=dash, linewidth=1.8 if chosen else 1.0, label=label)
    if fitted.unit == "s":
        duration_scale(axes, "x", [recorded])
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    tidy(axes, f"{fitted.name[0].upper()}{fitted.name[1:]}")
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)
