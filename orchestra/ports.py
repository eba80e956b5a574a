"""What the orchestra needs from outside, as Protocols: time, chance, stores and providers.

Implementations live in `orchestra.adapters` (real) and in `sim` (modelled). Each port has a contract suite in
`tests/contract` that every implementation passes. All store methods raise `StoreUnavailable` where the store cannot
be reached, and nothing else but what they name; a text that a store cannot hold, which `limits.text_fault` keeps out,
is `InvalidRequest`, and an embedding of other than `limits.EMBEDDING_DIMENSIONS` components `ConfigurationError`.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from orchestra.events import Hook
from orchestra.model import (
    Chunk,
    ConversationHead,
    Memory,
    Profile,
    Prompt,
    Recollection,
    Session,
    Tally,
    Turn,
)


class Clock(Protocol):
    """Wall time. Durations never come from here but from the running loop's `time()`."""

    def now(self) -> float:
        """Return Unix time in seconds."""
        ...


class Entropy(Protocol):
    """Chance: jitter and ids."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def hex(self, byte_count: int) -> str:
        """Return `byte_count` random bytes as lower-case hex."""
        ...


class SessionStore(Protocol):
    """Sessions as the next turn needs them; a record lives `limits.SESSION_TTL_SECONDS` after its last save."""

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None where there is none (or its record cannot be read any more).

        Raises
        ------
        SessionUnknown
            It was deleted within `limits.SESSION_TTL_SECONDS`.
        """
        ...

    async def save(self, session: Session, *, expected: Session | None) -> None:
        """Store `session` where the stored one has `expected`'s version and revision; None: where there is none.

        Raises
        ------
        StaleSession
            Another is stored, or it was deleted.
        """
        ...

    async def delete(self, session_id: str) -> None:
        """Forget the session; for `limits.SESSION_TTL_SECONDS`, nobody who still holds it can bring it back."""
        ...

    async def ping(self) -> None:
        """Return once the store has answered."""
        ...


class ConversationStore(Protocol):
    """Every turn ever acknowledged, durable, and the sessions' profiles: the truth that sessions are a cache of."""

    async def append(self, turn: Turn, owner: str) -> Turn:
        """Make `turn` durable, and return it as it is stored: of two of one id the first stays, and is returned.

        Raises
        ------
        StaleSession
            Another turn has this number in this session.
        SessionUnknown
            The session was deleted, or its profile names another owner.
        """
        ...

    async def turns(self, session_id: str, *, after: int = 0, limit: int = 100) -> tuple[Turn, ...]:
        """Return turns numbered above `after`, lowest first, at most `limit`."""
        ...

    async def latest(self, session_id: str, *, limit: int) -> tuple[Turn, ...]:
        """Return the last `limit` turns, lowest number first."""
        ...

    async def find(self, turn_id: str) -> Turn | None:
        """Return the turn of that id, whatever its session, or None."""
        ...

    async def ids(self, session_id: str) -> tuple[str, ...]:
        """Return the ids of all its turns, lowest number first."""
        ...

    async def head(self, session_id: str) -> ConversationHead | None:
        """Return what is known of the session besides its turns, or None where it has neither turn nor profile.

        Raises
        ------
        SessionUnknown
            It was deleted.
        """
        ...

    async def set_profile(self, session_id: str, owner: str, profile: Profile, *, revision: int, at: float) -> None:
        """Make `profile` the session's, durably, where the stored one's revision is the one before `revision`.

        The first has revision 1. The same again succeeds. `at` is the Unix time in seconds of the change.

        Raises
        ------
        StaleSession
            The profile was changed meanwhile.
        SessionUnknown
            The session was deleted, or is another owner's.
        """
        ...

    async def delete(self, session_id: str) -> tuple[str, ...]:
        """Delete the session's turns and profile, and return the ids of the turns.

        Of the session only its id is kept, so that nothing is ever appended to it again.
        """
        ...

    async def ping(self) -> None:
        """Return once the store has answered."""
        ...


class MemoryStore(Protocol):
    """Memories with nearest-neighbour recall."""

    async def remember(self, memory: Memory) -> None:
        """Store `memory` durably; a memory of the same id is kept once."""
        ...

    async def recall(self, owner: str, embedding: tuple[float, ...], *, limit: int) -> tuple[Recollection, ...]:
        """Return the `limit` memories of `owner` nearest to `embedding` by cosine, nearest first."""
        ...

    async def forget(self, memory_ids: Sequence[str]) -> None:
        """Delete the memories of these ids, those that there are."""
        ...

    async def ping(self) -> None:
        """Return once the store has answered."""
        ...


class Embedder(Protocol):
    """Turns text into a unit vector of `limits.EMBEDDING_DIMENSIONS` components."""

    async def embed(self, text: str) -> tuple[float, ...]:
        """Return the embedding of `text`."""
        ...


class Provider(Protocol):
    """An LLM endpoint."""

    @property
    def name(self) -> str:
        """A short name for metrics and breakers."""
        ...

    @property
    def external(self) -> bool:
        """Whether a call leaves this service, for an API that a degradation level can switch off."""
        ...

    def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Stream an answer: any number of `Delta`, then one `Finish`.

        Closing the iterator, or cancelling the task that reads it, closes the call at once.

        Raises
        ------
        ProviderFailed, ProviderOverloaded, ProviderRefused, DeadlineExceeded
        """
        ...


class Fleet(Protocol):
    """What the instances and workers of one service know together. Whoever asks must do without where it is away."""

    async def share(self, tallies: Mapping[str, Tally], *, window_seconds: float) -> dict[str, Tally]:
        """Add this instance's new calls to the fleet's, and return what all instances saw in the last `window_seconds`.

        A window moves on by tenths of itself: a call counts for at least nine of them and never for more than ten.
        After an error the new calls may have been added or not, and are not to be told again.

        Parameters
        ----------
        tallies : mapping of str to Tally
            By breaker: what ended since the last call of this method. Breakers not named are not returned.
        window_seconds : float
            Above 0. Only instances that name the same length count together.
        """
        ...

    async def orders(self) -> dict[str, str]:
        """Return the operators' standing orders, by target."""
        ...

    async def order(self, target: str, order: str | None) -> None:
        """Let `order` stand for `target`, or none any more."""
        ...


class Claim(NamedTuple):
    """What a relay knows of a turn that is to run here.

    Parameters
    ----------
    holder : str or None
        The other instance that runs it and lives; None where the turn is now this instance's to run.
    number : int
        How many runs of the turn there were before this one.
    about : str
        What the first run of the turn was said to be about.
    """

    holder: str | None
    number: int
    about: str


class Found(NamedTuple):
    """Which instance has a turn's log, whether that instance lives, and whether the turn runs."""

    holder: str
    alive: bool
    runs: bool


class Relay(Protocol):
    """What instances tell each other of turns that run. Best effort: whoever asks must do without where it is away.

    What is not awaited returns at once, and is sent in the order in which it was given.
    """

    @property
    def instance(self) -> str:
        """The address of this instance, unlike any other's."""
        ...

    async def claim(self, turn_id: str, about: str) -> Claim:
        """Take the turn for this instance, unless another that lives has it.

        An instance lives as long as it renews its lease of `limits.LEASE_SECONDS`, which it does by itself. A claim is
        kept for `limits.CLAIM_SECONDS`, and for `limits.LOG_SECONDS` after `end`.

        Raises
        ------
        StoreUnavailable
        """
        ...

    def begin(self, session_id: str, turn_id: str, address: str, message: bytes) -> None:
        """Let others know that the turn runs here, and `tell` them so, which together costs one command."""
        ...

    def end(self, session_id: str, turn_id: str, *, kept: bool) -> None:
        """Let others know that the turn has ended; where `kept`, that its log is here for `limits.LOG_SECONDS`."""
        ...

    async def find(self, session_id: str, turn_id: str) -> Found | None:
        """Return where the turn runs, or ran a moment ago and is kept.

        Raises
        ------
        StoreUnavailable
        """
        ...

    async def running(self, session_id: str) -> dict[str, str]:
        """Return the turns of the session that run on instances that live, and on which.

        Raises
        ------
        StoreUnavailable
        """
        ...

    def tell(self, address: str, message: bytes) -> None:
        """Send `message` to all who hear `address` now. It may be lost; what arrives arrives in order."""
        ...

    def hear(self, address: str, deliver: Callable[[bytes], None]) -> Callable[[], None]:
        """Let `deliver` get what is told to `address` from soon on, also by this instance; return how to end that."""
        ...


@dataclass(frozen=True)
class Ports:
    """Everything from outside that one orchestra runs on."""

    clock: Clock
    entropy: Entropy
    sessions: SessionStore
    conversations: ConversationStore
    memories: MemoryStore
    embedder: Embedder
    provider: Provider
    hook: Hook
    fleet: Fleet
    relay: Relay
    alternate: Provider | None = None
    offline: Provider | None = None

    @property
    def pings(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """How to ask each store whether it is there, by the store's name."""
        return {
            "sessions": self.sessions.ping,
            "conversations": self.conversations.ping,
            "memories": self.memories.ping,
        }
