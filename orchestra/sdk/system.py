"""What the machine of the client gives: time, sleep, chance and ids. The only place of the SDK that asks for them."""

import asyncio
import os
import time
from dataclasses import dataclass

ID_BYTES = 16


@dataclass(frozen=True)
class System:
    """The machine's clock and chance; whoever rehearses a client gives another one."""

    def now(self) -> float:
        """Return monotonic time in seconds."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Return after so many seconds."""
        time.sleep(seconds)

    async def pause_async(self, seconds: float) -> None:
        """Return after so many seconds, and let others work meanwhile."""
        await asyncio.sleep(seconds)

    def random(self) -> float:
        """Return a number in [0, 1)."""
        return int.from_bytes(os.urandom(4)) * 2.0**-32

    def new_id(self) -> str:
        """Return an id that nobody guesses, or has had."""
        return os.urandom(ID_BYTES).hex()
