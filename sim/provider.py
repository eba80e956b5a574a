"""An LLM endpoint as a queueing model: so many calls at once, the rest wait, and a call's time follows from its tokens.

It implements the port `orchestra.ports.Provider` on a `simpy.Resource`. A call waits for a slot, then reads its prompt
(the time to first token grows with the prompt's tokens), then writes token by token. For speed an answer comes in few
pieces, the first at the time of the first token and the others seconds apart: what bounds the time between tokens must
see that it goes on, and no time in it depends on more. A call that its
caller drops leaves the queue; where it was being served, it frees its slot, or keeps it to its end, as many endpoints
finish what they began (`ProviderModel.abandoned`): work that nobody waits for.

What a plain queue has not stands beside it and costs nothing where a model leaves it out: `sim.batching`,
`sim.rate_limits`, `sim.cold_start`, `sim.provider_errors`, `sim.provider_faults`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from itertools import count, pairwise
from random import Random
from typing import Annotated, Literal, NamedTuple

import simpy
from msgspec import Struct
from simpy.resources.resource import Request

from orchestra.errors import OrchestraError
from orchestra.limits import CHARS_PER_TOKEN
from orchestra.model import Chunk, Delta, Finish, Prompt, Usage
from sim import provider_errors as errors
from sim.batching import Batch
from sim.cold_start import ColdStart, Warmth
from sim.distributions import Constant, Distribution, Lognormal
from sim.injection import Faults, Injection
from sim.journal import ProviderCallEnded, ProviderCallOutlived, ProviderCallStarted, WorldEvent
from sim.loop import SimEnvironment
from sim.provider_errors import ErrorMix, Luck
from sim.provider_faults import (
    Asked,
    Ending,
    ProviderName,
    ProviderRateLimited,
    ending,
    ending_of,
    slowdown,
    told_to_wait,
    unreachable,
)
from sim.quantities import COUNT, DURATION, SHARE, Spread, Whole
from sim.rate_limits import RateLimiter, RateLimits

MODEL = "modelled"
ANSWER = "A modelled answer to"
SUBJECT_CHARS = 40
PIECE_S = 5.0
SALT_BITS = 32


class Price(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a thousand tokens cost, in whatever money all prices of the scenario are in."""

    prompt: Annotated[float, COUNT, "a thousand tokens read"] = 0.0
    completion: Annotated[float, COUNT, "a thousand tokens written"] = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what a call costs that read and wrote so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1000


class ProviderModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An LLM endpoint: so many calls at once, the rest queue; a call's time follows from its tokens."""

    capacity: Annotated[int, Whole(1, 100_000), "calls served at once; more wait in a queue"] = 96
    queue_max: Annotated[
        int | None, Whole(0, 1_000_000), "calls that may wait; more are refused with 503. No bound if left out"
    ] = None
    first_token: Annotated[Distribution, Spread(DURATION), "time to the first token of a prompt of no length"] = (
        Lognormal(0.3, 0.9)
    )
    per_prompt_token: Annotated[Distribution, Spread(DURATION), "added to the first token, for each token read"] = (
        Constant(0.0002)
    )
    per_token: Annotated[Distribution, Spread(DURATION), "time for each token written"] = Lognormal(0.015, 0.025)
    batch_slowdown: Annotated[
        float, COUNT, "how many times longer a call takes among `capacity` calls than alone; 1: load slows nobody"
    ] = 1.0
    rate_limits: RateLimits | None = None
    cold_start: ColdStart | None = None
    failure_rate: Annotated[float, SHARE, "share of calls that fail on an ordinary day"] = 0.0
    errors: Annotated[ErrorMix | None, "what else goes wrong on an ordinary day"] = None
    abandoned: Annotated[
        Literal["stops", "continues"],
        "whether a call that its caller drops amid service frees its slot, or is finished",
    ] = "stops"
    price: Price | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if not 1 <= self.batch_slowdown <= self.capacity * 100:
            yield "batch_slowdown", f"{self.batch_slowdown:g} is out of bounds: write 1 or more, such as 4"
        if self.batch_slowdown > 1 and self.capacity == 1:
            yield "batch_slowdown", "a capacity of 1 has no batch: raise it, or leave this out"


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
    if seconds <= PIECE_S:
        return [Piece(text, seconds)]
    pieces = math.ceil(seconds / PIECE_S)
    ends = [len(text) * number // pieces for number in range(pieces + 1)]
    return [Piece(text[begin:end], seconds / pieces) for begin, end in pairwise(ends)]


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

    def forget(self, message: str) -> None:
        """Plan no more what the answer to `message` costs: nobody will ask for it again."""
        self._tokens.pop(message, None)

    def __call__(self, prompt: Prompt) -> Tokens:
        """Return what the answer to `prompt` costs."""
        return self._tokens.get(prompt.messages[-1].content) or self._otherwise(prompt)


class Drawn(NamedTuple):
    """All that chance has to say about a call."""

    first_s: float
    rest_s: float
    luck: float
    lot: float


class Service(NamedTuple):
    """How long a call takes to its first token, and from there to its end.

    A call with an `error` ends by it, when it has given the `share` of its answer: before the first token where 0.
    """

    first_s: float
    rest_s: float
    share: float
    error: OrchestraError | None


class ModelledProvider:
    """Answers as an endpoint would that `model` describes.

    Parameters
    ----------
    env : SimEnvironment
    model : ProviderModel
    chance : Random
        Five draws a call, when it arrives, whatever the model and its faults, so that worlds stay comparable.
    faults : Faults
        Asked when a call arrives and when its service starts.
    cost : callable
        Says what a prompt's answer costs.
    record : callable
        Gets a `ProviderCallStarted` and a `ProviderCallEnded` for each call, and a `ProviderCallOutlived` for one that
        is finished though its caller has gone.
    which : str
        The name by which faults and journals call it.
    numbers : iterator of int
        Numbers the calls; several providers of one world share it.
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
        which: ProviderName = "main",
        numbers: Iterator[int] | None = None,
    ) -> None:
        self._env = env
        self._model = model
        self._chance = chance
        self._salt = chance.getrandbits(SALT_BITS)
        self._faults = faults
        self._cost = cost
        self._record = record
        self._which: ProviderName = which
        self._numbers = numbers or count(1)
        self._slots = simpy.Resource(env, model.capacity)
        self._outlived = 0
        self._batch = Batch(env.loop, model.capacity, model.batch_slowdown) if model.batch_slowdown > 1 else None
        self._warmth = Warmth(model.cold_start) if model.cold_start else None
        self._limiter = RateLimiter(model.rate_limits) if model.rate_limits else None
        self._limited: dict[Injection[ProviderRateLimited], RateLimiter] = {}
        # work is done when so many seconds have passed, where nobody slows anybody down
        self._work: Callable[[float], Awaitable[None]] = asyncio.sleep if self._batch is None else self._batch.finished
        self._even = self._batch is None and self._warmth is None
        self._price = model.price
        self._plain = model.queue_max is None and model.rate_limits is None and model.errors is None

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
        ProviderFailed, ProviderOverloaded, DeadlineExceeded
            By chance, by a fault, or because the model's limits are reached; each as the adapter of a real one would.
        """
        env, slots = self._env, self._slots
        call, arrived = next(self._numbers), env.now
        self._record(ProviderCallStarted(arrived, call, len(slots.queue), slots.count))
        tokens = self._cost(prompt)
        drawn = self._draw(tokens)
        outcome, written = "dropped", 0
        request, served, ends = None, None, -math.inf
        asked = None if self._plain and self._faults.calm else self._asked(prompt, drawn)
        try:
            if asked is not None and (refusal := await self._refusal(asked, tokens)):
                outcome = "refused"
                raise refusal
            request = slots.request()
            if not request.triggered:
                await env.wait(request)
            served = env.now
            if not self._even:
                await self._enter(served)
            if asked is None and not self._faults.calm:
                asked = self._asked(prompt, drawn)
            first_s, rest_s, share, error = self._service(drawn, asked)
            ends = self._worked() + first_s + rest_s
            await self._work(first_s)
            if error is not None and share == 0.0:
                outcome = "failed"
                raise error
            first, rest = _answer(prompt)
            written = min(1, tokens.completion)
            yield Delta(first)
            pieces = _pieces(rest, rest_s)
            for number, piece in enumerate(pieces, 1):
                await self._work(piece.seconds)
                if error is not None and number == len(pieces):
                    outcome = "failed"
                    raise error
                written = int(tokens.completion * share * number / len(pieces))
                yield Delta(piece.text)
            outcome = "answered"
        finally:
            now = env.now
            left_s = ends - self._worked() if outcome == "dropped" and self._model.abandoned == "continues" else 0.0
            written = written if left_s <= 0.0 else tokens.completion
            read, queued_s = (0, now - arrived) if served is None else (tokens.prompt, served - arrived)
            spent = read, written, self._which, self._price.of(read, written) if self._price else 0.0
            self._record(ProviderCallEnded(now, call, outcome, queued_s, now - arrived, *spent))
            if request is not None:
                self._part(request, call, served is not None, left_s)
        yield Finish("stop", MODEL, Usage(tokens.prompt, tokens.completion))

    def _draw(self, tokens: Tokens) -> Drawn:
        """Draw all that chance has to say about a call, when it arrives."""
        model, chance = self._model, self._chance
        first_s = model.first_token.draw(chance) + model.per_prompt_token.draw(chance) * tokens.prompt
        rest_s = model.per_token.draw(chance) * max(0, tokens.completion - 1)
        return Drawn(first_s, rest_s, chance.random(), chance.random())

    def _asked(self, prompt: Prompt, drawn: Drawn) -> Asked:
        """Return what faults look at: a conversation is known by its first message, which is unlike any other's."""
        conversation = f"{self._salt} {prompt.messages[0].content}"
        return Asked(self._which, conversation, Luck(drawn.luck), Luck(drawn.lot))

    async def _refusal(self, asked: Asked, tokens: Tokens) -> OrchestraError | None:
        """Return why a call that arrives now is turned away, if it is; after a long silence where nobody answers."""
        model, now, total = self._model, self._env.now, tokens.prompt + tokens.completion
        how = unreachable(self._faults, asked, now)
        if how == "refuses":
            return errors.unreachable()
        if how == "hangs":
            await asyncio.sleep(errors.SILENCE_S_MAX)
            return errors.silent()
        if model.errors is not None and asked.luck.falls(model.errors.rate_limited):
            return errors.rate_limited(model.errors.retry_after)
        refused, wait_s = told_to_wait(self._faults, asked, now, total, self._limited)
        if refused:
            return errors.rate_limited(wait_s)
        if self._limiter is not None and (wait_s := self._limiter.admit(now, total)):
            return errors.rate_limited(wait_s)
        if model.queue_max is not None and self._slots.count == model.capacity and self.queued >= model.queue_max:
            return errors.full()
        return None

    def _service(self, drawn: Drawn, asked: Asked | None) -> Service:
        """Decide, when service starts, how long it takes and how it ends."""
        model, end = self._model, "answered"
        first_s, rest_s = drawn.first_s, drawn.rest_s
        if asked is None:
            if drawn.luck < model.failure_rate:
                end = "failed"
        else:
            factor = slowdown(self._faults, asked)
            first_s, rest_s = first_s * factor, rest_s * factor
            end = self._end(asked)
        if end == "answered":
            return Service(first_s, rest_s, 1.0, None)
        if end == "midstream":
            share = asked.luck.left if asked is not None else 0.0  # which is uniform, whatever it has decided
            return Service(first_s, rest_s * share, share, errors.broken_off())
        if end == "hangs":
            return Service(errors.SILENCE_S_MAX, -math.inf, 0.0, errors.silent())  # its end is no work left over
        return Service(first_s, 0.0, 0.0, errors.failed() if end == "failed" else errors.garbled())

    def _end(self, asked: Asked) -> Ending:
        if asked.luck.falls(self._model.failure_rate):
            return "failed"
        usual = self._model.errors
        if usual is not None and (end := ending_of(usual, asked.luck)) != "answered":
            return end
        return ending(self._faults, asked)

    def _worked(self) -> float:
        """Return the time, as work counts it."""
        return self._env.now if self._batch is None else self._batch.done

    async def _enter(self, now: float) -> None:
        """Take a place among those being served, once the endpoint is ready."""
        if self._batch is not None:
            self._batch.join()
        if self._warmth is not None and (cold_s := self._warmth.wait(now)):
            await asyncio.sleep(cold_s)

    def _part(self, request: Request, call: int, served: bool, left_s: float) -> None:
        """Let a call go, or its caller alone, where the provider goes on with the work that is left."""
        if left_s > 0.0:
            self._outlive(request, call, left_s)
        else:
            self._leave(request, served)

    def _leave(self, request: Request, served: bool) -> None:
        """Give the slot back, or the place in the queue.

        Not by SimPy's ``with``: that one keeps the slot on `GeneratorExit`, which is how an answer that nobody reads
        to its end is closed.
        """
        if not request.triggered:
            request.cancel()
            return
        if served and self._batch is not None:
            self._batch.leave()
        self._slots.release(request)
        if self._warmth is not None and self._slots.count == 0:
            self._warmth.rests(self._env.now)

    def _outlive(self, request: Request, call: int, work_s: float) -> None:
        """Keep a dropped call's slot until its work is done; the journal says when, at the pace of this moment."""
        self._outlived += 1

        def free(_: object) -> None:
            self._outlived -= 1
            self._leave(request, served=True)

        if self._batch is None:
            self._env.timeout(work_s).callbacks.append(free)
            seconds = work_s
        else:
            self._batch.finished(work_s).add_done_callback(free)
            seconds = work_s * self._batch.pace
        self._record(ProviderCallOutlived(self._env.now, call, seconds))
