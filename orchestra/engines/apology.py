"""The apology: what a turn says where nobody could answer it. It claims nothing and invents nothing."""

from collections.abc import AsyncGenerator

from orchestra.engines.engine import Task
from orchestra.model import Chunk, Delta, Finish

TEXT = (
    "I am sorry: I cannot answer right now, because the language model behind me is not available. "
    "Your message was not answered by anybody else; please send it again in a little while."
)


class Apology:
    """Answers with an apology."""

    name = "apology"

    async def answer(self, _task: Task) -> AsyncGenerator[Chunk, None]:
        """Apologise."""
        yield Delta(TEXT)
        yield Finish(reason="apology", model=self.name)
