"""What every Relay does: lets one living instance hold a turn, tells where turns run, and passes messages on."""

import asyncio

from orchestra import limits
from orchestra.ports import Claim, Found


async def settled(said):
    """Wait for what was said to come true."""
    async with asyncio.timeout(10):
        while not await said():  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.01)


async def heard(relay, address):
    """Hear an address, and return what comes, once it is sure that it does."""
    letters = []
    relay.hear(address, letters.append)

    async def connected():
        relay.tell(address, b"?")
        return letters

    await settled(connected)
    await came(relay, address, letters, b"!")
    letters.clear()
    return letters


async def came(relay, address, letters, last):
    """Wait until `last`, told now, has come."""
    relay.tell(address, last)

    async def it_has():
        return last in letters

    await settled(it_has)


def test_a_turn_is_claimed_by_one_instance(relays):
    async def scenario(it):
        ours, theirs = await it.join("a"), await it.join("b")
        assert (ours.instance, theirs.instance) == ("a", "b")
        assert await ours.claim("t", "hello") == Claim(None, 0, "hello")
        assert await theirs.claim("t", "goodbye") == Claim("a", 0, "hello")
        assert await theirs.claim("u", "hello") == Claim(None, 0, "hello")

    relays.holds(scenario)


def test_of_claims_at_once_one_wins(relays):
    async def scenario(it):
        instances = [await it.join(str(n)) for n in range(4)]
        claims = await asyncio.gather(*(each.claim("t", each.instance) for each in instances))
        (winner,) = [n for n, claim in enumerate(claims) if claim.holder is None]
        for n, claim in enumerate(claims):
            assert claim == Claim(None if n == winner else str(winner), 0, str(winner))

    relays.holds(scenario)


def test_a_turn_that_ended_is_claimed_anew_and_its_runs_are_counted(relays):
    async def scenario(it):
        ours, theirs = await it.join("a"), await it.join("b")
        await ours.claim("t", "hello")
        ours.end("s", "t", kept=True)
        assert await ours.claim("t", "goodbye") == Claim(None, 1, "hello")
        ours.end("s", "t", kept=False)

        async def ended():
            found = await theirs.find("s", "t")
            return found is not None and not found.runs

        await settled(ended)
        assert await theirs.claim("t", "hello") == Claim(None, 2, "hello")
        assert await ours.claim("t", "hello") == Claim("b", 2, "hello")

    relays.holds(scenario)


def test_who_claims_again_what_it_holds_has_it(relays):
    """As after a claim whose reply was lost: it must not wait for itself."""

    async def scenario(it):
        ours = await it.join("a")
        await ours.claim("t", "hello")
        again = await ours.claim("t", "hello")
        assert (again.holder, again.about) == (None, "hello")

    relays.holds(scenario)


def test_a_claim_is_forgotten_a_while_after_the_end(relays):
    async def scenario(it):
        ours = await it.join("a")
        await ours.claim("t", "hello")
        ours.end("s", "t", kept=True)

        async def ended():
            found = await ours.find("s", "t")
            return found is not None and not found.runs

        await settled(ended)
        await it.elapse(limits.LOG_SECONDS - 5)
        assert await ours.find("s", "t") == Found("a", True, False)
        await it.elapse(6)
        assert await ours.find("s", "t") is None
        assert await ours.claim("t", "goodbye") == Claim(None, 0, "goodbye")

    relays.holds(scenario)


def test_the_turn_of_an_instance_that_died_is_free(relays):
    async def scenario(it):
        ours, theirs = await it.join("a"), await it.join("b")
        await ours.claim("t", "hello")
        ours.begin("s", "t", "session:s", b"begun")

        async def begun():
            return await theirs.find("s", "t") == Found("a", True, True)

        await settled(begun)
        assert await theirs.running("s") == {"t": "a"}
        await it.die(ours)
        assert await theirs.find("s", "t") == Found("a", False, True)
        assert await theirs.running("s") == {}
        assert await theirs.claim("t", "hello") == Claim(None, 1, "hello")

    relays.holds(scenario)


def test_where_a_turn_runs_is_known_until_it_ends(relays):
    async def scenario(it):
        ours, theirs = await it.join("a"), await it.join("b")
        assert await theirs.find("s", "t") is None
        for turn_id in ("t", "u", "v"):
            ours.begin("s", turn_id, "session:s", b"begun")
        theirs.begin("s", "w", "session:s", b"begun")
        theirs.begin("other", "x", "session:other", b"begun")

        async def begun():
            return await theirs.running("s") == {"t": "a", "u": "a", "v": "a", "w": "b"}

        await settled(begun)
        assert await ours.find("other", "x") == Found("b", True, True)
        assert await ours.find("s", "x") is None
        ours.end("s", "t", kept=True)
        ours.end("s", "u", kept=False)

        async def ended():
            return await theirs.running("s") == {"v": "a", "w": "b"}

        await settled(ended)
        assert await theirs.find("s", "t") == Found("a", True, False)
        assert await theirs.find("other", "t") is None
        assert await theirs.find("s", "u") is None

    relays.holds(scenario)


def test_the_end_of_one_run_does_not_end_another_instances(relays):
    async def scenario(it):
        ours, theirs = await it.join("a"), await it.join("b")
        await ours.claim("t", "hello")
        ours.begin("s", "t", "session:s", b"begun")
        ours.end("s", "t", kept=False)

        async def ended():
            found = await theirs.find("s", "t")
            return found is not None and not found.runs

        await settled(ended)
        await theirs.claim("t", "hello")
        theirs.begin("s", "t", "session:s", b"begun")
        ours.end("s", "t", kept=True)
        letters = await heard(ours, "x")
        await came(ours, "x", letters, b"sent")  # and so is what was given before
        assert await ours.find("s", "t") == Found("b", True, True)
        assert await ours.claim("t", "hello") == Claim("b", 1, "hello")

    relays.holds(scenario)


def test_messages_come_in_order_to_all_who_hear_their_address(relays):
    async def scenario(it):
        ours, theirs = await it.join("a"), await it.join("b")
        here, there = await heard(ours, "session:s"), await heard(theirs, "session:s")
        other = await heard(theirs, "session:t")
        for each in (here, there, other):
            each.clear()
        told = [b"%d \xff" % number for number in range(300)]
        for message in told:
            ours.tell("session:s", message)
        await came(ours, "session:s", there, b"last")
        assert there == [*told, b"last"]

        async def came_here():
            return here == there

        await settled(came_here)
        assert other == []

    relays.holds(scenario)


def test_who_stops_to_hear_hears_no_more(relays):
    async def scenario(it):
        ours = await it.join("a")
        stays = await heard(ours, "x")
        goes = []
        stop = ours.hear("x", goes.append)
        await came(ours, "x", goes, b"1")
        stop()
        stop()
        await came(ours, "x", stays, b"2")
        assert b"1" in stays
        assert goes == [b"1"]
        again = await heard(ours, "x")
        await came(ours, "x", again, b"3")

    relays.holds(scenario)


def test_what_nobody_hears_is_lost(relays):
    async def scenario(it):
        ours = await it.join("a")
        ours.tell("x", b"early")
        letters = await heard(ours, "x")
        await came(ours, "x", letters, b"late")
        assert letters == [b"late"]

    relays.holds(scenario)


def test_who_hears_of_a_session_is_told_that_a_turn_of_it_begins(relays):
    async def scenario(it):
        ours, theirs = await it.join("a"), await it.join("b")
        letters, others = await heard(theirs, "session:s"), await heard(theirs, "session:t")
        ours.begin("s", "t", "session:s", b"begun")
        await came(ours, "session:s", letters, b"last")
        await came(ours, "session:t", others, b"last")
        assert letters == [b"begun", b"last"]
        assert others == [b"last"]
        assert await theirs.find("s", "t") == Found("a", True, True)

    relays.holds(scenario)
