"""What the provider of `tests/unit/conftest.py` does: seconds to wait, texts to say, or an error to end with."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from orchestra.model import Chunk, Delta, Finish, Prompt, Usage

Step = float | str | Exception


def script(*steps: Step, asked: list[Prompt] | None = None) -> Any:
    """Make a script of which each call does the same; `asked` gets every prompt."""
    return runs(steps, asked=asked)


def runs(*each: tuple[Step, ...], asked: list[Prompt] | None = None) -> Any:
    """Make a script of which each call is the next run (the last stays)."""
    calls: list[Prompt] = [] if asked is None else asked

    async def said(prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        steps = each[min(len(calls), len(each) - 1)]
        calls.append(prompt)
        for step in steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, str):
                yield Delta(step)
            else:
                raise step
        yield Finish("stop", "scripted", Usage(3, 2))

    said.calls = calls  # type: ignore[attr-defined]
    return said
