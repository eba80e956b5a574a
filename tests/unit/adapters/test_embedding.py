"""The hashing embedder recalls by shared words."""

import asyncio
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra import limits
from orchestra.adapters.embedding import HashingEmbedder, terms


def embed(text: str) -> tuple[float, ...]:
    return asyncio.run(HashingEmbedder().embed(text))


def similarity(one: str, other: str) -> float:
    return dot(embed(one), embed(other))


def dot(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("Where do I sail?", "I sail on Lake Geneva"),
        ("Where do I sail?", "Hello, my name is Ada and I sail on Lake Geneva"),
        ("What is my name?", "Hello, my name is Ada and I sail on Lake Geneva"),
        ("Was liegt am Zürichsee?", "Mein Boot liegt am Zu\u0308richsee"),
        ("Where did we go sailing?", "She sailed around Malta"),
    ],
)
def test_what_helps_to_answer_is_near(question, told):
    assert similarity(question, told) > 0.25


@pytest.mark.parametrize(
    "told", ["The invoice of March is overdue", "My dog is called Rex", "Where do you do what I do?", "日本語", ""]
)
def test_what_is_unrelated_is_far(told):
    assert similarity("Where do I sail?", told) < 0.25


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_every_text_has_a_unit_vector(text):
    vector = embed(text)
    assert len(vector) == limits.EMBEDDING_DIMENSIONS
    assert dot(vector, vector) == pytest.approx(1.0)


def test_the_vector_is_the_same_in_every_process():
    program = (
        "import asyncio; from orchestra.adapters.embedding import HashingEmbedder;"
        "print(asyncio.run(HashingEmbedder().embed('I sail')))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        said = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
        )
        assert said.stdout.strip() == str(embed("I sail"))


def test_only_as_much_as_a_memory_keeps_counts():
    assert embed("sail " * 400 + "harbour") == embed("sail " * 400)


def test_terms_are_stems_without_stop_words():
    assert terms("The boats' names, sailing & SAILED; boss") == ["boat", "nam", "sail", "sail", "boss"]
    assert terms("Where do I?") == ["where", "do", "i"]
