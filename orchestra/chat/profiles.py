"""What a session's profile may hold."""

from collections.abc import Iterator

from msgspec.structs import replace

from orchestra import limits
from orchestra.chat.trimming import profile_bytes
from orchestra.errors import InvalidRequest, PayloadTooLarge
from orchestra.model import Profile


def checked(profile: Profile) -> Profile:
    """Return `profile` in its one form: pinned numbers in order, each once; no instruction rather than an empty one.

    Raises
    ------
    InvalidRequest
        Names the field and the cure.
    PayloadTooLarge
        The profile is over `limits.PROFILE_BYTES_MAX`.
    """
    for field, text in _texts(profile):
        if (fault := limits.text_fault(text)) is not None:
            raise InvalidRequest(f"{field} is not storable: {fault}", field=f"$.{field}")
    for field, entries in (("context", profile.context), ("metadata", profile.metadata)):
        _check_entries(field, entries)
    if any(not 1 <= number <= limits.TURN_NUMBER_MAX for number in profile.pinned):
        raise InvalidRequest("pinned holds numbers of turns, which count from 1", field="$.pinned")
    if (size_bytes := profile_bytes(profile)) > limits.PROFILE_BYTES_MAX:
        raise PayloadTooLarge(
            f"the session's profile has {size_bytes} bytes as JSON, at most {limits.PROFILE_BYTES_MAX} are allowed: "
            "shorten system, context or metadata",
            field="$",
        )
    system = profile.system if profile.system and profile.system.strip() else None
    return replace(profile, system=system, pinned=tuple(sorted(frozenset(profile.pinned))))


def _texts(profile: Profile) -> Iterator[tuple[str, str]]:
    yield "system", profile.system or ""
    for field, entries in (("context", profile.context), ("metadata", profile.metadata)):
        for key, text in entries.items():
            yield field, key
            yield field, text


def _check_entries(field: str, entries: dict[str, str]) -> None:
    if len(entries) > limits.PROFILE_ENTRIES_MAX:
        raise InvalidRequest(
            f"{field} has {len(entries)} entries, at most {limits.PROFILE_ENTRIES_MAX} are allowed: remove some",
            field=f"$.{field}",
        )
    for key in entries:
        if not 1 <= len(key) <= limits.ID_CHARS_MAX or not key.isprintable() or not key.strip():
            raise InvalidRequest(
                f"a key of {field} must be 1 to {limits.ID_CHARS_MAX} printable characters", field=f"$.{field}"
            )
