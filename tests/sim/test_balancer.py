"""Whose turn it is, and who is in rotation."""

import asyncio

import pytest

from orchestra.model import ChatReply, ChatRequest, Usage
from sim.balancer import NOBODY, Balancer, BalancerModel, NotConnected, Rotation
from sim.doors import Refused
from sim.journal import InstanceIn, InstanceOut
from sim.loop import run

REQUEST = ChatRequest("hello")


def turns(rotation: Rotation, count: int) -> list[str]:
    """Let so many connections begin and end, one after the other."""
    served = []
    for _ in range(count):
        name = rotation.order()[0]
        rotation.begin(name)
        rotation.end(name)
        served.append(name)
    return served


def test_turns_go_round():
    assert turns(Rotation(BalancerModel(), "abc"), 7) == list("abcabca")


def test_the_least_connections_win_and_turns_break_ties():
    rotation = Rotation(BalancerModel(policy="least_connections"), "abc")
    assert turns(rotation, 4) == list("abca")
    rotation.begin("b")
    rotation.begin("c")
    assert rotation.order() == ["a", "b", "c"]
    rotation.begin("a")
    rotation.begin("a")
    assert rotation.order() == ["b", "c", "a"]


def test_one_that_failed_often_enough_is_out_until_it_succeeded_as_often():
    rotation = Rotation(BalancerModel(out_after=2, in_after=3), "ab")
    assert not rotation.probed("a", is_ready=False)
    assert not rotation.probed("a", is_ready=True)  # once is no streak
    assert not rotation.probed("a", is_ready=False)
    assert rotation.members == ["a", "b"]
    assert rotation.probed("a", is_ready=False)
    assert (rotation.members, rotation.order()) == (["b"], ["b"])
    assert [rotation.probed("a", is_ready=True) for _ in range(2)] == [False, False]
    assert not rotation.probed("a", is_ready=False)
    assert [rotation.probed("a", is_ready=True) for _ in range(3)] == [False, False, True]
    assert rotation.members == ["a", "b"]


def test_where_nobody_is_in_rotation_all_get_turns():
    rotation = Rotation(BalancerModel(out_after=1), "ab")
    for name in "ab":
        assert rotation.probed(name, is_ready=False)
    assert rotation.members == []
    assert turns(rotation, 3) == list("aba")


class Scripted:
    """A backend that does in turn what it is told: `ok`, `refused`, `unready`, `silent`, `gone`."""

    def __init__(self, name: str, *script: str) -> None:
        self.name = name
        self._script = list(script)
        self.asked = 0

    async def _next(self) -> str:
        self.asked += 1
        act = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if act == "gone":
            raise NotConnected(self.name)
        if act == "silent":
            await asyncio.sleep(1e6)
        return act

    async def ready(self, connect_s: float) -> bool:
        return await self._next() == "ok"

    async def send(self, request, correlation_id, began, connect_s: float) -> ChatReply:
        if await self._next() == "refused":
            raise Refused("overloaded", 3)
        return ChatReply("t", "s", "c", self.name, "e", "m", "stop", Usage(1, 1))


def sent(*backends: Scripted) -> str:
    async def main() -> str:
        return (await Balancer(BalancerModel(), backends, lambda _: None).send(REQUEST, "c", None)).reply

    return run(main())


def test_another_gets_what_could_not_be_sent_and_nothing_else():
    gone, fine = Scripted("a", "gone"), Scripted("b", "ok")
    assert sent(gone, fine) == "b"
    refusing, spare = Scripted("a", "refused"), Scripted("b", "ok")
    with pytest.raises(Refused) as refusal:
        sent(refusing, spare)
    assert (refusal.value.kind, refusal.value.retry_after_seconds, spare.asked) == ("overloaded", 3, 0)
    with pytest.raises(Refused, match=NOBODY):
        sent(Scripted("a", "gone"), Scripted("b", "gone"))


def test_what_probes_find_is_told_once_each_time_it_changes():
    told: list[object] = []
    backends = (
        Scripted("a", "ok", *["unready"] * 4, "ok"),
        Scripted("b", "ok", *["silent"] * 3, "ok"),
        Scripted("c", "gone"),
        Scripted("d", "ok"),
    )

    async def main() -> None:
        watch = asyncio.create_task(Balancer(BalancerModel(every=4.0), backends, told.append).watch())
        await asyncio.sleep(60)
        watch.cancel()

    run(main())
    assert [(type(each), round(each.at), each.instance, getattr(each, "reason", "")) for each in told] == [
        (InstanceOut, 7, "c", "no connection"),
        (InstanceOut, 9, "a", "not ready"),
        (InstanceOut, 11, "b", "no answer"),
        (InstanceIn, 22, "b", ""),
        (InstanceIn, 25, "a", ""),
    ]
    assert backends[3].asked == 15


def test_without_probes_nobody_is_asked():
    backend = Scripted("a", "gone")
    run(Balancer(BalancerModel(probes="none"), (backend,), lambda _: None).watch())
    assert backend.asked == 0
