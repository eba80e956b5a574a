"""A conversation as a document: JSON for programs, Markdown for people.

A document is made piece by piece, `begin`, then every `turn`, then `end`, so that a long one fills no memory. What was
said stands in the Markdown verbatim and between fences that are longer than any in it: nothing that anybody says can
open a heading, close a fence or become HTML of the document (CommonMark 0.31, section 4.5). A document without its
`end` was cut off, and shows it: such JSON does not parse, and such Markdown has no last line that says so.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
from msgspec import Struct

from orchestra.model import Profile, Turn

FORMAT = "ai-orchestra.conversation/1"
TITLE = "title"
"""Name in the session's metadata of what the Markdown document is called."""

TITLE_CHARS_MAX = 200


class Transcript(Struct, frozen=True):
    """A conversation with all its turns; times are Unix seconds.

    Parameters
    ----------
    format : str
        What document this is, and its version: `FORMAT`.
    session_id : str
    created_at, updated_at, exported_at : float
    version : int
        Number of the last turn.
    profile : Profile
    turns : tuple of Turn
        Lowest number first.
    """

    format: str
    session_id: str
    created_at: float
    updated_at: float
    exported_at: float
    version: int
    profile: Profile
    turns: tuple[Turn, ...] = ()


class Format(NamedTuple):
    """How a document is written.

    Parameters
    ----------
    content_type, suffix : str
        Of the whole document, with its charset (of which JSON has none: RFC 8259, section 11), and of a file's name.
    begin, end : callable
        What comes before and after the turns of a transcript, whose own `turns` are not looked at.
    turn : callable
        One turn.
    between : bytes
        What stands between two turns.
    """

    content_type: str
    suffix: str
    begin: Callable[[Transcript], bytes]
    turn: Callable[[Turn], bytes]
    between: bytes
    end: Callable[[Transcript], bytes]

    @property
    def media_type(self) -> str:
        """The content type without parameters."""
        return self.content_type.partition(";")[0]


def _json_begin(transcript: Transcript) -> bytes:
    """Return the document up to its first turn: `turns` is the last field, and empty."""
    return msgspec.json.encode(msgspec.structs.replace(transcript, turns=())).removesuffix(b"]}")


def _json_end(_: Transcript) -> bytes:
    return b"]}"


def _markdown_begin(transcript: Transcript) -> bytes:
    title = transcript.profile.metadata.get(TITLE, "").strip()
    lines = [
        f"# {_escaped(title) or 'Conversation'}",
        "",
        f"- Session: `{transcript.session_id}`",
        f"- Begun: {_iso(transcript.created_at)}",
        f"- Last changed: {_iso(transcript.updated_at)}",
        f"- Exported: {_iso(transcript.exported_at)}",
        f"- Turns: {transcript.version}",
    ]
    if transcript.profile.system is not None:
        lines += ["", "## System", "", _fenced(transcript.profile.system)]
    if transcript.profile.context:
        said = "\n".join(f"{key}: {text}" for key, text in transcript.profile.context.items())
        lines += ["", "## Context", "", _fenced(said)]
    return _text(lines)


def _markdown_turn(turn: Turn) -> bytes:
    lines = [
        "",
        f"## {turn.number}. User",
        "",
        _fenced(turn.message),
        "",
        f"## {turn.number}. Assistant",
        "",
        _fenced(turn.reply),
        "",
        f"*{_small(turn)}*",
    ]
    return _text(lines)


def _markdown_end(transcript: Transcript) -> bytes:
    count = f"{transcript.version} turn{'' if transcript.version == 1 else 's'}"
    return _text(["", "---", "", f"*End of the conversation: {count}.*"])


JSON = Format("application/json", "json", _json_begin, msgspec.json.encode, b",", _json_end)
MARKDOWN = Format("text/markdown; charset=UTF-8", "md", _markdown_begin, _markdown_turn, b"", _markdown_end)
FORMATS = {"json": JSON, "markdown": MARKDOWN}


def _small(turn: Turn) -> str:
    """Say when and by whom the turn was answered, and what it had to do without."""
    parts = [_iso(turn.at), ", ".join(_code(each) for each in (turn.engine, turn.model) if each)]
    if turn.degraded:
        parts.append(f"left out: {', '.join(map(_code, turn.degraded))}")
    if turn.finish_reason != "stop":
        parts.append(f"ended by: {_code(turn.finish_reason)}")
    return " · ".join(parts)


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _fenced(text: str) -> str:
    """Return `text` as a code block whose fences are longer than any run of tildes in it."""
    fence = "~" * max(3, _longest_run("~", text) + 1)
    return f"{fence}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Return `text`, on one line, as a code span, which cannot be empty."""
    line = " ".join(text.split()) or "-"
    ticks = "`" * (_longest_run("`", line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


_MARKUP = re.compile(r"[\\`*_{}\[\]<>#&~|$@:]|(?<=[wW]{3})\.")
"""Colons and ``www.`` make links where a bare address is one (GitHub Flavored Markdown 0.29, section 6.9)."""


def _escaped(text: str) -> str:
    """Return `text`, on one line, with all that would be markup within a line as what it is."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split())[:TITLE_CHARS_MAX])


def _longest_run(character: str, text: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(character)}+", text)), default=0)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
