"""Every bound of the service, its unit last in its name. What an operator may tune is in `config` instead."""

import re

MESSAGE_CHARS_MAX = 100_000
REQUEST_BYTES_MAX = 1_000_000

SESSION_MESSAGES_MAX = 100
SESSION_TOKENS_MAX = 100_000
SESSION_BYTES_MAX = 1_000_000
SESSION_TTL_SECONDS = 24 * 3600
SESSION_IDLE_SECONDS = 900
PROFILE_BYTES_MAX = 32_000
PROFILE_ENTRIES_MAX = 64

ID_CHARS_MAX = 128
REPLY_CHARS_MAX = 400_000
PROVIDER_EVENT_BYTES_MAX = 1_000_000
PROVIDER_BODY_BYTES_MAX = 4_000_000
PROVIDER_EXCERPT_CHARS_MAX = 300
RETRY_AFTER_SECONDS_MAX = 3600.0
MAINTENANCE_RETRY_SECONDS = 30.0
EMBEDDING_DIMENSIONS = 256
MEMORIES_RECALLED_MAX = 5
MEMORY_CHARS_MAX = 2_000
ANSWERS_MAX = 1_000
ANSWERS_CHARS_MAX = 4_000_000
ANSWER_SECONDS_MAX = 3600.0

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:\-]{{0,{ID_CHARS_MAX - 1}}}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

TOKENS_COUNTED_MAX = 2**31 - 1
CHARS_PER_TOKEN = 4
"""English text averages about four characters a token in the tokenizers of the large providers; an estimate that needs
no tokenizer file, used only for bounds and where a provider does not count."""


def is_id(text: str) -> bool:
    """Tell whether `text` may name a session, a user or a request: safe in a URL, a header, a key and a log line."""
    return _ID.fullmatch(text) is not None


def text_fault(text: str) -> str | None:
    """Say what makes `text` unstorable, or None where nothing does."""
    if "\0" in text:
        return "it contains a NUL character (U+0000), which no store can hold: remove it"
    if _LONE_SURROGATE.search(text):
        return "it contains a lone surrogate (U+D800 to U+DFFF), which is no character: send valid Unicode"
    return None


def storable(text: str) -> str:
    """Return `text` with what no store can hold replaced by U+FFFD: for text that is not the user's to mend."""
    return text if text_fault(text) is None else _LONE_SURROGATE.sub("\ufffd", text.replace("\0", "\ufffd"))


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of `text`, at least 1."""
    return len(text) // CHARS_PER_TOKEN + 1
