"""Input validation: what a request may say. The last step before a turn, the same for every door."""

from orchestra import limits
from orchestra.errors import InvalidRequest, PayloadTooLarge
from orchestra.model import ChatRequest


def validate(request: ChatRequest) -> None:
    """Refuse a request that cannot become a turn.

    Raises
    ------
    InvalidRequest
        Names the field and the cure.
    PayloadTooLarge
        The message is over `limits.MESSAGE_CHARS_MAX`.
    """
    _validate_message(request.message)
    validate_id("$.session_id", request.session_id, "leave it out to start a session, or send one that a reply named")
    validate_id("$.user_id", request.user_id, "leave it out, or send your own stable name of the user")


def _validate_message(message: str) -> None:
    field = "$.message"
    if not message.strip():
        raise InvalidRequest("message is empty: say something", field=field)
    if len(message) > limits.MESSAGE_CHARS_MAX:
        raise PayloadTooLarge(
            f"message has {len(message)} characters, at most {limits.MESSAGE_CHARS_MAX} are allowed: shorten it",
            field=field,
        )
    fault = limits.text_fault(message)
    if fault:
        raise InvalidRequest(f"message is not storable: {fault}", field=field)


def validate_id(field: str, value: str | None, cure: str) -> None:
    """Refuse what may not name a session or a user; `cure` says what to send instead.

    Raises
    ------
    InvalidRequest
    """
    if value is not None and not limits.is_id(value):
        raise InvalidRequest(
            f"{field.removeprefix('$.')} must be 1 to {limits.ID_CHARS_MAX} letters, digits, '.', '_', ':' or '-', "
            f"starting with a letter or digit: {cure}",
            field=field,
        )
