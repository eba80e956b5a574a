"""What of a conversation goes into the next prompt: the pinned exchanges and the most recent ones, within the limits.

An exchange is a user's message with what answers it. It stays whole or goes whole: a history that opens with an answer
misleads a model. The oldest go first; pinned ones and the instruction stay, and together take at most half of each
limit, so that there is always room for a conversation. An exchange that does not even fit beside what stays is left
out of the history and takes nothing else with it; it is in the conversation all the same.

A prompt is the history with the new message, together within the same limit of tokens. What memory recalls comes on
top: at most `limits.MEMORIES_RECALLED_MAX` texts of `limits.MEMORY_CHARS_MAX` characters.
"""

from collections.abc import Iterator, Sequence

import msgspec
from msgspec.structs import replace

from orchestra import limits
from orchestra.engines.apology import Apology
from orchestra.engines.unified import system_message
from orchestra.errors import PayloadTooLarge
from orchestra.model import Message, Profile, Session, Turn

MESSAGE_TOKENS = 4
"""What chat templates put around a message (role and marks), as OpenAI's cookbook counts it."""

CHAR_BYTES_MAX = 4
"""Of UTF-8."""

MESSAGE_BYTES = 16
SESSION_BYTES = 512
"""Upper bounds of what a stored record takes beside texts: each message's lengths and number, and all else that is
bounded (two ids, counters, times)."""


def with_turn(session: Session, turn: Turn) -> Session:
    """Return `session` with the exchange of `turn`, trimmed to the limits.

    A question that was met with an apology stays out: it will come again, and no model should take the apology for its
    own words.
    """
    session = replace(session, version=turn.number, updated_at=max(session.updated_at, turn.at))
    if turn.engine == Apology.name:
        return session
    exchange = exchange_of(turn)
    tokens = (session.tokens or counted(session)) + _tokens(exchange)
    longer = trimmed(replace(session, messages=(*session.messages, *exchange), tokens=tokens))
    return longer if longer.messages[-1:] == exchange[-1:] else session


def with_profile(session: Session, profile: Profile, revision: int, pinned: Sequence[Turn]) -> Session:
    """Return `session` with another profile, which pins all that it pinned and more, trimmed to the limits.

    Parameters
    ----------
    pinned : sequence of Turn
        All turns that `profile` pins.
    """
    there = {message.turn for message in session.messages}
    added = [message for turn in pinned if turn.number not in there for message in exchange_of(turn)]
    messages = tuple(sorted((*session.messages, *added), key=_turn_of))
    changed = replace(session, profile=profile, revision=revision, messages=messages)
    return trimmed(replace(changed, tokens=counted(changed)))


def trimmed(session: Session) -> Session:
    """Drop the oldest exchanges that are not pinned until the rest is within `limits.SESSION_*`."""
    if _is_small(session):
        return session
    count, tokens, size_bytes = len(session.messages), session.tokens, size_of(session)
    kept: list[Message] = []
    for exchange in exchanges(session.messages):
        pinned = exchange[0].turn in session.profile.pinned
        if pinned or (
            count <= limits.SESSION_MESSAGES_MAX
            and tokens <= limits.SESSION_TOKENS_MAX
            and size_bytes <= limits.SESSION_BYTES_MAX
        ):
            kept += exchange
        else:
            count, tokens, size_bytes = count - len(exchange), tokens - _tokens(exchange), size_bytes - _bytes(exchange)
    return session if count == len(session.messages) else replace(session, messages=tuple(kept), tokens=tokens)


def _is_small(session: Session) -> bool:
    """Tell that a session is within all limits for sure, which takes no encoding and is so for most."""
    chars = sum([len(message.content) for message in session.messages])
    bytes_at_most = (
        SESSION_BYTES + limits.PROFILE_BYTES_MAX + chars * CHAR_BYTES_MAX + len(session.messages) * MESSAGE_BYTES
    )
    return (
        len(session.messages) <= limits.SESSION_MESSAGES_MAX
        and session.tokens <= limits.SESSION_TOKENS_MAX
        and bytes_at_most <= limits.SESSION_BYTES_MAX
    )


def within_prompt(session: Session, message: str) -> Session:
    """Return `session` with as much of its history as goes into one prompt together with `message`.

    Raises
    ------
    PayloadTooLarge
        The message does not even fit beside instruction, context and pinned exchanges.
    """
    stored = session.tokens or counted(session)
    if stored + len(message) + MESSAGE_TOKENS <= limits.SESSION_TOKENS_MAX:  # no token is less than a character
        return session
    own = _tokens((Message("user", message),))
    if stored + own <= limits.SESSION_TOKENS_MAX:
        return session
    left, kept = stored, list[Message]()
    for exchange in exchanges(session.messages):
        if exchange[0].turn in session.profile.pinned or left + own <= limits.SESSION_TOKENS_MAX:
            kept += exchange
        else:
            left -= _tokens(exchange)
    if left + own > limits.SESSION_TOKENS_MAX:
        raise PayloadTooLarge(
            f"the message has about {own} tokens, and {limits.SESSION_TOKENS_MAX - left} are left beside the session's "
            "instruction, context and pinned turns: shorten it, or pin less",
            field="$.message",
        )
    return replace(session, messages=tuple(kept), tokens=left)


def is_kept(session: Session, turn: Turn) -> bool:
    """Tell whether the exchange of `turn` goes into the history of `session`, or is too large even alone."""
    exchange = exchange_of(turn)
    # Instruction, context and pinned turns take half of everything at most. No token is less than a character.
    if sum([len(message.content) + MESSAGE_TOKENS for message in exchange]) <= limits.SESSION_TOKENS_MAX // 2:
        return True
    pinned = [message for message in session.messages if message.turn in session.profile.pinned]
    alone = replace(session, messages=(*pinned, *exchange))
    return counted(alone) <= limits.SESSION_TOKENS_MAX and size_of(alone) <= limits.SESSION_BYTES_MAX


class Room:
    """A session that is filled with its pinned exchanges and then, newest first, with as many more as it holds."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._exchanges: list[tuple[Message, ...]] = []
        self._tokens = profile_tokens(session.profile)
        self._bytes = size_of(session)
        self._must_tokens = self._must_bytes = 0
        self._tokens_looked_at = 0

    @property
    def session(self) -> Session:
        """The session with what was put into it."""
        messages = [message for exchange in sorted(self._exchanges, key=_first_turn) for message in exchange]
        return replace(self._session, messages=tuple(messages), tokens=self._tokens)

    def add(self, exchange: tuple[Message, ...]) -> None:
        """Put in an exchange that must be there."""
        self._put(exchange, _tokens(exchange), _bytes(exchange))

    def fix(self) -> None:
        """Let what is there stay, whatever comes."""
        self._must_tokens, self._must_bytes = self._tokens, self._bytes

    def takes(self, exchange: tuple[Message, ...]) -> bool:
        """Put the exchange in, or pass over one that is too large even alone; tell whether to go on with older ones.

        What is counted for nothing is bounded: of exchanges that are too large, two or three are passed over.
        """
        size_bytes = _bytes(exchange)
        if self._must_bytes + size_bytes > limits.SESSION_BYTES_MAX:
            return True
        if (
            2 * len(self._exchanges) + len(exchange) > limits.SESSION_MESSAGES_MAX
            or self._bytes + size_bytes > limits.SESSION_BYTES_MAX
            or self._tokens_looked_at > 2 * limits.SESSION_TOKENS_MAX
        ):
            return False
        tokens = _tokens(exchange)
        if self._must_tokens + tokens > limits.SESSION_TOKENS_MAX:
            self._tokens_looked_at += tokens
            return True
        if self._tokens + tokens > limits.SESSION_TOKENS_MAX:
            return False
        self._put(exchange, tokens, size_bytes)
        return True

    def _put(self, exchange: tuple[Message, ...], tokens: int, size_bytes: int) -> None:
        self._exchanges.append(exchange)
        self._tokens += tokens
        self._bytes += size_bytes


def exchange_of(turn: Turn) -> tuple[Message, Message]:
    """Return the two messages of a turn."""
    return Message("user", turn.message, turn.number), Message("assistant", turn.reply, turn.number)


def exchanges(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Split messages into exchanges: each begins with a user's message."""
    begins = 0
    for index, message in enumerate(messages):
        if message.role == "user" and index > begins:
            yield messages[begins:index]
            begins = index
    if messages:
        yield messages[begins:]


def counted(session: Session) -> int:
    """Estimate the tokens that the session takes of a prompt, from all of its text."""
    return profile_tokens(session.profile) + _tokens(session.messages)


def profile_tokens(profile: Profile) -> int:
    """Estimate the tokens that instruction and context take of every prompt."""
    return _tokens((message,) if (message := system_message(profile)) else ())


def profile_bytes(profile: Profile) -> int:
    """Return the bytes of the profile as JSON, which its stored form does not exceed."""
    return len(msgspec.json.encode(profile))


def size_of(session: Session) -> int:
    """Return the bytes that the session's record takes at most, with everything in it."""
    return SESSION_BYTES + profile_bytes(session.profile) + _bytes(session.messages)


def room_fault(profile: Profile, pinned: Sequence[Turn]) -> str | None:
    """Say which limit instruction, context and pinned turns together take more than half of, or None."""
    messages = [message for turn in pinned for message in exchange_of(turn)]
    taken = {
        "messages": (len(messages), limits.SESSION_MESSAGES_MAX // 2),
        "tokens": (profile_tokens(profile) + _tokens(messages), limits.SESSION_TOKENS_MAX // 2),
        "bytes": (SESSION_BYTES + profile_bytes(profile) + _bytes(messages), limits.SESSION_BYTES_MAX // 2),
    }
    over = [f"{size} {what}, at most {most} are allowed" for what, (size, most) in taken.items() if size > most]
    return over[0] if over else None


def _tokens(messages: Sequence[Message]) -> int:
    return sum([limits.estimated_tokens(message.content) + MESSAGE_TOKENS for message in messages])


def _bytes(messages: Sequence[Message]) -> int:
    return sum([len(message.content.encode()) + MESSAGE_BYTES for message in messages])


def _first_turn(exchange: Sequence[Message]) -> int:
    return exchange[0].turn


def _turn_of(message: Message) -> int:
    return message.turn
