"""Fallbacks: who answers where a dependency does not, in order, and never once the first item is out.

contract: `Fallback`;  behaviour: `with_fallbacks`
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeGuard, TypeVar

from orchestra.errors import BreakerOpen, FeatureOff, OrchestraError, Overloaded

T = TypeVar("T")

REFUSALS = (BreakerOpen, Overloaded, FeatureOff)
"""Errors of calls that were not made, to protect the service or the dependency: nothing was tried, nothing failed."""


def failed(error: Exception) -> bool:
    """Tell whether `error` is the fault of the dependency, not of the request and not a defect: another may do better.

    What the dependency refuses for its own reasons (a wrong key, say) counts too.
    """
    return _foreseen(error) and error.status >= 500


def _foreseen(error: Exception) -> TypeGuard[OrchestraError]:
    return isinstance(error, OrchestraError) and type(error) is not OrchestraError


def refused(error: Exception) -> bool:
    """Tell whether the call was refused before it was made."""
    return isinstance(error, REFUSALS)


@dataclass(frozen=True)
class Fallback(Generic[T]):
    """One that can stand in.

    Parameters
    ----------
    name : str
    stream : callable
        Opens its answer. An error before the first item passes the turn to the next fallback.
    takes : callable
        Tells whether it stands in for a dependency that ended with this error.
    """

    name: str
    stream: Callable[[], AsyncGenerator[T, None]]
    takes: Callable[[Exception], bool] = failed


async def with_fallbacks(
    primary: Callable[[], AsyncGenerator[T, None]],
    fallbacks: Iterable[Fallback[T]],
    *,
    announce: Callable[[str], T],
    on_fall: Callable[[str, Exception], None],
) -> AsyncGenerator[T, None]:
    """Stream what `primary` says, or else what the first fallback says that can.

    Parameters
    ----------
    primary : callable
        Opens the answer of the dependency itself.
    fallbacks : iterable of Fallback
        Looked at only where `primary` fails.
    announce : callable
        Makes the item that tells which fallback answers; it comes before that one's own items.
    on_fall : callable
        Told of the fallback that answers, and of the error that `primary` ended with.

    Raises
    ------
    Exception
        The error of `primary`, where no fallback could help; or any error after the first item, by whomever.
    """
    begun = False
    try:
        async with aclosing(primary()) as items:
            async for item in items:
                begun = True
                yield item
        return
    except Exception as error:
        if begun or not failed(error):
            raise
        cause = error
    for fallback in (each for each in fallbacks if each.takes(cause)):
        try:
            async with aclosing(fallback.stream()) as items:
                async for item in items:
                    if not begun:
                        begun = True
                        on_fall(fallback.name, cause)
                        yield announce(fallback.name)
                    yield item
        except Exception as error:
            if begun or not _foreseen(error):
                raise
        if begun:
            return
    raise cause
