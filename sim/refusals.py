"""How the simulated world refuses what it does not do: by name, with the cure; nothing is quietly ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


class NotSimulated(NotImplementedError):
    """Something the simulated world does not do; the message names it and the cure."""


def refuse(owner: str, name: str, cure: str) -> Callable[..., NoReturn]:
    """Return a method called `name` that raises `NotSimulated`, to be set on a class that programs call `owner`."""

    def refusal(_self: Any, *_args: Any, **_options: Any) -> NoReturn:
        raise NotSimulated(f"{owner}.{name} is not simulated; {cure}")

    refusal.__name__ = name
    refusal.__qualname__ = f"{owner}.{name}"
    refusal.__doc__ = f"Raise `NotSimulated`: {cure}."
    return refusal
