"""A conversation as a document: nothing that is said in it can pass for its structure, and JSON loses nothing."""

import re
from itertools import pairwise

import msgspec
from hypothesis import event, example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from orchestra.chat.transcript import FORMAT, JSON, MARKDOWN, TITLE_CHARS_MAX, Format, Transcript
from orchestra.model import Profile, Recollection, Turn, Usage

PARSER = MarkdownIt("gfm-like", {"linkify": False})  # as GitHub does, with tables and the like
AT = 1_795_429_800.75  # 2026-11-23T10:30:00.75Z

FORGERIES = st.sampled_from(
    [
        *("~~~", "~~~~", "```", "`", "\n", "\r", "\r\n", "\u2028", "    ", "\t", " ", "\\", "*", "$", "> ", "- "),
        *("## 2. Assistant", "# Conversation", "---", "===", "[User]: /x", "&#35;"),
        *("</code></pre>", "<h2>2. User</h2>", "<!--", "-->"),
    ]
)
TEXTS = st.lists(
    FORGERIES | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=12
).map("".join)
TURNS = st.builds(
    Turn,
    id=TEXTS,
    session_id=TEXTS,
    number=st.just(0),
    correlation_id=TEXTS,
    message=TEXTS,
    reply=TEXTS,
    engine=TEXTS,
    model=TEXTS,
    at=st.floats(0, 4e9),
    usage=st.builds(Usage, st.integers(0, 2**31), st.integers(0, 2**31)),
    degraded=st.lists(TEXTS, max_size=2).map(tuple),
    finish_reason=TEXTS,
    recalled=st.lists(st.builds(Recollection, TEXTS, st.floats(-1, 1)), max_size=2).map(tuple),
)
CONVERSATIONS = st.lists(TURNS, max_size=4).map(
    lambda turns: tuple(msgspec.structs.replace(each, number=number) for number, each in enumerate(turns, 1))
)
PROFILES = st.builds(
    Profile,
    system=st.none() | TEXTS,
    context=st.dictionaries(TEXTS, TEXTS, max_size=2),
    metadata=st.dictionaries(st.just("title") | TEXTS, TEXTS, max_size=2),
)


def transcript(profile: Profile = Profile(), turns: tuple[Turn, ...] = ()) -> Transcript:  # noqa: B008 - frozen
    return Transcript(FORMAT, "s-1", AT, AT + 60, AT + 90, len(turns), profile, turns)


def turn(number: int = 1, message: str = "Hi", reply: str = "Hello", **fields: object) -> Turn:
    said = Turn(f"t{number}", "s-1", number, "c-1", message, reply, "unified", "gpt-x", AT + number)
    return msgspec.structs.replace(said, **fields)


def written(document: Format, content: Transcript) -> str:
    turns = document.between.join(document.turn(each) for each in content.turns)
    return (document.begin(content) + turns + document.end(content)).decode()


def as_read(text: str) -> str:
    """Return what a parser makes of the lines of a fenced block (CommonMark 0.31, section 2)."""
    return re.sub("\r\n?", "\n", f"{text}\n")


def test_a_markdown_document_is_this() -> None:
    profile = Profile(
        system="Be kind.", context={"language": "fr", "zone": "CET"}, metadata={"title": "A *trip*\nto Rome: day 1"}
    )
    turns = (turn(1, degraded=("memory",), finish_reason="length"), turn(2, "~~~~ # mine", "```py\nx\n```", model=""))
    assert written(MARKDOWN, transcript(profile, turns)) == (
        "# A \\*trip\\* to Rome\\: day 1\n\n"
        "- Session: `s-1`\n"
        "- Begun: 2026-11-23T10:30:00Z\n"
        "- Last changed: 2026-11-23T10:31:00Z\n"
        "- Exported: 2026-11-23T10:31:30Z\n"
        "- Turns: 2\n\n"
        "## System\n\n~~~\nBe kind.\n~~~\n\n"
        "## Context\n\n~~~\nlanguage: fr\nzone: CET\n~~~\n\n"
        "## 1. User\n\n~~~\nHi\n~~~\n\n"
        "## 1. Assistant\n\n~~~\nHello\n~~~\n\n"
        "*2026-11-23T10:30:01Z · `unified`, `gpt-x` · left out: `memory` · ended by: `length`*\n\n"
        "## 2. User\n\n~~~~~\n~~~~ # mine\n~~~~~\n\n"
        "## 2. Assistant\n\n~~~\n```py\nx\n```\n~~~\n\n"
        "*2026-11-23T10:30:02Z · `unified`*\n\n"
        "---\n\n*End of the conversation: 2 turns.*\n"
    )


def test_a_conversation_without_turns_is_a_document() -> None:
    text = written(MARKDOWN, transcript())
    assert text.startswith("# Conversation\n")
    assert text.endswith("*End of the conversation: 0 turns.*\n")
    assert msgspec.json.decode(written(JSON, transcript()), type=Transcript) == transcript()


def test_a_title_is_one_bounded_line() -> None:
    title = written(MARKDOWN, transcript(Profile(metadata={"title": "ab\n" * 1000}))).partition("\n")[0]
    assert len(title) == len("# ") + TITLE_CHARS_MAX


def test_an_address_in_a_title_is_text() -> None:
    """Where GitHub would make a link of it: it has neither a scheme's colon nor the dot behind ``www``."""
    title = written(
        MARKDOWN, transcript(Profile(metadata={"title": "see https://evil.example, www.evil.example, v1.2"}))
    )
    assert title.startswith("# see https\\://evil.example, www\\.evil.example, v1.2\n")


@given(profile=PROFILES, turns=CONVERSATIONS)
@example(Profile(metadata={"title": "x\n## 1. User"}), (turn(1, "~~~\n## 9. Assistant\n~~~"), turn(2, "</code><h2>")))
def test_nothing_that_is_said_passes_for_the_structure(profile: Profile, turns: tuple[Turn, ...]) -> None:
    tokens = PARSER.parse(written(MARKDOWN, transcript(profile, turns)))
    said = [("System", profile.system)] if profile.system is not None else []
    if profile.context:
        said.append(("Context", "\n".join(f"{key}: {text}" for key, text in profile.context.items())))
    above = len(said)
    for each in turns:
        said += [(f"{each.number}. User", each.message), (f"{each.number}. Assistant", each.reply)]
    assert [token.content for token in tokens if token.type == "fence"] == [as_read(text) for _, text in said]
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings[1:] == [speaker for speaker, _ in said]
    top = [token.tag for token in tokens if token.level == 0 and token.nesting >= 0]
    a_turn = ["h2", "code", "h2", "code", "p"]
    assert top == ["h1", "ul", *a_turn[:2] * above, *a_turn * len(turns), "hr", "p"]
    inline = {child.type for token in tokens for child in token.children or ()}
    assert inline <= {"text", "text_special", "code_inline", "em_open", "em_close"}
    event(f"a text has a fence: {any('~~~' in text for _, text in said)}")


@given(profile=PROFILES, turns=CONVERSATIONS)
def test_json_is_exactly_what_was_said(profile: Profile, turns: tuple[Turn, ...]) -> None:
    content = transcript(profile, turns)
    assert msgspec.json.decode(written(JSON, content), type=Transcript) == content
