"""The service in virtual time, and connections to it that are cut at every place: each piece of text comes once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from itertools import count, product

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from orchestra.chat.turns import LiveTurns
from orchestra.model import Chunk, Delta, Finish, Prompt
from orchestra.sdk import Answered, AsyncClient, Began, Connected, Restarted, Retries, Text, Unreachable
from orchestra.sdk.dialogue import Connect, Dialogue, Leave, Wait
from sim import asgi

WORDS = ("One ", "two ", "three, ", "vier 🌊 ", "five.")
ONCE = [[place] for place in range(17)]
PAIRS = [list(pair) for pair in product(range(6), repeat=2)]
BATCHES = st.lists(st.lists(st.integers(0, 16), min_size=2, max_size=6), min_size=25, max_size=25)
"""Many in one world, which takes a moment to make."""

PATIENT = Retries(attempts_max=20, first_seconds=0.2, longest_seconds=1)
CALM = settings(
    deadline=None,
    max_examples=1,
    phases=(Phase.explicit, Phase.generate),  # a smaller batch says no more, and each takes a second
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def answers(prompt: Prompt) -> AsyncGenerator[Chunk, None]:
    for word in WORDS:
        await asyncio.sleep(0.5)
        yield Delta(word)
    yield Finish("stop", "scripted-model")


async def held(app, path, dialogue, cuts, answered):
    """Hold a conversation until so many answers came, and give its events; connection n is cut behind frame cuts[n]."""
    events = []
    for number in count():
        while not isinstance(step := dialogue.step(), Connect):
            assert isinstance(step, Wait)
            await asyncio.sleep(step.seconds)
        left = cuts[number] if number < len(cuts) else 10**9
        async with asgi.websocket(app, path) as socket:
            dialogue.opened()
            while left:
                step = dialogue.step()
                assert not isinstance(step, Leave)
                while dialogue.outgoing:
                    socket.send(dialogue.outgoing.popleft().decode())
                with suppress(TimeoutError):
                    async with asyncio.timeout(step.seconds):
                        dialogue.received(await socket.receive())
                        left -= 1
                while dialogue.events:
                    events.append(dialogue.events.popleft())
                if sum(isinstance(each, Answered) for each in events) == answered:
                    return events
            socket.close(1006)
            dialogue.lost(1006, "cut")
    raise AssertionError


def texts(events):
    """Return what came of each turn since it last began."""
    told = {}
    for event in events:
        if isinstance(event, Restarted):
            told[event.turn_id] = []
        elif isinstance(event, Text):
            told.setdefault(event.turn_id, []).append(event.text)
    return {turn_id: tuple(pieces) for turn_id, pieces in told.items()}


@CALM
@given(batch=BATCHES)
@example(batch=ONCE)
@example(batch=PAIRS)
def test_a_conversation_that_is_cut_anywhere_tells_each_piece_once(visit, on_loop, batch):
    async def story(client):
        for number, cuts in enumerate(batch):
            await converse(client, f"lake-{number}", on_loop(), cuts)

    visit(story, answers)


async def converse(client, session_id, machine, cuts):
    dialogue = Dialogue(PATIENT, machine, answer_seconds_max=600, reconnect_seconds_max=600)
    dialogue.send("Hello", "m1", None)
    dialogue.send("And now?", "m2", None)
    events = await held(client.app, f"/chat/ws/anna/{session_id}", dialogue, cuts, 2)
    done = [event for event in events if isinstance(event, Answered)]
    assert [event.id for event in done] == ["m1", "m2"], cuts
    assert [event.reply.reply for event in done] == ["".join(WORDS)] * 2
    assert texts(events) == {event.turn_id: WORDS for event in done}, cuts
    assert not any(isinstance(event, Restarted) for event in events), cuts
    began = [(event.id, event.message) for event in events if isinstance(event, Began)]
    assert sorted(began) == [("m1", "Hello"), ("m2", "And now?")], cuts
    ready = [event for event in events if isinstance(event, Connected)]
    assert [event.again for event in ready] == [number > 0 for number in range(len(ready))]
    assert not any(event.missed for event in ready), cuts
    stored = await client.service.ports.conversations.latest(session_id, limit=9)
    assert [turn.id for turn in stored] == [event.turn_id for event in done], cuts


class CutTransport(httpx2.AsyncBaseTransport):
    """Sends requests to the app; answer n breaks off behind ``cuts[n]`` pieces, before its status where that is 0."""

    def __init__(self, app, cuts) -> None:
        self.app = app
        self.cuts = iter(cuts)
        self.asked = []

    async def handle_async_request(self, request):
        self.asked.append(request)
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        target = request.url.raw_path.decode()
        headers = [(name, value) for name, value in request.headers.items() if name != "host"]
        answer = asgi.Response()

        async def call() -> None:
            got = await asgi.call(
                self.app, request.method, target, headers, await request.aread(), on_chunk=pieces.put_nowait
            )
            answer.status, answer.headers = got.status, got.headers
            pieces.put_nowait(None)

        task = asyncio.create_task(call())
        left = next(self.cuts, 10**9)
        if not left:
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.wait((task,))
            raise httpx2.ReadError("cut")
        first = await pieces.get()
        if first is None:
            await task
            return httpx2.Response(answer.status, headers=answer.headers)
        if not first.startswith((b"event:", b":")):
            await task
            return httpx2.Response(answer.status, headers=answer.headers, content=first)
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, stream=_Cut(task, pieces, first, left)
        )


class _Cut(httpx2.AsyncByteStream):
    def __init__(self, task, pieces, first, left) -> None:
        self.task, self.pieces, self.first, self.left = task, pieces, first, left

    async def __aiter__(self) -> AsyncIterator[bytes]:
        piece = self.first
        while piece is not None:
            yield piece
            self.left -= 1
            if not self.left:
                self.task.cancel()
                raise httpx2.ReadError("cut")
            piece = await self.pieces.get()

    async def aclose(self) -> None:
        self.task.cancel()


def client_of(app, machine, cuts=(), **options):
    transport = CutTransport(app, cuts)
    return AsyncClient(
        "http://service", transport=transport, system=machine, **{"retries": PATIENT, **options}
    ), transport


@CALM
@given(batch=BATCHES)
@example(batch=ONCE)
@example(batch=PAIRS)
def test_a_stream_that_is_cut_anywhere_tells_each_piece_once(visit, on_loop, batch):
    async def story(client):
        machine = on_loop()  # one, for it gives the ids
        for cuts in batch:
            await stream(client, machine, cuts)

    visit(story, answers)


async def stream(client, machine, cuts):
    said = client.provider.said
    ours, _ = client_of(client.app, machine, cuts)
    async with ours.session().stream("Hello") as turn:
        events = [event async for event in turn]
    assert texts(events) == {turn.reply.turn_id: WORDS}, cuts
    assert not any(isinstance(event, Restarted) for event in events), cuts
    assert turn.text == turn.reply.reply == "".join(WORDS)
    assert client.provider.said - said == len(WORDS) + 1, cuts  # and its end
    stored = await client.service.ports.conversations.latest(turn.reply.session_id, limit=9)
    assert [each.id for each in stored] == [turn.reply.turn_id], cuts


def test_a_whole_turn_whose_answer_is_lost_is_one_turn(visit, on_loop):
    async def story(client):
        ours, sent = client_of(client.app, on_loop(), [0, 0])
        reply = await ours.session().say("Hello")
        assert reply.reply == "".join(WORDS)
        assert len({request.headers["idempotency-key"] for request in sent.asked}) == 1
        assert len(await client.service.ports.conversations.latest(reply.session_id, limit=9)) == 1

    visit(story, answers)


def test_who_leaves_a_stream_cancels_its_turn(visit, on_loop):
    async def story(client):
        ours, sent = client_of(client.app, on_loop())
        chat = ours.session()
        async with chat.stream("Hello") as turn:
            async for _ in turn:
                break
        assert client.provider.running == 0
        assert [request.method for request in sent.asked] == ["POST", "DELETE"]
        session_id = turn._turn.session_id
        assert await client.service.ports.conversations.latest(session_id, limit=9) == ()
        turns = await client.resolve(LiveTurns)
        assert await turns.running(session_id) == ()
        assert chat.id is None

    visit(story, answers)


def test_what_never_answers_is_given_up_in_time(visit, on_loop):
    async def story(client):
        ours, _ = client_of(client.app, on_loop(), [0] * 99, timeout_seconds=10)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable):
            await ours.session().say("Hello")
        assert asyncio.get_running_loop().time() - begun <= 10

    visit(story, answers)
