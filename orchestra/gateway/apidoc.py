"""The OpenAPI document: what the routes take and give, read off the very structs that the code decodes and encodes."""

from collections.abc import Callable, Coroutine, Iterable
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args

import msgspec
from sanic import HTTPResponse, Sanic
from sanic_ext import openapi
from sanic_ext.extensions.openapi.types import Schema

from orchestra import __version__
from orchestra.gateway.problems import CONTENT_TYPE, Problem
from orchestra.gateway.wire import JSON_TYPE

_REF = "#/components/schemas/{name}"
OPERATOR = "operator"

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, HTTPResponse | None]])


def route(
    gives: type | UnionType | None,
    description: str,
    *,
    status: int = 200,
    takes: type | UnionType | None = None,
    takes_as: str = JSON_TYPE,
    also: str | None = None,
    operator: bool = False,
    fails: tuple[str, type] = (CONTENT_TYPE, Problem),
) -> Callable[[Handler], Handler]:
    """Decorate a route with what it takes and gives.

    Parameters
    ----------
    gives, takes : type or union of them, optional
        The structs that its answer and its body are.
    description : str
        Of the answer.
    status : int
        Of the answer where all goes well.
    takes_as : str
        The media type of the body.
    also : str, optional
        Another media type of the answer, for those who ask for it.
    operator : bool
        Whether only an operator may ask.
    fails : (str, type)
        Media type and struct of its errors: problems, but where others than we say what errors look like.
    """
    error_type, error = fails
    content: dict[str, Any] = {JSON_TYPE: _ref(gives)} if gives else {}
    content |= {also: {"type": "string"}} if also else {}

    def decorate(handler: Handler) -> Handler:
        openapi.response(status, content, description)(handler)
        openapi.response("default", {error_type: _ref(error)}, "What went wrong")(handler)
        if operator:
            openapi.secured(OPERATOR)(handler)
        return openapi.body({takes_as: {"schema": _ref(takes)}}, required=True)(handler) if takes else handler

    return decorate


def parameter(name: str, description: str, *, location: str = "query", **schema: Any) -> Callable[[Handler], Handler]:
    """Decorate a route with an optional parameter, whose type and bounds are `schema`."""
    declared = Schema(**schema)  # type: ignore[no-untyped-call]
    decorated: Callable[[Handler], Handler] = openapi.parameter(
        name, declared, location, description=description, required=False
    )
    return decorated


def _ref(model: type | UnionType) -> dict[str, Any]:
    if isinstance(model, UnionType):
        return {"oneOf": [_ref(each) for each in get_args(model)]}
    return {"$ref": _REF.format(name=model.__name__)}


def describe(app: Sanic[Any, Any], models: Iterable[type]) -> None:
    """Give the app's OpenAPI document its head, its schemas (`models` and what they hold), and how operators log in."""
    app.ext.openapi.describe(
        "AI Orchestra",
        version=__version__,
        description="A chat orchestrator that can be rehearsed. Errors are problem details (RFC 9457).",
    )
    app.ext.openapi.add_security_scheme(OPERATOR, "http", scheme="bearer", description="The setting operator_key.")
    for name, schema in _schemas((Problem, *models)).items():
        app.ext.openapi.add_component("schemas", name, schema)


@cache
def _schemas(models: tuple[type, ...]) -> dict[str, Any]:
    """Return the schemas of `models` and what they hold, which no app of the process changes."""
    _, schemas = msgspec.json.schema_components(models, ref_template=_REF)
    return {name: _as_openapi_3_0(schema) for name, schema in schemas.items()}


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
