"""The OpenAI-compatible routes, so that chat front ends and SDKs that know no other API work unchanged.

What is asked for and what is refused is told in `completion_request`, what is answered in `completion_reply`, errors in
`openai_errors`. Any `Authorization` is accepted. Each completion is a turn of a session of its own, which begins with
the history that the client sent and is durable like any other (`x_orchestra` names it). Memory takes part where a
`user` is named.

There is no resuming here: a client that goes away stops its turn at once, also before the first piece. Status and
headers wait for the first piece, the first ping or the end, so that what fails before is an ordinary error.
"""

from typing import Any, Literal
from urllib.parse import unquote

from msgspec import Struct
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra import limits
from orchestra.chat.turns import LiveTurns, Watch
from orchestra.config import Settings
from orchestra.errors import NotFound
from orchestra.gateway import apidoc
from orchestra.gateway.completion_reply import (
    ChatCompletion,
    ChatCompletionChunk,
    CompletionStream,
    completion_of,
    error_event,
)
from orchestra.gateway.completion_request import NAME_CHARS_MAX, CompletionRequest, asked_of
from orchestra.gateway.openai_errors import ErrorBody, error_response
from orchestra.gateway.parameters import (
    EVENT_STREAM,
    KEY_HEADER,
    LONE_KEY_CHARS_MIN,
    REPLAYED_HEADER,
    TIMEOUT_HEADER,
    TIMEOUT_SECONDS_MAX,
    idempotency_key,
    timeout_seconds,
)
from orchestra.gateway.passage import tell_finished
from orchestra.gateway.problems import ClientGone
from orchestra.gateway.routes import add_route
from orchestra.gateway.sse import KEEP_ALIVE, End, begun, next_entry
from orchestra.gateway.wire import JSON_TYPE, NO_STORE, decoded, json_response

PREFIX = "/v1/"
"""Every path that begins so speaks OpenAI's language, errors included."""

MODEL = "orchestra"
"""The model that the service as a whole is."""


class ModelNotFound(NotFound):
    """No model is called so here."""

    kind, title = "model-not-found", "Model not found"


class Model(Struct, frozen=True):
    """A name that completions may be asked for by; when it was created is not known."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Struct, frozen=True):
    """All models."""

    object: Literal["list"]
    data: tuple[Model, ...]


DOCUMENTED = (CompletionRequest, ChatCompletion, ChatCompletionChunk, Model, ModelList, ErrorBody)
_FAILS = (JSON_TYPE, ErrorBody)


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the routes to `app`."""
    add_route(app, chat_completions, f"{PREFIX}chat/completions", "POST")
    add_route(app, models, f"{PREFIX}models")
    add_route(app, model, f"{PREFIX}models/<name:path>")


@apidoc.route(ModelList, "The models", fails=_FAILS)
@openapi.summary("List the models, as OpenAI's API does")
@openapi.description(
    f"`{MODEL}` is the service as a whole; the configured provider's model may be asked for by its own name. Either "
    "way the same turn is taken, with its fallbacks: `x_orchestra` in a completion tells who answered."
)
async def models(request: Request) -> HTTPResponse:
    """List the models."""
    return json_response(ModelList("list", await _models(request)))


@apidoc.route(Model, "The model", fails=_FAILS)
@openapi.summary("Describe a model, as OpenAI's API does")
async def model(request: Request, name: str) -> HTTPResponse:
    """Describe one model."""
    return json_response(await _model(request, unquote(name)))  # the SDK quotes the slashes of a name


@apidoc.route(ChatCompletion, "The whole answer, durable", takes=CompletionRequest, also=EVENT_STREAM, fails=_FAILS)
@apidoc.parameter(
    TIMEOUT_HEADER,
    "How many seconds the caller waits: the turn ends by then, with 504 where it is not done.",
    location="header",
    type="number",
    maximum=TIMEOUT_SECONDS_MAX,
)
@apidoc.parameter(
    KEY_HEADER,
    "The client's own name of this turn, unique for its user: sent again, the turn is not taken twice, which "
    f"`{REPLAYED_HEADER}` tells; 422 with another message, history, model or sampling. At least {LONE_KEY_CHARS_MIN} "
    "characters where no `user` is named.",
    location="header",
    type="string",
    maxLength=limits.ID_CHARS_MAX,
)
@openapi.summary("Complete a chat, as OpenAI's API does")
@openapi.description(
    "The history comes with the request, the last message being the user's. With `stream`, the answer comes as "
    "`chat.completion.chunk` events and ends with `data: [DONE]`; one that fails in its middle ends with "
    '`data: {"error": ...}` instead. Parameters that are not listed are refused where they ask for something that is '
    "not done here (tools, several answers, other formats than text), and else ignored."
)
async def chat_completions(request: Request) -> HTTPResponse | None:
    """Answer one turn of a client that keeps its own history."""
    asked = asked_of(decoded(request.body, request.headers.get("content-type"), object))
    await _model(request, asked.model)
    key = idempotency_key(request.headers, alone=asked.request.user_id is None)
    turns: LiveTurns = await request.app.ctx.service.container.resolve(LiveTurns)
    watch = await turns.start(
        asked.request,
        key=f"{PREFIX}{key}" if key else None,  # apart from the names of native turns
        join=asked.stream,
        grace=False,
        correlation_id=request.ctx.correlation_id,
        trace=request.ctx.trace,
        seconds_max=timeout_seconds(request.headers),
        given=asked.given,
    )
    created = int(request.app.ctx.service.ports.clock.now())
    headers = {**NO_STORE, **({REPLAYED_HEADER: "true"} if watch.replayed else {})}
    if asked.stream:
        return await _stream(request, watch, headers, CompletionStream(asked, watch.turn_id, created))
    async with watch:
        return json_response(completion_of(await watch.reply(), asked, created), headers)


async def _stream(
    request: Request, watch: Watch, headers: dict[str, str], stream: CompletionStream
) -> HTTPResponse | None:
    """Answer `request` with the turn's log; return an error where the turn failed before anything was sent."""
    response: HTTPResponse | None = None
    status = ClientGone.status
    try:
        async with watch:
            while not stream.ended:
                entry = await next_entry(watch)
                assert not isinstance(entry, End)  # the last entry ended the stream
                said = KEEP_ALIVE if entry is None else stream.feed(entry.frame)
                if not isinstance(said, bytes):
                    if response is None:
                        return error_response(said)
                    said = error_event(said)
                if said:
                    response = response or await begun(request, headers)
                    await response.send(said, stream.ended)  # waits while the socket is full
        status = 200
        return None
    finally:
        if request.ctx.streams:
            tell_finished(request, status)


async def _models(request: Request) -> tuple[Model, ...]:
    settings = await request.app.ctx.service.container.resolve(Settings)
    names = dict.fromkeys((MODEL, settings.provider_model or MODEL))
    return tuple(Model(name, "model", 0, MODEL) for name in names)


async def _model(request: Request, name: str) -> Model:
    """Return the model of that name.

    Raises
    ------
    ModelNotFound
    """
    known = await _models(request)
    for each in known:
        if each.id == name:
            return each
    names = " or ".join(each.id for each in known)
    raise ModelNotFound(f"there is no model {name[:NAME_CHARS_MAX]!r}: ask for {names}", field="model")
