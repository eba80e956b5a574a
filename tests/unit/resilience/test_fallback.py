"""Fallbacks: order, who takes what, and that nothing falls back once the first item is out."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from orchestra.errors import (
    BreakerOpen,
    BulkheadFull,
    ConfigurationError,
    FeatureOff,
    InvalidRequest,
    NotFound,
    OrchestraError,
    Overloaded,
    ProviderFailed,
    ProviderOverloaded,
    ProviderRefused,
)
from orchestra.resilience.fallback import Fallback, failed, refused, with_fallbacks

Stream = Callable[[], AsyncGenerator[str, None]]


def saying(*items: str, then: BaseException | None = None, closed: list[str] | None = None) -> Stream:
    """Make a stream that says `items` and ends by `then`; its end is noted in `closed`."""

    async def stream() -> AsyncGenerator[str, None]:
        try:
            for item in items:
                yield item
            if then is not None:
                raise then
        finally:
            if closed is not None:
                closed.append("closed")

    return stream


def heard(primary: Stream, *fallbacks: Fallback[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the items, and who was told to answer because of which error; an error that comes out is the last item."""
    falls: list[tuple[str, str]] = []

    async def listen() -> list[str]:
        items = []
        stream = with_fallbacks(
            primary,
            fallbacks,
            announce=lambda name: f"<{name}>",
            on_fall=lambda name, error: falls.append((name, str(error))),
        )
        try:
            async for item in stream:
                items.append(item)
        except Exception as error:
            items.append(f"{type(error).__name__}: {error}")
        return items

    return asyncio.run(listen()), falls


BROKEN = saying(then=ProviderFailed("broken"))


def test_who_answers_needs_no_fallback() -> None:
    assert heard(saying("a", "b"), Fallback("spare", saying("x"))) == (["a", "b"], [])


def test_an_answer_without_items_is_an_answer() -> None:
    assert heard(saying(), Fallback("spare", saying("x"))) == ([], [])


def test_the_first_that_can_answers_and_says_so() -> None:
    miss = Fallback("cache", saying(then=NotFound("no such question")))
    assert heard(BROKEN, miss, Fallback("spare", saying("x", "y")), Fallback("last", saying("z"))) == (
        ["<spare>", "x", "y"],
        [("spare", "broken")],
    )


def test_where_nobody_can_the_first_error_comes_out() -> None:
    miss = Fallback("cache", saying(then=NotFound("no such question")))
    assert heard(BROKEN, miss) == (["ProviderFailed: broken"], [])
    assert heard(BROKEN) == (["ProviderFailed: broken"], [])


def test_a_fallback_that_says_nothing_is_passed_over() -> None:
    assert heard(BROKEN, Fallback("mute", saying()), Fallback("spare", saying("x")))[0] == ["<spare>", "x"]


def test_a_fallback_only_takes_what_it_stands_in_for() -> None:
    apology = Fallback("apology", saying("sorry"), refused)
    assert heard(BROKEN, apology)[0] == ["ProviderFailed: broken"]
    assert heard(saying(then=BreakerOpen("open")), apology)[0] == ["<apology>", "sorry"]


@pytest.mark.parametrize("error", [InvalidRequest("x"), ValueError("x"), OrchestraError("x")])
def test_a_wrong_request_and_a_defect_fall_on_nobody(error: Exception) -> None:
    assert heard(saying(then=error), Fallback("spare", saying("x")))[0] == [f"{type(error).__name__}: x"]


def test_after_the_first_item_nobody_else_answers() -> None:
    assert heard(saying("a", then=ProviderFailed("torn")), Fallback("spare", saying("x"))) == (
        ["a", "ProviderFailed: torn"],
        [],
    )
    torn = Fallback("spare", saying("x", then=ProviderFailed("torn too")))
    assert heard(BROKEN, torn, Fallback("last", saying("z")))[0] == ["<spare>", "x", "ProviderFailed: torn too"]


def test_a_defect_of_a_fallback_is_not_hidden() -> None:
    assert heard(BROKEN, Fallback("spare", saying(then=ValueError("bug"))), Fallback("last", saying("z")))[0] == [
        "ValueError: bug"
    ]


def test_cancellation_passes_through() -> None:
    async def story() -> None:
        stream = with_fallbacks(
            saying(then=asyncio.CancelledError()),
            [Fallback("spare", saying("x"))],
            announce=str,
            on_fall=lambda name, error: None,
        )
        with pytest.raises(asyncio.CancelledError):
            await anext(stream)

    asyncio.run(story())


def test_closing_early_closes_whoever_answers() -> None:
    async def story(primary: Stream, items: int) -> None:
        stream = with_fallbacks(
            primary, [Fallback("spare", saying("x", closed=closed))], announce=str, on_fall=lambda name, error: None
        )
        for _ in range(items):
            await anext(stream)
        await stream.aclose()

    closed: list[str] = []
    asyncio.run(story(saying("a", "b", closed=closed), 1))
    assert closed == ["closed"]
    asyncio.run(story(BROKEN, 2))
    assert closed == ["closed", "closed"]


def test_what_counts_as_failed_and_as_refused() -> None:
    for error in (BreakerOpen("x"), BulkheadFull("x"), Overloaded("x"), FeatureOff("x")):
        assert failed(error), error
        assert refused(error), error
    for error in (ProviderFailed("x"), ProviderRefused("x"), ProviderOverloaded("x"), ConfigurationError("x")):
        assert failed(error), error
        assert not refused(error), error
    for other in (NotFound("x"), OrchestraError("x"), ValueError("x")):
        assert not failed(other), other
