"""The OpenAPI document: what the routes take and give, read off the very structs that the code decodes and encodes."""

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from sanic import HTTPResponse, Sanic
from sanic_ext import openapi

from orchestra import __version__
from orchestra.gateway.problems import CONTENT_TYPE, Problem
from orchestra.gateway.wire import JSON_TYPE
from orchestra.model import ChatReply, ChatRequest

_REF = "#/components/schemas/{name}"
_DOCUMENTED = (ChatRequest, ChatReply, Problem)

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse]]


def turn_route(takes: type, gives: type, description: str) -> Callable[[Handler], Handler]:
    """Decorate a route with the structs that its body and its answer are; its errors are problems, as everywhere."""

    def decorate(handler: Handler) -> Handler:
        openapi.response(200, {JSON_TYPE: _ref(gives)}, description)(handler)
        openapi.response("default", {CONTENT_TYPE: _ref(Problem)}, "What went wrong")(handler)
        return openapi.body({JSON_TYPE: {"schema": _ref(takes)}}, required=True)(handler)

    return decorate


def _ref(model: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=model.__name__)}


def describe(app: Sanic[Any, Any]) -> None:
    """Give the app's OpenAPI document its head and its schemas."""
    app.ext.openapi.describe(
        "AI Orchestra",
        version=__version__,
        description="A chat orchestrator that can be rehearsed. Errors are problem details (RFC 9457).",
    )
    _, schemas = msgspec.json.schema_components(_DOCUMENTED, ref_template=_REF)
    for name, schema in schemas.items():
        app.ext.openapi.add_component("schemas", name, _as_openapi_3_0(schema))


def _as_openapi_3_0(schema: Any) -> Any:
    """Say "or null" as OpenAPI 3.0 does, which is what the document declares: `nullable` and no type "null"."""
    if isinstance(schema, list):
        return [_as_openapi_3_0(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _as_openapi_3_0(value) for key, value in schema.items()}
    if isinstance(plain.get("description"), str):  # a docstring, of which readers of the API want the first paragraph
        plain["description"] = plain["description"].partition("\n\n")[0]
    choices = plain.get("anyOf", [])
    others = [each for each in choices if each != {"type": "null"}]
    if len(others) < len(choices):
        del plain["anyOf"]
        plain |= {**others[0], "nullable": True} if len(others) == 1 else {"anyOf": others, "nullable": True}
    return plain
