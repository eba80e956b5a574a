"""Every bound of the service, its unit last in its name. What an operator may tune is in `config` instead."""

import re

MESSAGE_CHARS_MAX = 100_000
REQUEST_BYTES_MAX = 12 * MESSAGE_CHARS_MAX + 100_000
"""JSON may write a character in 12 bytes, as an escaped pair of surrogates; beside the message there is little."""

SESSION_MESSAGES_MAX = 100
SESSION_TOKENS_MAX = 100_000
SESSION_BYTES_MAX = 1_000_000
SESSION_TTL_SECONDS = 24 * 3600
SESSION_IDLE_SECONDS = 900
SESSION_WAITING_MAX = 16
"""Turns that wait for one session, which takes one at a time."""

SESSIONS_BEHIND_MAX = 10_000
TURN_NUMBER_MAX = 2**31 - 1
"""As large as the conversation's numbers are stored."""

PROFILE_WAITING_MAX = 64
PROFILE_BYTES_MAX = 32_000
PROFILE_ENTRIES_MAX = 64

GIVEN_MESSAGES_MAX = 2_000
"""Of a history that a client sends with every turn (OpenAI routes); tokens and bytes are bounded as a session's."""

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

# live turns and the instances that run them
LEASE_SECONDS = 5.0
CLAIM_SECONDS = 3600
LOG_SECONDS = 60.0
LOGS_MAX = 1_000
LOGS_BYTES_MAX = 32_000_000
RELAY_MESSAGE_BYTES_MAX = 256_000
RELAY_WAITING_BYTES_MAX = 4_000_000

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:\-]{{0,{ID_CHARS_MAX - 1}}}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

TOKENS_COUNTED_MAX = 2**31 - 1
CHARS_PER_TOKEN = 4
"""English text averages about four characters a token; for where only a length is known."""

_TOKENS = re.compile(
    r" ?[A-Za-z]{1,8}"  # a word, or what it is cut into
    r"|[0-9]{1,3}"
    r"|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]"  # kana, Han, Hangul: about one token each
    r"|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]{1,2}"  # Thai, Lao, Burmese, Khmer: no spaces between words
    r"| ?[\u00c0-\u024f]{1,2}"  # accented Latin letters, which cut words
    r"| ?[^\W\d_]{1,3}"  # letters of all other scripts
    r"| ?[!-/:-@\[-`{-~]{1,2}"
    r"|\s+"
    r"|.",
    re.DOTALL,
)


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
    """Estimate the tokens of `text`, at least 1, without a tokenizer's file.

    Counts the pieces that byte-pair tokenizers cut text into: words of up to eight Latin letters, three digits, one
    ideograph and so on. The lengths were chosen against OpenAI's o200k_base on chat questions, Markdown, code and
    23 languages: the estimate is 0.86 to 1.32 of its count there (Vietnamese 1.55), for English text 1.11. Older
    tokenizers (cl100k_base) take the same for English and code, and two to five times as much for scripts that they
    were not made for (Greek, Arabic, Georgian). About 45 us for 1,000 characters.
    """
    return len(_TOKENS.findall(text)) or 1


# one WebSocket
TURNS_PER_CONNECTION_MAX = 8
FRAMES_PER_SECOND_MAX = 100.0
FRAMES_BURST_MAX = 200
INBOX_FRAMES_MAX = 16
INBOX_BYTES_MAX = 64_000
OUTBOX_FRAMES_MAX = 10_000
OUTBOX_BYTES_MAX = 1_000_000
WRITE_BYTES_MAX = OUTBOX_BYTES_MAX + 6 * REPLY_CHARS_MAX + 100_000
"""In a transport: a full outbox and the largest frame (a letter takes six bytes, as in \\u0001), and some pongs."""

UNFINISHED_BYTES_MAX = 64_000_000
"""Of messages that are not complete, in all connections of a process."""

UNFINISHED_BYTES_FREE = 16_000
"""So much of each connection does not count: ordinary messages that are cut on the way."""

READY_TURNS_MAX = 20
READY_BYTES_MAX = 256_000
PING_SECONDS = 20.0
PONG_SECONDS_MAX = 20.0
CLOSE_SECONDS_MAX = 5.0
CLOSE_REASON_BYTES_MAX = 123
"""A control frame holds 125 bytes, of which the code takes two (RFC 6455, section 5.5.1)."""
