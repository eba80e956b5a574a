"""Text files of other people's making: read whole, within a bound, as UTF-8 with or without a byte order mark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Broken = Callable[[str, str, int | None], Exception]
"""Makes the error of a file from its name, what is wrong with the cure, and the line, if it is one line's."""


def bounded_text(path: Path, bytes_max: int, broken: Broken, cure: str) -> str:
    """Return the text of a file.

    Parameters
    ----------
    path : Path
    bytes_max : int
        The most that is read.
    broken : callable
        See `Broken`; what it makes is raised where the file is longer, or no UTF-8.
    cure : str
        How to save it, such as ``save the file as UTF-8``.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise broken(path.name, f"is over {bytes_max // 1_000_000} MB: cut it into parts", None)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise broken(path.name, f"is not UTF-8: {cure}", data.count(b"\n", 0, wrong.start) + 1) from None
