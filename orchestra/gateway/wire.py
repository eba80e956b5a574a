"""Bytes of a request to a model and back: JSON by msgspec, each fault with its place and its cure."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from sanic import HTTPResponse

from orchestra.errors import InvalidRequest, UnsupportedMediaType

T = TypeVar("T")

JSON_TYPE = "application/json"
NO_STORE = {"Cache-Control": "no-store"}
REASON_CHARS_MAX = 120
"""Of what msgspec says, which may quote a key of the client's of any length."""


def decoded(body: bytes, content_type: str | None, into: type[T], *, media_type: str = JSON_TYPE) -> T:
    """Return `body` as a value of type `into`, where it is declared as JSON or as `media_type`.

    Raises
    ------
    UnsupportedMediaType
        The body is not declared to be JSON.
    InvalidRequest
        It is not JSON, or not of the type's shape; names the field.
    """
    declared = (content_type or "").partition(";")[0].strip().lower()
    if declared not in {JSON_TYPE, media_type}:
        raise UnsupportedMediaType(
            f"Content-Type is {declared or 'missing'}: send the body as JSON with 'Content-Type: {media_type}'"
        )
    return parsed(body, into, lambda: _shape(into))


def parsed(body: bytes, into: type[T], shape: Callable[[], str], what: str = "body") -> T:
    """Return the JSON `body` as a value of type `into`; where it is none, `shape` says what is expected of `what`.

    Raises
    ------
    InvalidRequest
        It is not JSON, or not of that shape; names the field.
    """
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        reason = str(error)
        raise InvalidRequest(f"{reason[:REASON_CHARS_MAX]}; {shape()}", field=_field(reason)) from error
    except RecursionError as error:
        raise InvalidRequest(f"the JSON is nested too deeply; {shape()}", field="$") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(_fault(body, error, what), field="$") from error


def json_response(value: object, headers: Mapping[str, str] | None = None, *, status: int = 200) -> HTTPResponse:
    """Return `value` as the response of a request that went well."""
    return HTTPResponse(msgspec.json.encode(value), status, dict(headers or {}), JSON_TYPE)


_PLACE = re.compile(r" - at `(\$[\w.\[\]]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `([\w\-]{1,64})`")


def _field(reason: str) -> str:
    """Return the path of the field that msgspec's `reason` is about. The text may hold a client's own key."""
    if unknown := _UNKNOWN.match(reason):
        return f"$.{unknown[1]}"
    place = _PLACE.search(reason)
    return place[1] if place and "unknown field" not in reason else "$"


def _shape(into: type) -> str:
    if not issubclass(into, msgspec.Struct):
        return "the body is one JSON object"
    fields = ", ".join(_described(each) for each in msgspec.structs.fields(into))
    return f"the body is one flat JSON object with the fields {fields}"


def _described(field: msgspec.structs.FieldInfo) -> str:
    words = [] if field.required else ["optional"]
    words += [" or ".join(get_args(each)) for each in _alternatives(field.type) if get_origin(each) is Literal]
    return f"{field.name} ({': '.join(words)})" if words else field.name


def _alternatives(declared: Any) -> tuple[Any, ...]:
    return (declared,) if get_origin(declared) is Literal else get_args(declared)


def _fault(body: bytes, error: Exception, what: str) -> str:
    """Say why `body` is no JSON. What the standard library accepts of what msgspec refuses are lone surrogates."""
    if not body.strip():
        return f"the {what} is empty: send a JSON object"
    if isinstance(error, UnicodeDecodeError):
        return f"the {what} is not valid UTF-8 (byte {error.start}): encode it as UTF-8"
    try:
        json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as wrong:
        return f"the {what} is not JSON in UTF-8 (byte {wrong.start}): encode it as UTF-8, without a byte order mark"
    except (ValueError, RecursionError) as wrong:
        return f"the {what} is not JSON: {wrong if isinstance(wrong, ValueError) else error}"
    return "a text has a lone surrogate (U+D800 to U+DFFF), which is no character: send valid Unicode"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value: send a number or null")
