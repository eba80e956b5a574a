"""Errors on the OpenAI-compatible routes, as strict clients read them: ``{"error": {message, type, param, code}}``.

They are the same errors as everywhere, said in another form: `code` is the error's kind, `param` its field.
``x-should-retry`` tells OpenAI's SDKs, which try any 408, 409, 429 and 5xx again, whether that can help.

Source: OpenAI API reference, "Error codes"; the header is read by the SDKs (`openai-python`, ``_should_retry``).
"""

import msgspec
from sanic import HTTPResponse

from orchestra.gateway.problems import Fault, headers_of
from orchestra.gateway.wire import JSON_TYPE

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 502: "api_error"}


class ApiError(msgspec.Struct, frozen=True):
    """What went wrong, in OpenAI's words; `code` is the stable one to tell errors apart by."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of an error response, and the data of an event that ends a stream in its middle."""

    error: ApiError


def error_body(fault: Fault) -> bytes:
    """Return `fault` as JSON."""
    kind = _TYPES.get(fault.status) or ("server_error" if fault.status >= 500 else "invalid_request_error")
    param = (fault.field or "").removeprefix("$").removeprefix(".") or None
    return msgspec.json.encode(ErrorBody(ApiError(fault.detail, kind, param, fault.kind.replace("-", "_"))))


def error_response(fault: Fault) -> HTTPResponse:
    """Return `fault` as a response, with the headers that belong to its status."""
    headers = {**headers_of(fault), "x-should-retry": "true" if fault.retryable else "false"}
    return HTTPResponse(error_body(fault), fault.status, headers, JSON_TYPE)
