"""A turn's reply as OpenAI's chat completions say it, whole or in chunks: pure translation, byte for byte.

A stream is ``data: <chunk>`` events: the role with the first piece, the pieces, a chunk with the reason of the end, one
with the tokens where they were asked for, and ``data: [DONE]``. One that fails in its middle ends with
``data: {"error": ...}`` and no ``[DONE]``, which to a client that does not know of error events would say that the
answer is whole. `model` is the name that was asked for, in every chunk; who answered, and what the turn had to do
without, is in `x_orchestra`, which clients that do not know of it pass over.

An apology (`engines.apology`) is an error here: these clients keep their own history, take what comes as the model's
own words, and have no other way to tell.

Source: OpenAI API reference, "The chat completion object" and "The chat completion chunk object".
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from orchestra.engines import apology
from orchestra.errors import OrchestraError, TurnLost
from orchestra.frames import DeltaFrame, Done, ErrorFrame, LogFrame
from orchestra.gateway.completion_request import Asked
from orchestra.gateway.openai_errors import error_body
from orchestra.gateway.problems import Fault
from orchestra.model import ChatReply, Usage

FinishReason = Literal["stop", "length", "content_filter"]
DONE = b"data: [DONE]\n\n"


class NoAnswer(OrchestraError):
    """Nobody could be asked; on the native routes that is an apology."""

    kind, title, status, close_code, retryable = "no-answer", "No answer", 503, 1013, True


class CompletionUsage(Struct, frozen=True):
    """Tokens that the completion cost, as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Behind(Struct, frozen=True):
    """The turn behind a completion: its ids, who answered, and what it had to do without."""

    turn_id: str
    session_id: str
    engine: str
    model: str
    degraded: tuple[str, ...]


class AssistantMessage(Struct, frozen=True):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class CompletionChoice(Struct, frozen=True):
    """The one answer of a completion."""

    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: CompletionUsage
    x_orchestra: Behind
    system_fingerprint: str | None = None


class ChunkDelta(Struct, frozen=True):
    """What a chunk adds to the answer; the role comes once."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """The one answer of a chunk."""

    index: int
    delta: ChunkDelta
    logprobs: None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Struct, frozen=True):
    """One event of a streamed answer; `usage` is there where it was asked for, and null in all but the last."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    system_fingerprint: str | None = None
    usage: CompletionUsage | UnsetType | None = UNSET
    x_orchestra: Behind | UnsetType = UNSET


def completion_of(reply: ChatReply, asked: Asked, created: int) -> ChatCompletion:
    """Return the whole reply.

    Raises
    ------
    NoAnswer
        It is an apology.
    """
    if reply.engine == apology.Apology.name:
        raise _no_answer()
    message = AssistantMessage("assistant", reply.reply)
    return ChatCompletion(
        id=_id(reply.turn_id),
        object="chat.completion",
        created=created,
        model=asked.model,
        choices=(CompletionChoice(0, message, None, _finish_reason(reply)),),
        usage=_usage(reply.usage),
        x_orchestra=_behind(reply),
    )


class CompletionStream:
    """Makes a turn's log the events of a stream.

    Parameters
    ----------
    asked : Asked
    turn_id : str
    created : int
        Unix time in seconds.

    Attributes
    ----------
    ended : bool
        Nothing more is to be sent.
    """

    def __init__(self, asked: Asked, turn_id: str, created: int) -> None:
        self._asked = asked
        self._turn_id = turn_id
        self._created = created
        self._sent: list[str] = []
        self._held = ""
        self.ended = False

    def feed(self, frame: LogFrame) -> bytes | Fault:
        """Return the bytes that `frame` is sent as, maybe none, or what the turn failed with."""
        said = self._told(frame)
        self.ended = isinstance(frame, Done) or not isinstance(said, bytes)
        return said

    def _told(self, frame: LogFrame) -> bytes | Fault:
        match frame:
            case DeltaFrame(text=text):
                return self._say(text)
            case Done(reply=reply):
                return self._end(reply)
            case ErrorFrame():
                return frame
        return _changed() if self._sent else b""  # it was begun anew: what came before is void

    def _say(self, text: str) -> bytes:
        """Add a piece; what may turn out to be an apology is held back until more is known."""
        text, self._held = self._held + text, ""
        if not self._sent and text == apology.TEXT:
            self._held = text
            return b""
        return self._piece(text)

    def _piece(self, text: str) -> bytes:
        if not text:
            return b""
        first = b"" if self._sent else self._event(ChunkDelta("assistant", ""))
        self._sent.append(text)
        return first + self._event(ChunkDelta(content=text))

    def _end(self, reply: ChatReply) -> bytes | Fault:
        if reply.engine == apology.Apology.name:
            return _no_answer()
        sent = "".join(self._sent)
        if not reply.reply.startswith(sent):
            return _changed()
        rest = self._piece(reply.reply[len(sent) :])  # all of it, where the turn was answered before or level is low
        if not self._sent:
            rest = self._event(ChunkDelta("assistant", ""))
        end = self._event(ChunkDelta(), finish_reason=_finish_reason(reply), behind=_behind(reply))
        if self._asked.include_usage:
            end += _data(msgspec.structs.replace(self._chunk(()), usage=_usage(reply.usage)))
        return rest + end + DONE

    def _event(
        self, delta: ChunkDelta, *, finish_reason: FinishReason | None = None, behind: Behind | UnsetType = UNSET
    ) -> bytes:
        choice = ChunkChoice(0, delta, None, finish_reason)
        return _data(msgspec.structs.replace(self._chunk((choice,)), x_orchestra=behind))

    def _chunk(self, choices: tuple[ChunkChoice, ...]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=_id(self._turn_id),
            object="chat.completion.chunk",
            created=self._created,
            model=self._asked.model,
            choices=choices,
            usage=None if self._asked.include_usage else UNSET,
        )


def error_event(fault: Fault) -> bytes:
    """Return the event that ends a stream in its middle."""
    return b"data: %b\n\n" % error_body(fault)


def _data(chunk: ChatCompletionChunk) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _id(turn_id: str) -> str:
    return f"chatcmpl-{turn_id}"


def _finish_reason(reply: ChatReply) -> FinishReason:
    """Return the provider's reason where strict clients know it."""
    match reply.finish_reason:
        case "length" | "content_filter":
            return reply.finish_reason
    return "stop"


def _usage(usage: Usage) -> CompletionUsage:
    return CompletionUsage(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens)


def _behind(reply: ChatReply) -> Behind:
    return Behind(reply.turn_id, reply.session_id, reply.engine, reply.model, reply.degraded)


def _no_answer() -> NoAnswer:
    return NoAnswer("the language model behind this service is not available: try again")


def _changed() -> TurnLost:
    return TurnLost("the answer was begun anew after a part of it was sent: ask again")
