"""Wall time and chance from the operating system: the only place, with `embedded`, that asks the machine for them."""

import os
import time


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> float:
        """Return Unix time in seconds."""
        return time.time()


class SystemEntropy:
    """The kernel's random number generator, so that ids cannot be guessed from ids seen before."""

    def random(self) -> float:
        """Return a number in [0, 1), every multiple of 2**-53 being equally likely."""
        return (int.from_bytes(os.urandom(7)) >> 3) * 2.0**-53

    def hex(self, byte_count: int) -> str:
        """Return `byte_count` random bytes as lower-case hex."""
        return os.urandom(byte_count).hex()
