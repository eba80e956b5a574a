"""The built-in embedder: feature hashing of words and letter trigrams; no model file, the same in every process."""

import math
import re
import unicodedata
from functools import lru_cache
from zlib import crc32

from orchestra import limits

TRIGRAM_WEIGHT = 0.3
"""A trigram's weight beside a whole word's 1: brings `sailor` near `sail`, and too little to tie unrelated words."""

TERMS_REMEMBERED_MAX = 10_000
"""Words and terms of which stems and hashes are kept: conversations use the same few thousand again and again."""

TEXTS_REMEMBERED_MAX = 1_000
"""Texts whose vectors are kept: a turn's message is embedded to recall and again to be remembered, and many turns run
at once. A vector of a usual message takes about 3 kB: its zeros are one and the same object."""

_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS = frozenset(
    """a about all also am an and any are as at be been but by can could d did do does don for from get had has have he
    hello her hi him his how i if in into is it its just ll m me my no not of on or our re s she so some t than that the
    their them then there these they this those to too up us ve was we were what when where which who whom whose why
    will with would yes you your""".split()  # noqa: SIM905
)
_EMPTY = (1.0, *(0.0 for _ in range(limits.EMBEDDING_DIMENSIONS - 1)))


def terms(text: str) -> list[str]:
    """Return the stems of the words of `text` that carry meaning, in order; all its words where none does."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [_stem(word) for word in words if word not in _STOP_WORDS] or words


@lru_cache(TERMS_REMEMBERED_MAX)
def _stem(word: str) -> str:
    """Cut the commonest English endings, so that `sails`, `sailed` and `sailing` meet `sail`."""
    for ending in ("s", "ing", "ed", "e"):
        if len(word) - len(ending) >= 3 and word.endswith(ending) and not word.endswith("ss"):
            word = word[: -len(ending)]
    return word


class HashingEmbedder:
    """Embeds by the words a text shares with another, not by their meaning: honest, cheap, and enough to recall by.

    Each word and each letter trigram adds its weight to the component that its hash names, with the sign that the
    hash gives, so that collisions cancel on average. Only the first `limits.MEMORY_CHARS_MAX` characters count, as in
    a memory.

    Source: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
    """

    async def embed(self, text: str) -> tuple[float, ...]:
        """Return the unit vector of `text`, of `limits.EMBEDDING_DIMENSIONS` components."""
        return _embedded(text[: limits.MEMORY_CHARS_MAX])


@lru_cache(TEXTS_REMEMBERED_MAX)
def _embedded(text: str) -> tuple[float, ...]:
    sums: dict[int, float] = {}  # of the components that a term adds to, which are few
    for term in terms(text):
        for component, weight in _weights(term):
            sums[component] = sums.get(component, 0.0) + weight
    norm = math.hypot(*sums.values())
    if not norm:  # nothing to hash (or, in theory, all of it cancelled), and yet every store wants a unit vector
        return _EMPTY
    vector = [0.0] * limits.EMBEDDING_DIMENSIONS
    for component, weight in sums.items():
        vector[component] = weight / norm
    return tuple(vector)


@lru_cache(TERMS_REMEMBERED_MAX)
def _weights(term: str) -> tuple[tuple[int, float], ...]:
    """Return what a term adds to which components: itself, and its trigrams between marks of its ends."""
    framed = f"^{term}$"
    trigrams = [framed[start : start + 3] for start in range(len(framed) - 2)]
    return (_weight(term, 1.0), *[_weight(trigram, TRIGRAM_WEIGHT) for trigram in trigrams])


def _weight(feature: str, weight: float) -> tuple[int, float]:
    hashed = crc32(feature.encode("utf-8", "surrogatepass"))
    return hashed % limits.EMBEDDING_DIMENSIONS, weight if hashed & 0x8000_0000 else -weight
