"""An LLM endpoint as a queueing model: so many calls at once, the rest wait, and a call's time follows from its tokens.

It implements the port `orchestra.ports.Provider` on a `simpy.Resource`. A call waits for a slot, then reads its prompt
(the time to first token grows with the prompt's tokens), then writes token by token. For speed an answer comes in few
pieces, the first at the time of the first token and the others seconds apart: what bounds the time between tokens must
see that it goes on, and no time in it depends on more. A call that its
caller drops leaves the queue; where it was being served, it frees its slot, or keeps it to its end, as many endpoints
finish what they began (`ProviderModel.abandoned`): work that nobody waits for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from itertools import pairwise
from random import Random
from typing import Annotated, Literal, NamedTuple

import simpy
from msgspec import Struct

from orchestra.errors import ProviderFailed
from orchestra.limits import CHARS_PER_TOKEN
from orchestra.model import Chunk, Delta, Finish, Prompt, Usage
from sim.distributions import Constant, Distribution, Lognormal
from sim.injection import Faults
from sim.journal import ProviderCallEnded, ProviderCallOutlived, ProviderCallStarted, WorldEvent
from sim.loop import SimEnvironment
from sim.provider_faults import failing, slowdown
from sim.quantities import DURATION, SHARE, Spread, Whole

MODEL = "modelled"
ANSWER = "A modelled answer to"
SUBJECT_CHARS = 40
PIECE_S = 5.0


class ProviderModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An LLM endpoint: so many calls at once, the rest queue; a call's time follows from its tokens."""

    capacity: Annotated[int, Whole(1, 100_000), "calls served at once; more wait in a queue"] = 96
    first_token: Annotated[Distribution, Spread(DURATION), "time to the first token of a prompt of no length"] = (
        Lognormal(0.3, 0.9)
    )
    per_prompt_token: Annotated[Distribution, Spread(DURATION), "added to the first token, for each token read"] = (
        Constant(0.0002)
    )
    per_token: Annotated[Distribution, Spread(DURATION), "time for each token written"] = Lognormal(0.015, 0.025)
    failure_rate: Annotated[float, SHARE, "share of calls that fail on an ordinary day"] = 0.0
    abandoned: Annotated[
        Literal["stops", "continues"],
        "whether a call that its caller drops amid service frees its slot, or is finished",
    ] = "stops"


class Tokens(NamedTuple):
    """What a call reads and writes."""

    prompt: int
    completion: int


def tokens_of(prompt: Prompt) -> Tokens:
    """Return what a call without a plan costs: the prompt's estimated tokens, and those of the model's own text."""
    read = sum(_tokens(message.content) for message in prompt.messages)
    read += sum(_tokens(memory.text) for memory in prompt.recalled)
    return Tokens(read, _tokens("".join(_answer(prompt))))


def _tokens(text: str) -> int:
    """Return what a text costs here: by its length alone, which takes no time and is all that a model of one needs."""
    return len(text) // CHARS_PER_TOKEN + 1


def _answer(prompt: Prompt) -> tuple[str, str]:
    return ANSWER, f" {prompt.messages[-1].content[:SUBJECT_CHARS]!r}."


class Piece(NamedTuple):
    """A part of an answer's text, and how long it takes to write."""

    text: str
    seconds: float


def _pieces(text: str, seconds: float) -> list[Piece]:
    """Part what is left of an answer, so that no reader waits longer than `PIECE_S` for a sign of life."""
    count = max(1, math.ceil(seconds / PIECE_S))
    ends = [len(text) * number // count for number in range(count + 1)]
    return [Piece(text[begin:end], seconds / count) for begin, end in pairwise(ends)]


class Plan:
    """Looks up what an answer costs by the message that asks for it.

    A real provider finds a call's cost in what it is asked, so the model does too: messages of a workload begin with
    the arrival's number and so are unique. The alternatives were tried on paper: padding messages to their recorded
    length makes sessions of megabytes; a context variable would be lost between the doors' ends and on real sockets.

    Parameters
    ----------
    otherwise : callable
        Says what messages cost that nobody planned.
    """

    def __init__(self, otherwise: Callable[[Prompt], Tokens] = tokens_of) -> None:
        self._tokens: dict[str, Tokens] = {}
        self._otherwise = otherwise

    def add(self, message: str, tokens: Tokens) -> None:
        """Plan what the answer to `message` costs."""
        self._tokens[message] = tokens

    def __call__(self, prompt: Prompt) -> Tokens:
        """Return what the answer to `prompt` costs."""
        return self._tokens.get(prompt.messages[-1].content) or self._otherwise(prompt)


class ModelledProvider:
    """Answers as an endpoint would that `model` describes.

    Parameters
    ----------
    env : SimEnvironment
    model : ProviderModel
    chance : Random
        Four draws a call, whatever the model and its faults, so that worlds stay comparable.
    faults : Faults
        Asked when a call's service starts.
    cost : callable
        Says what a prompt's answer costs.
    record : callable
        Gets a `ProviderCallStarted` and a `ProviderCallEnded` for each call, and a `ProviderCallOutlived` for one that
        is finished though its caller has gone.
    """

    name = MODEL
    external = True

    def __init__(
        self,
        env: SimEnvironment,
        model: ProviderModel,
        chance: Random,
        faults: Faults,
        *,
        cost: Callable[[Prompt], Tokens] = tokens_of,
        record: Callable[[WorldEvent], None] = lambda event: None,
    ) -> None:
        self._env = env
        self._model = model
        self._chance = chance
        self._faults = faults
        self._cost = cost
        self._record = record
        self._slots = simpy.Resource(env, model.capacity)
        self._calls = 0
        self._outlived = 0

    @property
    def busy(self) -> int:
        """Calls being served to somebody."""
        return int(self._slots.count) - self._outlived

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._slots.queue)

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Stream an answer.

        Raises
        ------
        ProviderFailed
            By chance, or by a fault.
        """
        self._calls += 1
        call, arrived = self._calls, self._env.now
        self._record(ProviderCallStarted(arrived, call, self.queued, int(self._slots.count)))
        tokens = self._cost(prompt)
        served, ends = None, 0.0
        outcome, written = "dropped", 0
        request = self._slots.request()
        try:
            await self._env.wait(request)
            served = self._env.now
            first_s, rest_s, fails = self._draw(tokens)
            ends = served + first_s + (0.0 if fails else rest_s)
            await asyncio.sleep(first_s)
            if fails:
                outcome = "failed"
                raise ProviderFailed("the modelled provider answered with an error: try again")
            first, rest = _answer(prompt)
            yield Delta(first)
            for piece in _pieces(rest, rest_s):
                await asyncio.sleep(piece.seconds)
                yield Delta(piece.text)
            outcome, written = "answered", tokens.completion
        finally:
            now = self._env.now
            queued_s = (now if served is None else served) - arrived
            self._record(ProviderCallEnded(now, call, outcome, queued_s, now - arrived, tokens.prompt, written))
            if self._model.abandoned == "continues" and outcome == "dropped" and ends > now:
                self._record(ProviderCallOutlived(now, call, ends - now))
                self._outlive(request, ends - now)
            else:
                self._leave(request)
        yield Finish("stop", MODEL, Usage(tokens.prompt, tokens.completion))

    def _draw(self, tokens: Tokens) -> tuple[float, float, bool]:
        """Decide, when service starts, how long it takes and whether it fails."""
        model, chance = self._model, self._chance
        first_s = model.first_token.draw(chance) + model.per_prompt_token.draw(chance) * tokens.prompt
        rest_s = model.per_token.draw(chance) * max(0, tokens.completion - 1)
        luck = chance.random()
        factor = slowdown(self._faults)
        # one draw serves both: the fault's share is taken from the calls that fortune has left
        kept = 1.0 - model.failure_rate
        fails = luck < model.failure_rate or failing(self._faults, (luck - model.failure_rate) / kept)
        return first_s * factor, rest_s * factor, fails

    def _leave(self, request: simpy.resources.resource.Request) -> None:
        """Give the slot back, or the place in the queue.

        Not by SimPy's ``with``: that one keeps the slot on `GeneratorExit`, which is how an answer that nobody reads
        to its end is closed.
        """
        if request.triggered:
            self._slots.release(request)
        else:
            request.cancel()

    def _outlive(self, request: simpy.resources.resource.Request, seconds: float) -> None:
        """Keep a dropped call's slot until its time is up."""
        self._outlived += 1

        def free(_: simpy.Event) -> None:
            self._outlived -= 1
            self._slots.release(request)

        self._env.timeout(seconds).callbacks.append(free)
