"""What a terminal is sent."""

from hypothesis import example, given
from hypothesis import strategies as st

from orchestra.sdk.terminal import cleaned


@given(st.text())
@example("\x1b]0;title\x07\x9b2J\x7f\rok\n\tsaid")
def test_no_control_character_reaches_a_terminal(text):
    left = cleaned(text)
    assert not any((each < " " and each not in "\n\t") or "\x7f" <= each <= "\x9f" for each in left)
    assert [each for each in text if each in left] == list(left)  # and nothing else is taken or put


def test_what_people_write_stays():
    text = "Grüezi 🌊\n\tok - ‘ja’ \u00a0 日本"
    assert cleaned(text) == text
