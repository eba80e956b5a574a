"""What flows through the orchestra: requests, messages, sessions, turns, memories, chunks and replies.

Every struct is frozen: a change makes a new value, so nothing that was journalled or stored can be altered by a later
step. Texts are plain `str` that `orchestra.limits.text_fault` has let through: no NUL and no lone surrogate, which
neither UTF-8 nor PostgreSQL can hold.
"""

from typing import Literal

from msgspec import Struct

Role = Literal["system", "user", "assistant"]
SessionState = Literal["active", "idle", "expired"]


class ChatRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One user message as version 2 of the API says it.

    Parameters
    ----------
    message : str
        What the user says; 1 to `limits.MESSAGE_CHARS_MAX` characters.
    session_id : str or None
        The session to continue, as an earlier reply named it. None starts a new one.
    user_id : str or None
        Whose memories the turn may use and add to. None keeps memories within the session.
    stream : bool
        Whether the answer shall come in pieces, where the way it was asked for can carry them.
    """

    message: str
    session_id: str | None = None
    user_id: str | None = None
    stream: bool = False


class TraceContext(Struct, frozen=True):
    """Where a turn stands in a distributed trace (W3C Trace Context): lower-case hex ids."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The header that names this span as the parent of whatever receives it."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


class Message(Struct, frozen=True, omit_defaults=True):
    """One utterance in a session; `turn` is the number of the turn it belongs to, 0 for one that belongs to none."""

    role: Role
    content: str
    turn: int = 0


class Usage(Struct, frozen=True):
    """Tokens that one call cost, as the provider counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Memory(Struct, frozen=True):
    """Something worth recalling in a later turn.

    Parameters
    ----------
    id : str
        The id of the turn it came from: remembering a turn twice keeps one memory.
    owner : str
        Whose memory it is; recall never crosses owners.
    text : str
        What is recalled.
    embedding : tuple of float
        Unit vector of `limits.EMBEDDING_DIMENSIONS` components.
    at : float
        Unix time in seconds.
    """

    id: str
    owner: str
    text: str
    embedding: tuple[float, ...]
    at: float


class Recollection(Struct, frozen=True):
    """A memory that a query brought back, with its cosine similarity (-1 to 1) to that query."""

    text: str
    similarity: float


class Turn(Struct, frozen=True):
    """One user message and its answer, as the conversation keeps it.

    `number` counts a session's turns from 1; the pair (session_id, number) is unique in a conversation, which is what
    keeps two writers from both appending turn 7.
    """

    id: str
    session_id: str
    number: int
    correlation_id: str
    message: str
    reply: str
    engine: str
    model: str
    at: float
    usage: Usage = Usage()
    degraded: tuple[str, ...] = ()
    finish_reason: str = "stop"
    recalled: tuple[Recollection, ...] = ()

    @property
    def as_reply(self) -> "ChatReply":
        """The reply that the turn was answered with."""
        return ChatReply(
            turn_id=self.id,
            session_id=self.session_id,
            correlation_id=self.correlation_id,
            reply=self.reply,
            engine=self.engine,
            model=self.model,
            finish_reason=self.finish_reason,
            usage=self.usage,
            recalled=self.recalled,
            degraded=self.degraded,
        )


class Profile(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a session carries besides its history; whole within `limits.PROFILE_BYTES_MAX`.

    Parameters
    ----------
    system : str or None
        The instruction that stands above every prompt of the session, and is never trimmed.
    pinned : tuple of int
        Numbers of turns that are never trimmed.
    context : dict of str to str
        What the client knows of the user (language, time zone, role); stands below the instruction in every prompt.
    metadata : dict of str to str
        The client's own notes; kept and given back, shown to no model.
    """

    system: str | None = None
    pinned: tuple[int, ...] = ()
    context: dict[str, str] = {}
    metadata: dict[str, str] = {}


class Session(Struct, frozen=True):
    """A conversation as the next turn needs it: recent history and who it belongs to.

    Parameters
    ----------
    id : str
    owner : str
        Owner of its memories: ``user:<user_id>``, or ``session:<id>`` where no user was named.
    version : int
        Number of the last turn that it knows, 0 before the first.
    created_at, updated_at : float
        Unix time in seconds; `updated_at` is when it was last in use.
    messages : tuple of Message
        The pinned exchanges and the most recent ones, oldest first, within `limits.SESSION_*`.
    profile : Profile
    revision : int
        How often the profile was changed. A store refuses to save over another version or revision.
    tokens : int
        Estimate of what history, instruction and context take of a prompt.
    """

    id: str
    owner: str
    version: int
    created_at: float
    updated_at: float
    messages: tuple[Message, ...] = ()
    profile: Profile = Profile()
    revision: int = 0
    tokens: int = 0


class ConversationHead(Struct, frozen=True):
    """What the conversation store knows of a session besides its turns.

    Parameters
    ----------
    owner : str
    created_at, updated_at : float
        Unix time in seconds of the first turn or profile, and of the last.
    version : int
        Number of the last turn, 0 where there is none yet.
    profile : Profile
    revision : int
        How often the profile was changed.
    """

    owner: str
    created_at: float
    updated_at: float
    version: int = 0
    profile: Profile = Profile()
    revision: int = 0


class Tally(Struct, frozen=True):
    """How many calls ended, how many of them failed, and how many were slow."""

    calls: int = 0
    failures: int = 0
    slow: int = 0


class Sampling(Struct, frozen=True, omit_defaults=True):
    """How an answer is to be drawn, as OpenAI's parameters of the same names say it; None leaves it to the provider."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Prompt(Struct, frozen=True):
    """What a provider is asked: history that ends with the user's message, what memory recalled, and how to draw."""

    messages: tuple[Message, ...]
    recalled: tuple[Recollection, ...] = ()
    sampling: Sampling = Sampling()


class Given(Struct, frozen=True):
    """What a client that keeps its own history sends along with each message, in place of a stored session's.

    `model` is the name that it asked for; whatever it is, the same turn is taken.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    model: str = ""


class Delta(Struct, frozen=True, tag="delta"):
    """A piece of the answer's text, in order."""

    text: str


class Answering(Struct, frozen=True, tag="answering"):
    """Another engine than the one asked answers from here on; comes before any `Delta`."""

    engine: str


class Finish(Struct, frozen=True, tag="finish"):
    """The end of an answer, always the last chunk: a stream without one was cut off."""

    reason: str
    model: str
    usage: Usage = Usage()


Chunk = Answering | Delta | Finish


class ChatReply(Struct, frozen=True):
    """The whole answer to one turn."""

    turn_id: str
    session_id: str
    correlation_id: str
    reply: str
    engine: str
    model: str
    finish_reason: str
    usage: Usage
    recalled: tuple[Recollection, ...] = ()
    degraded: tuple[str, ...] = ()


class LiveTurnView(Struct, frozen=True):
    """A turn that runs in the session, and the last number of its log."""

    turn_id: str
    seq: int


class SessionStatus(Struct, frozen=True):
    """How a session stands; times are Unix seconds.

    Parameters
    ----------
    session_id : str
    state : str
        ``active``, ``idle``, or ``expired``: then it can be read, and no turn continues it.
    version : int
        Number of the last turn, 0 before the first.
    messages, tokens, bytes : int
        What the next prompt has of it: how many messages, an estimate of tokens, and what it is stored in.
    created_at, updated_at, expires_at : float
    profile : Profile
    live : tuple of LiveTurnView
        Turns that run now.
    """

    session_id: str
    state: SessionState
    version: int
    messages: int
    tokens: int
    bytes: int
    created_at: float
    updated_at: float
    expires_at: float
    profile: Profile
    live: tuple[LiveTurnView, ...]


class History(SessionStatus, frozen=True):
    """How a session stands, and a page of its turns.

    Parameters
    ----------
    turns : tuple of Turn
        Lowest number first.
    next_after : int or None
        The `after` that brings the turns that follow; None where none do.
    next_before : int or None
        The `before` that brings the turns that precede; None where none do.
    """

    turns: tuple[Turn, ...]
    next_after: int | None
    next_before: int | None


END = "end"
"""The `before` of who reads a `History` from its last turns."""
