"""What all commands of `orchestra sim` say in the same way: why they cannot do what was asked, and the cure."""

from __future__ import annotations

from typing import NoReturn, TypeVar

import typer
from rich.console import Console

from sim.forms import nearest
from sim.verdict import Status

T = TypeVar("T", bound=str)


def fail(message: str, status: Status = Status.INVALID) -> NoReturn:
    """End the process with `status`, after one line on standard error."""
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(status.value)


def chosen(what: str, name: str, choices: tuple[T, ...]) -> T:
    """Return the one of `choices` that is called `name`, or end the process with the nearest as the cure."""
    for each in choices:
        if each == name:
            return each
    fail(f"there is no {what} {name!r}: {nearest(name, list(choices))}")
