"""Numbers with units, as a scenario writes them: ``10min``, ``800ms``, ``5/s``, ``60%``, ``>= 99%``, ``< 5s``.

A number without its unit is refused where it could be misread: whether 800 was milliseconds or seconds is the commonest
mistake in files like these. Parsed values are plain floats in seconds, per second, and shares of one.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from msgspec import Struct

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
DURATION_S_MAX = 30 * 24 * 3600.0
RATE_PER_S_MAX = 100_000.0

_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_PART = re.compile(rf"({_NUMBER})\s*(us|ms|s|min|h)")
_SIGNED = r"[-+]?" + _NUMBER + r"(?:[eE][-+]?[0-9]+)?"

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def _finite(text: str) -> float:
    if re.fullmatch(r"[-+]?\.?(nan|inf|infinity)", text.strip(), re.IGNORECASE):
        raise ValueError(f"{text.strip()} is not a finite number: write one")
    if re.fullmatch(_SIGNED, text.strip()) is None:
        raise ValueError(f"{text!r} is not a number")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text.strip()} is not a finite number: write one")
    return value


def duration(text: str) -> float:
    """Read a duration, such as ``90s``, ``1min 30s`` or ``250ms``; ``0`` needs no unit.

    Returns
    -------
    float
        Seconds, 0 to `DURATION_S_MAX`.

    Raises
    ------
    ValueError
        Saying what is wrong and the cure.
    """
    text = text.strip()
    if text == "0":
        return 0.0
    if text.startswith("-"):
        raise ValueError(f"{text} is negative: a duration is 0 or longer")
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        if re.fullmatch(_SIGNED, text):
            raise ValueError(f"{text} has no unit: write {text}s, {text}ms or {text}min")
        raise ValueError(f"{text!r} is no duration: write a number and us, ms, s, min or h, such as 90s or 1min 30s")
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if seconds > DURATION_S_MAX:
        raise ValueError(f"{text} is longer than 30 days (720h), the most a run may take")
    return seconds


def rate(text: str) -> float:
    """Read a rate, such as ``5/s`` or ``300/min``, as events per second (0 to `RATE_PER_S_MAX`)."""
    text = text.strip()
    if text.startswith("-"):
        raise ValueError(f"{text} is negative: a rate is above 0")
    match = re.fullmatch(rf"({_NUMBER})\s*/\s*(s|min|h)", text)
    if match is None:
        raise ValueError(f"{text!r} is no rate: write a number per s, min or h, such as 5/s or 300/min")
    per_second = float(match[1]) / SECONDS[match[2]]
    if not 0 < per_second <= RATE_PER_S_MAX:
        raise ValueError(f"{text} is out of bounds: a rate is above 0 and at most {RATE_PER_S_MAX:g}/s")
    return per_second


def share(text: str) -> float:
    """Read a share, such as ``60%`` or ``0.6``, as a number from 0 to 1."""
    text = text.strip()
    try:
        value = _finite(text[:-1]) / 100 if text.endswith("%") else _finite(text)
    except ValueError as wrong:
        if "finite" in str(wrong):
            raise
        raise ValueError(f"{text!r} is no share: write a percentage such as 60%") from None
    if not 0 <= value <= 1:
        cure = f": did you mean {text}%?" if 1 < value <= 100 and not text.endswith("%") else ""
        raise ValueError(f"{text} is out of bounds: a share is from 0% to 100%{cure}")
    return value


def count(text: str) -> float:
    """Read a plain number, 0 or more."""
    value = _finite(text)
    if value < 0:
        raise ValueError(f"{text.strip()} is negative: write 0 or more")
    return value


class Comparison(Struct, frozen=True):
    """A bound that a measured number must keep: an operator of `OPERATORS` and a limit."""

    operator: str
    limit: float

    def holds(self, value: float) -> bool:
        """Tell whether `value` keeps the bound; NaN keeps none."""
        return OPERATORS[self.operator](value, self.limit)


def comparison(text: str, quantity: Callable[[str], float]) -> Comparison:
    """Read a bound such as ``>= 99%``, its limit read by `quantity`."""
    match = re.fullmatch(r"\s*(<=|>=|==|<|>)\s*(\S.*)", text)
    if match is None:
        raise ValueError(f'{text!r} is no bound: write <, <=, ==, >= or > and a limit, quoted, such as ">= 99%"')
    return Comparison(match[1], quantity(match[2]))


class Quantity(NamedTuple):
    """How a value with a unit is written: a reader that raises ValueError, the schema of what it takes, an example."""

    read: Callable[[str], float]
    schema: dict[str, Any]
    example: str | float


UNITS = {**SECONDS, "%": 0.01, **{f"/{unit}": 1 / seconds for unit, seconds in SECONDS.items()}, "": 1.0}


def spelt(value: float, quantity: Quantity) -> str:
    """Return the shortest text that `quantity` reads as exactly `value`; `ValueError` if none does."""
    exact = f"{Decimal(repr(float(value))):f}".removesuffix(".0")
    numbers = [(exact, "s"), (exact, "/s"), (exact, "")]
    numbers += [
        (f"{Decimal(repr(round(value / worth, 12))):f}".removesuffix(".0"), unit) for unit, worth in UNITS.items()
    ]
    found = [pair for pair in numbers if _reads("".join(pair), quantity) == value]
    if not found:
        raise ValueError(f"{value} cannot be written as one reads {quantity.example}")
    number, unit = min(found, key=lambda pair: (len(pair[0]), "." in pair[0], len(pair[1])))
    return number + unit


def _reads(text: str, quantity: Quantity) -> float | None:
    try:
        return quantity.read(text)
    except ValueError:
        return None


class Spread(NamedTuple):
    """Marks a field as a distribution of this quantity."""

    of: Quantity


class Bound(NamedTuple):
    """Marks a field as a `Comparison` with a limit of this quantity."""

    of: Quantity


class Whole(NamedTuple):
    """Marks an int field and its bounds, both included."""

    low: int
    high: int


def _or_number(pattern: str, **number: Any) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", **number}]}


DURATION = Quantity(duration, _or_number(rf"^\s*({_NUMBER}\s*(us|ms|s|min|h)\s*)+$", const=0), "90s")
RATE = Quantity(rate, {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*/\s*(s|min|h)\s*$"}, "5/s")
SHARE = Quantity(share, _or_number(rf"^\s*{_NUMBER}\s*%\s*$", minimum=0, maximum=1), "60%")
COUNT = Quantity(count, {"type": "number", "minimum": 0}, 10)
BOUND_SCHEMA = {"type": "string", "pattern": r"^\s*(<=|>=|==|<|>)\s*\S.*$"}


def show_duration(seconds: float) -> str:
    """Write `seconds` for a reader, about three digits: ``0``, ``350ms``, ``4.2s``, ``1min 30s``."""
    if math.isnan(seconds):
        return "-"
    if math.isinf(seconds):
        return "for ever"
    for below, factor, digits, unit in ((0.0009995, 1e6, 0, "us"), (0.9995, 1e3, 0, "ms"), (9.95, 1, 1, "s")):
        if 0 < seconds < below:
            return f"{seconds * factor:.{digits}f}{unit}".replace(".0s", "s")
    if seconds < 119.5:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}h"] * bool(hours) + [f"{minutes}min"] * bool(minutes) + [f"{rest}s"] * bool(rest)
    return " ".join(parts)


def show_share(value: float) -> str:
    """Write a share as a percentage that never rounds to a bound it does not reach: 99.96 % is not 100 %."""
    if math.isnan(value):
        return "-"
    percent = value * 100
    digits = 0 if percent == round(percent) else 1 if 1 <= percent <= 99 else 2
    factor = 10**digits
    rounded = math.floor(percent * factor) / factor if percent > 50 else math.ceil(percent * factor) / factor
    return f"{rounded:.{digits}f}%"


def show_factor(value: float) -> str:
    """Write how many times more something is: ``1.42x``."""
    return "-" if math.isnan(value) else f"{value:.2f}x"


def show_count(value: float) -> str:
    """Write a count, integers without a fraction."""
    return "-" if math.isnan(value) else f"{value:,.0f}" if value == round(value) else f"{value:.2f}"


def lasting(seconds: float) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with how long a fault lasts."""
    if seconds == 0:
        yield "for", "0 lasts no time: write how long the fault lasts, such as 30s"
