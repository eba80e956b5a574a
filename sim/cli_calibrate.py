"""`orchestra sim calibrate`: from recorded calls to the model of their provider, with how well it fits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from msgspec import structs
from rich.console import Console
from rich.table import Table

from sim.cli_words import fail
from sim.distributions import Distribution
from sim.forms import plain
from sim.quantities import show_duration
from sim.records import RecordsBroken, read_calls
from sim.workload import OpenLoop

if TYPE_CHECKING:
    from sim.calibrate import Calibration, Fitted


def command(
    calls: Annotated[
        Path,
        typer.Argument(help="Recorded calls: CSV, JSON lines, a journal, or spans of OpenTelemetry (OTLP as JSON)."),
    ],
    out: Annotated[Path | None, typer.Option(help="Write the model here, as part of a scenario (YAML).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw records and fits here (PNG, SVG or PDF).")] = None,
) -> None:
    """Fit a provider's model to recorded calls, and show how well it fits."""
    from sim.calibrate import CannotFit, calibrate  # noqa: PLC0415 - scipy takes a second to import

    console = Console(highlight=False)
    try:
        found = calibrate(read_calls(calls))
        page = written(found, calls.name)
        if out is not None:
            out.write_text(page)
        if plot is not None:
            from sim.charts import fits  # noqa: PLC0415 - draws with matplotlib, which takes a second to import

            fits(found).savefig(plot, dpi=110)
    except (RecordsBroken, CannotFit) as wrong:
        fail(str(wrong))
    except OSError as wrong:
        fail(f"{wrong.filename}: {wrong.strerror}: check the path")
    except ValueError as wrong:
        fail(f"{plot}: {wrong}")
    _show(console, found)
    if out is None:
        console.print("Put this into a scenario:\n", style="bold")
        console.print(page, markup=False, soft_wrap=True)


def written(found: Calibration, source: str) -> str:
    """Return a calibration as the part of a scenario that it is, with its limits as comments."""
    comments = [f"Fitted to {found.calls:,} calls of {source}, {found.failed:,} of which failed."]
    if found.rate is None or found.dispersion is None:
        comments.append("When they came was not recorded: the rate is a guess.")
    else:
        kind = "as Poisson arrivals are" if found.dispersion < 2 else "in bursts: replay them, or use a bursty workload"
        comments.append(f"They came {found.rate:.3g} a second, {kind} (index of dispersion {found.dispersion:.1f}).")
    known = "the most calls at once that were seen: it has this many or more" if found.busiest else "a guess"
    comments.append(f"The capacity is {known}.")
    arrivals = OpenLoop(
        rate=_rounded(found.rate or 1.0),
        context_tokens=_rounded_spread(found.context_tokens.chosen.distribution),
        generated_tokens=_rounded_spread(found.generated_tokens.chosen.distribution),
    )
    model = structs.replace(
        found.model,
        first_token=_rounded_spread(found.model.first_token),
        per_prompt_token=_rounded_spread(found.model.per_prompt_token),
        per_token=_rounded_spread(found.model.per_token),
        failure_rate=_rounded(found.model.failure_rate),
    )
    part = {"world": {"provider": plain(model)}, "workload": {"open_loop": plain(arrivals)}}
    page = yaml.safe_dump(part, sort_keys=False, default_flow_style=None, width=100)
    return "".join(f"# {line}\n" for line in comments) + page


def _rounded_spread(distribution: Distribution) -> Distribution:
    fields: dict[str, Any] = {name: getattr(distribution, name) for name in distribution.__struct_fields__}
    for name, value in fields.items():
        fields[name] = tuple(map(_rounded, value)) if isinstance(value, tuple) else _rounded(value)
    return type(distribution)(**fields)


def _rounded(value: float) -> float:
    """Return a number to four digits, which is more than any records are worth."""
    return float(f"{value:.4g}")


def _show(console: Console, found: Calibration) -> None:
    for each in (found.first_token, found.per_token, found.context_tokens, found.generated_tokens):
        console.print(_table(each))


def _table(fitted: Fitted) -> Table:
    table = Table(title=f"{fitted.name} ({fitted.size:,} records)", title_justify="left", title_style="bold")
    table.add_column("family")
    for name in ("AIC", "distance", "p", *(f"p{share * 100:g}" for share, _, _ in fitted.chosen.quantiles)):
        table.add_column(name, justify="right")
    recorded = (_value(value, fitted.unit) for _, value, _ in fitted.chosen.quantiles)
    table.add_row("recorded", "", "", "", *recorded, end_section=True)
    for each in fitted.tried:
        chosen = each.family == fitted.chosen.family
        table.add_row(
            f"{each.family} (chosen)" if chosen else each.family,
            "" if math.isnan(each.aic) else f"{each.aic:,.0f}",
            f"{each.distance:.1%}",
            "" if math.isnan(each.p_value) else f"{each.p_value:.2f}",
            *(_value(value, fitted.unit) for _, _, value in each.quantiles),
            style="bold" if chosen else "dim",
        )
    return table


def _value(value: float, unit: str) -> str:
    return show_duration(value) if unit == "s" else f"{value:,.0f}"
