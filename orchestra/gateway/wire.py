"""Bytes of a request to a model and back: JSON by msgspec, each fault with its place and its cure."""

import json
from typing import TypeVar

import msgspec

from orchestra.errors import InvalidRequest, UnsupportedMediaType

T = TypeVar("T")

JSON_TYPE = "application/json"


def decoded(body: bytes, content_type: str | None, into: type[T]) -> T:
    """Return `body` as a value of type `into`.

    Raises
    ------
    UnsupportedMediaType
        The body is not declared to be JSON.
    InvalidRequest
        It is not JSON, or not of the type's shape; names the field.
    """
    declared = (content_type or "").partition(";")[0].strip().lower()
    if declared != JSON_TYPE:
        raise UnsupportedMediaType(
            f"Content-Type is {declared or 'missing'}: send the body as JSON with 'Content-Type: {JSON_TYPE}'"
        )
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at ")
        field = place.strip("`") or "$"
        raise InvalidRequest(f"{reason}; {_shape(into)}", field=field) from error
    except RecursionError as error:
        raise InvalidRequest(f"the JSON is nested too deeply; {_shape(into)}", field="$") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(_fault(body, error), field="$") from error


def _shape(into: type) -> str:
    fields = ", ".join(
        each.name if each.required else f"{each.name} (optional)" for each in msgspec.structs.fields(into)
    )
    return f"the body is one flat JSON object with the fields {fields}"


def _fault(body: bytes, error: Exception) -> str:
    """Say why `body` is no JSON. The standard library accepts what msgspec refuses in one case: lone surrogates."""
    if not body.strip():
        return "the body is empty: send a JSON object"
    if isinstance(error, UnicodeDecodeError):
        return f"the body is not valid UTF-8 (byte {error.start}): encode it as UTF-8"
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return f"the body is not JSON: {error}"
    return "a text has a lone surrogate (U+D800 to U+DFFF), which is no character: send valid Unicode"
