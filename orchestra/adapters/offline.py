"""The built-in offline model: it quotes back what it was told and says that it does no more. No key, no network."""

import asyncio
import re
from collections.abc import AsyncGenerator

from orchestra import limits
from orchestra.adapters.embedding import terms
from orchestra.model import Chunk, Delta, Finish, Prompt, Usage

MODEL = "offline"
DISCLAIMER = "(Offline model: I only quote what I was told. Configure a provider for real answers.)"
QUOTE_CHARS_MAX = 300
WORDS_PER_STEP = 8

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_NAME = re.compile(r"\bmy name is ([^\W\d_][\w'-]*)", re.IGNORECASE)
_QUESTION = re.compile(r"(?:what|who|whose|where|when|why|which|how|do|does|did|is|are|was|can|could)\b", re.IGNORECASE)
_WORD = re.compile(r"\s*\S+\s*")


class OfflineProvider:
    """Answers a question with the best matching sentence of the history or of what was recalled; notes all else.

    The same prompt always gives the same answer.
    """

    name = "offline"
    external = False

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Stream the answer word by word, letting others run now and then."""
        text = f"{_answer(prompt)} {DISCLAIMER}"
        for number, word in enumerate(_WORD.findall(text)):
            if number % WORDS_PER_STEP == 0:
                await asyncio.sleep(0)
            yield Delta(word)
        asked = [each.content for each in prompt.messages] + [each.text for each in prompt.recalled]
        usage = Usage(sum(map(limits.estimated_tokens, asked)), limits.estimated_tokens(text))
        yield Finish("stop", MODEL, usage)


def _answer(prompt: Prompt) -> str:
    message = prompt.messages[-1].content
    if _asks(message):
        told = [each.content for each in prompt.messages[:-1] if each.role == "user"]
        if found := _best_sentence(message, told[::-1]):
            return f"You told me: {_quoted(found)}."
        if found := _best_sentence(message, [each.text for each in prompt.recalled]):
            return f"From an earlier conversation I recall: {_quoted(found)}."
        return "I do not know: nothing you have told me speaks of that."
    if name := _NAME.search(message):
        return f"Hello {name.group(1)}. I have noted: {_quoted(message)}."
    return f"I have noted: {_quoted(message)}."


def _asks(text: str) -> bool:
    return text.rstrip().endswith("?") or _QUESTION.match(text.lstrip()) is not None


def _best_sentence(question: str, texts: list[str]) -> str:
    """Return the sentence that shares most terms with `question`, of equals the first; empty if none shares any."""
    wanted = set(terms(question[: limits.MEMORY_CHARS_MAX]))
    best, most = "", 0
    for text in texts:
        for sentence in _SENTENCE_END.split(text[: limits.MEMORY_CHARS_MAX]):
            shared = len(wanted.intersection(terms(sentence)))
            if shared > most and not _asks(sentence):
                best, most = sentence, shared
    return best


def _quoted(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return f'"{text}"' if len(text) <= QUOTE_CHARS_MAX else f'"{text[:QUOTE_CHARS_MAX]}…"'
