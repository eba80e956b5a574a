"""What a session's profile may hold, and how it stands in prompts."""

import pytest
from msgspec.structs import replace

from orchestra import limits
from orchestra.chat.profiles import checked
from orchestra.chat.trimming import profile_bytes
from orchestra.errors import InvalidRequest, PayloadTooLarge
from orchestra.model import Profile


def test_a_profile_has_one_form() -> None:
    assert checked(Profile(" \n", (3, 1, 3))) == Profile(None, (1, 3))
    kept = Profile("Be brief.", (1,), {"zone": "UTC", "language": "é"}, {"title": ""})
    assert checked(kept) == kept


def test_its_largest_size_is_kept_and_a_byte_more_is_refused_by_name() -> None:
    largest = Profile("x" * (limits.PROFILE_BYTES_MAX - len('{"system":""}')))
    assert profile_bytes(largest) == limits.PROFILE_BYTES_MAX
    assert checked(largest) == largest
    with pytest.raises(PayloadTooLarge, match="profile has 32001 bytes as JSON, at most 32000"):
        checked(replace(largest, system=(largest.system or "") + "x"))


@pytest.mark.parametrize(
    ("profile", "field", "why"),
    [
        (Profile(system="a\0"), "$.system", "NUL"),
        (Profile(context={"k": "\ud800"}), "$.context", "surrogate"),
        (Profile(metadata={"k\0": "v"}), "$.metadata", "NUL"),
        (Profile(context={"": "v"}), "$.context", "key"),
        (Profile(context={" ": "v"}), "$.context", "key"),
        (Profile(context={"a\nb": "v"}), "$.context", "printable"),
        (Profile(metadata={"x" * 129: "v"}), "$.metadata", "128"),
        (Profile(metadata={str(n): "" for n in range(65)}), "$.metadata", "64 are allowed: remove some"),
        (Profile(pinned=(0,)), "$.pinned", "from 1"),
        (Profile(pinned=(2**31,)), "$.pinned", "numbers of turns"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_field(profile: Profile, field: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refusal:
        checked(profile)
    assert refusal.value.field == field
