"""What a client asks OpenAI's chat completions for, as a turn: pure translation, every refusal by its parameter.

honoured   `HONOURED`: what an answer is made of, and how it is drawn and sent. The system's messages stand first,
           `developer` is `system`, and the texts of one message are joined by a line break.
ignored    `IGNORED` and `IGNORED_OF_MESSAGES`: what cannot change an answer here, or what most servers make nothing
           of. A `user` that cannot name one (`limits.is_id`) is nobody.
refused    everything else, known to OpenAI or not: an answer that was drawn otherwise than asked would be a wrong one.
           A value that asks for nothing (null, empty, or a default of `DEFAULTS`) is fine.

Source: OpenAI API reference, "Create chat completion".
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from orchestra import limits
from orchestra.errors import InvalidRequest
from orchestra.gateway.wire import REASON_CHARS_MAX
from orchestra.model import ChatRequest, Given, Message, Role, Sampling

STOPS_MAX = 4
STOP_CHARS_MAX = 1_000
NAME_CHARS_MAX = 64

IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
    }
)
IGNORED_OF_MESSAGES = frozenset({"annotations", "name", "reasoning", "reasoning_content"})
"""Clients send back what other servers' answers had."""

DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "top_logprobs": (0,),
}
_NOTHING: tuple[Any, ...] = (None, [], {})

_Share = Annotated[float, Meta(ge=0, le=1)]
_Heat = Annotated[float, Meta(ge=0, le=2)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Tokens = Annotated[int, Meta(ge=1, le=limits.TOKENS_COUNTED_MAX)]
_Stop = Annotated[str, Meta(min_length=1, max_length=STOP_CHARS_MAX)]
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class UnsupportedParameter(InvalidRequest):
    """The parameter, or its value, asks for what this service does not do."""

    kind, title = "unsupported-parameter", "Unsupported parameter"


class ContextTooLong(InvalidRequest):
    """More was given than a session may hold; nothing is cut silently."""

    kind, title = "context-length-exceeded", "Context too long"


class TextPart(Struct, frozen=True):
    """A part of a message's content; no other type than text is supported."""

    type: Literal["text"]
    text: str


class CompletionMessage(Struct, frozen=True):
    """One message of the history that the client keeps, or the new one."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[TextPart, ...]

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(each.text for each in self.content)


class StreamOptions(Struct, frozen=True):
    """Whether the stream has a last chunk with the tokens that it cost."""

    include_usage: bool | None = None


class CompletionRequest(Struct, frozen=True):
    """A request to complete a chat, as OpenAI's API says it. The last message is the user's."""

    model: str
    messages: Annotated[tuple[CompletionMessage, ...], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    temperature: _Heat | None = None
    top_p: _Share | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: _Stop | Annotated[tuple[_Stop, ...], Meta(max_length=STOPS_MAX)] | None = None
    seed: _Seed | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None


HONOURED = frozenset(CompletionRequest.__struct_fields__)


class Asked(NamedTuple):
    """A turn, what is given with it, and how its answer is to be sent."""

    model: str
    stream: bool
    include_usage: bool
    request: ChatRequest
    given: Given


def asked_of(body: object) -> Asked:
    """Translate the JSON value `body`.

    Raises
    ------
    UnsupportedParameter
        It asks for what is not supported.
    ContextTooLong
        More messages, tokens or bytes than a session may hold.
    InvalidRequest
        It is not of the protocol's shape, or a value is out of its bounds.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("the body is no JSON object: send one with model and messages")
    _refuse_unsupported(body, "", HONOURED | IGNORED)
    for index, message in enumerate(_objects_of(body.get("messages"))):
        _refuse_unsupported_message(message, f"messages[{index}]")
    said = _converted(body)
    _check_texts(said.messages)
    _check_sampling(said)
    user_id = said.user if said.user is not None and limits.is_id(said.user) else None
    return Asked(
        model=said.model,
        stream=bool(said.stream),
        include_usage=bool(said.stream_options and said.stream_options.include_usage),
        request=ChatRequest(said.messages[-1].text, user_id=user_id, stream=bool(said.stream)),
        given=Given(_history(said.messages), _sampling(said), said.model),
    )


def _refuse_unsupported(value: Mapping[str, Any], place: str, known: frozenset[str]) -> None:
    for name, asked in value.items():
        if name not in known and not any(_same(asked, each) for each in (*_NOTHING, *DEFAULTS.get(name, ()))):
            param = place + name[:NAME_CHARS_MAX]
            raise UnsupportedParameter(f"{param} is not supported with this value: leave it out", field=param)


def _same(asked: object, default: object) -> bool:
    return type(asked) is type(default) and asked == default  # to Python, true is 1


def _refuse_unsupported_message(message: Mapping[str, Any], place: str) -> None:
    if message.get("role") in ("tool", "function"):
        raise UnsupportedParameter("tools are not supported: leave their messages out", field=f"{place}.role")
    _refuse_unsupported(message, f"{place}.", IGNORED_OF_MESSAGES | {"role", "content"})
    for index, part in enumerate(_objects_of(message.get("content"))):
        kind = part.get("type")
        if isinstance(kind, str) and kind != "text":
            raise UnsupportedParameter(
                f"content of type {kind[:NAME_CHARS_MAX]!r} is not supported: send text only",
                field=f"{place}.content[{index}].type",
            )


def _objects_of(value: object) -> list[dict[str, Any]]:
    """Return a list's objects, each in its place; what is none of them is refused with the types."""
    return [each if isinstance(each, dict) else {} for each in value] if isinstance(value, list) else []


def _check_texts(messages: tuple[CompletionMessage, ...]) -> None:
    for index, message in enumerate(messages):
        if fault := limits.text_fault(message.text):
            raise InvalidRequest(f"messages[{index}].content: {fault}", field=f"messages[{index}].content")
    last, place = messages[-1], f"messages[{len(messages) - 1}]"
    if last.role != "user":
        raise InvalidRequest(f"the last message has the role {last.role}: it must be user", field=f"{place}.role")
    if not last.text.strip():
        raise InvalidRequest("the last message is empty: say something", field=f"{place}.content")
    if len(last.text) > limits.MESSAGE_CHARS_MAX:
        raise ContextTooLong(
            f"the last message has {len(last.text)} characters, at most {limits.MESSAGE_CHARS_MAX} are allowed: "
            "shorten it",
            field=f"{place}.content",
        )


def _check_sampling(said: CompletionRequest) -> None:
    for stop in (said.stop,) if isinstance(said.stop, str) else said.stop or ():
        if fault := limits.text_fault(stop):
            raise InvalidRequest(f"stop: {fault}", field="stop")
    if None not in (said.max_tokens, said.max_completion_tokens) and said.max_tokens != said.max_completion_tokens:
        raise InvalidRequest(
            "max_tokens is max_completion_tokens, and they differ: send one of them", field="max_tokens"
        )


def _history(messages: tuple[CompletionMessage, ...]) -> tuple[Message, ...]:
    """Return all but the last message, the system's first, as many models' templates want it.

    Raises
    ------
    ContextTooLong
    """
    *history, last = [Message(_role(each), each.text) for each in messages]
    for amount, most, unit in (
        (len(history), limits.GIVEN_MESSAGES_MAX, "messages"),
        (_tokens([*history, last]), limits.SESSION_TOKENS_MAX, "tokens with the last message"),
        (sum(len(each.content.encode()) for each in history), limits.SESSION_BYTES_MAX, "bytes"),
    ):
        if amount > most:
            raise ContextTooLong(
                f"the history before the last message has {amount} {unit}, at most {most} are allowed: leave the "
                "oldest messages out, or shorten them",
                field="messages",
            )
    return tuple(sorted(history, key=lambda each: each.role != "system"))


def _tokens(messages: list[Message]) -> int:
    """Return the messages' tokens, or, where even that is within the bound, its characters: no token is less."""
    chars = sum(max(1, len(each.content)) for each in messages)
    if chars <= limits.SESSION_TOKENS_MAX:
        return chars
    return sum(limits.estimated_tokens(each.content) for each in messages)


def _role(message: CompletionMessage) -> Role:
    return "system" if message.role == "developer" else message.role


def _sampling(said: CompletionRequest) -> Sampling:
    return Sampling(
        temperature=said.temperature,
        top_p=said.top_p,
        max_tokens=said.max_completion_tokens if said.max_tokens is None else said.max_tokens,
        stop=((said.stop,) if isinstance(said.stop, str) else said.stop) or None,
        seed=said.seed,
        presence_penalty=said.presence_penalty,
        frequency_penalty=said.frequency_penalty,
    )


_CURE = "send what OpenAI's API takes, or leave it out"
_CURES = {
    "model": "send a name that /v1/models lists",
    "messages": "send a list of objects, each with a role and content",
    "role": "send system, developer, user or assistant",
    "content": "send a text, or a list of parts such as {'type': 'text', 'text': 'Hello'}",
    "type": "send 'text'",
    "text": "send a text",
}

_INDEX = re.compile(r"\[\d+\]")
_MISSING = re.compile(r"Object missing required field `(\w+)`")


def _converted(body: dict[str, Any]) -> CompletionRequest:
    """Return `body` as a request.

    Raises
    ------
    InvalidRequest
        Names the parameter.
    """
    try:
        return msgspec.convert(body, CompletionRequest)
    except msgspec.ValidationError as error:
        said = str(error)
        reason, marked, place = said.rpartition(" - at `$")
        param, reason = (place.removesuffix("`"), reason) if marked else ("", said)
        if missing := _MISSING.match(reason):
            param += f".{missing[1]}"
        param = param.removeprefix(".")
        cure = _CURES.get(_INDEX.sub("", param).rpartition(".")[2], _CURE)
        raise InvalidRequest(f"{param}: {reason[:REASON_CHARS_MAX]}; {cure}", field=param) from error
