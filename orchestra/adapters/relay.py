"""The relay in Redis: claims and whereabouts of turns as keys, a lease for each instance, messages by pub/sub.

    orchestra:turn:<turn>          who claimed the turn, or has its log: one record, compared and replaced by a script
    orchestra:live:<session>       a hash of the turns that run in the session: turn -> instance
    orchestra:instance:<instance>  a lease: it is gone a few seconds after its instance is
    orchestra:to:<address>         a channel

A lease is an instance's, not a turn's: it is renewed by one command a process, however many turns run. All commands
share round trips with what is asked meanwhile, and messages to one address that wait for the same trip share one
command. Nothing is sent twice on purpose, but a command whose reply was lost is; every one may be.

Messages are lost while the connection is: pub/sub keeps nothing. Whoever needs them all numbers them.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from orchestra import limits
from orchestra.adapters.batching import Batcher
from orchestra.adapters.pipelining import BATCH_COMMANDS_MAX, WAITING_COMMANDS_MAX, Command, connection, outcomes
from orchestra.errors import OrchestraError, StoreUnavailable
from orchestra.events import Hook, Lifecycle
from orchestra.ports import Claim, Found

RENEWALS_PER_LEASE = 3
RECONNECT_SECONDS = 0.5
SILENCE_SECONDS = 5.0
"""A subscription on which nothing comes for so long is asked whether it lives."""
SUBSCRIBED_SECONDS = 0.01
CLAIM_ATTEMPTS_MAX = 4

# Replaces a record where it is the one that was read; a script that was sent twice finds its own, and that is success.
_REPLACE = """
local held = redis.call('GET', KEYS[1])
if (held or '') == ARGV[1] or held == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
  return false
end
return held or ''
"""

_BEGIN = f"""
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], {limits.CLAIM_SECONDS})
redis.call('PUBLISH', ARGV[3], ARGV[4])
"""
_REMOVE = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end"

Deliver = Callable[[bytes], None]


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A turn that was claimed, or whose log is kept. A newer writer may add fields at the end."""

    holder: str
    number: int
    about: str
    runs: bool
    session_id: str = ""  # known once it has ended


_RECORDS = msgspec.msgpack.Decoder(_Record)
_LETTERS = msgspec.msgpack.Decoder(list[bytes])


class RedisRelay:
    """One instance's way to the others that use the same Redis database. It connects with the first command.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
    instance : str
        The address of this instance, unlike any other's and any former one's.
    hook : callable
        Told, once each, when messages cannot be sent or heard any more, and when they can again.

    Raises
    ------
    ConfigurationError
        The URL is not one.
    """

    def __init__(self, url: str, *, instance: str, hook: Hook) -> None:
        self._redis = connection(url)
        self._instance = instance
        self._hook = hook
        self._lease = _Lease(self._renew)
        self._claims: dict[str, bytes] = {}  # records of turns that this instance claimed
        self._letters: dict[str, list[bytes]] = {}  # by address, until they are sent
        self._waiting_bytes = 0
        self._is_away: dict[str, bool] = {}
        self._ears = _Ears(self._redis, self._state)
        self.commands: Batcher[Command, Any] = Batcher(
            "Redis", self._send, batch_max=BATCH_COMMANDS_MAX, waiting_max=WAITING_COMMANDS_MAX
        )

    @property
    def instance(self) -> str:
        """The address of this instance."""
        return self._instance

    async def claim(self, turn_id: str, about: str) -> Claim:
        """Take the turn for this instance, unless another that lives has it.

        Raises
        ------
        StoreUnavailable
        """
        self._lease.hold(turn_id)
        expected, before = b"", _Record("", -1, about, False)
        for _ in range(CLAIM_ATTEMPTS_MAX):
            mine = msgspec.msgpack.encode(_Record(self._instance, before.number + 1, before.about, True))
            self._claims[turn_id] = mine  # at once: a caller that is cut off may have it, and `end` must know of it
            held = await self._replace(turn_id, expected, mine)
            if held is None:
                return Claim(None, before.number + 1, before.about)
            expected, before = held, _record(held) or _Record("", -1, about, False)
            if before.runs and before.holder != self._instance and await self._lives(before.holder):
                del self._claims[turn_id]
                self._lease.release(turn_id)
                return Claim(before.holder, before.number, before.about)
        raise StoreUnavailable("others claim the turn again and again: try again", retry_after_seconds=1)

    def begin(self, session_id: str, turn_id: str, address: str, message: bytes) -> None:
        """Let others know that the turn runs here, and tell those who hear `address`."""
        self._lease.hold(turn_id)
        letters = msgspec.msgpack.encode([message])
        self._post("EVAL", _BEGIN, 1, _live(session_id), turn_id, self._instance, _channel(address), letters)

    def end(self, session_id: str, turn_id: str, *, kept: bool) -> None:
        """Let others know that the turn has ended, and whether its log is here."""
        self._lease.release(turn_id)
        self._post("EVAL", _REMOVE, 1, _live(session_id), turn_id, self._instance)
        claim = self._claims.pop(turn_id, None)
        if claim is None and not kept:
            return
        running = _Record(self._instance, 0, "", True) if claim is None else _RECORDS.decode(claim)
        ended = msgspec.msgpack.encode(msgspec.structs.replace(running, runs=False, session_id=session_id))
        self._post("EVAL", _REPLACE, 1, _turn(turn_id), claim or b"", ended, round(limits.LOG_SECONDS))

    async def find(self, session_id: str, turn_id: str) -> Found | None:
        """Return where the turn runs, or ran a moment ago and is kept.

        Raises
        ------
        StoreUnavailable
        """
        running, record = await asyncio.gather(
            self.commands.put(("HGET", _live(session_id), turn_id)), self.commands.put(("GET", _turn(turn_id)))
        )
        if running is not None:
            holder = running.decode()
            return Found(holder, await self._lives(holder), True)
        if record is None or (kept := _record(record)) is None or kept.session_id not in ("", session_id):
            return None
        return Found(kept.holder, await self._lives(kept.holder), kept.runs)

    async def running(self, session_id: str) -> dict[str, str]:
        """Return the turns of the session that run on instances that live, and on which.

        Raises
        ------
        StoreUnavailable
        """
        fields: dict[bytes, bytes] = await self.commands.submit(("HGETALL", _live(session_id)))
        running = {turn_id.decode(): holder.decode() for turn_id, holder in fields.items()}
        lives = {holder: await self._lives(holder) for holder in dict.fromkeys(running.values())}
        for turn_id in [turn_id for turn_id, holder in running.items() if not lives[holder]]:
            del running[turn_id]
        return running

    def tell(self, address: str, message: bytes) -> None:
        """Send `message` to all who hear `address`; where too much waits to be sent, it is lost."""
        if self._waiting_bytes + len(message) > limits.RELAY_WAITING_BYTES_MAX:
            return
        self._waiting_bytes += len(message)
        letters = self._letters.get(address)
        if letters is None:
            self._letters[address] = [message]
            self._post("PUBLISH", address)
        else:
            letters.append(message)

    def hear(self, address: str, deliver: Deliver) -> Callable[[], None]:
        """Let `deliver` get what is told to `address`, once Redis knows of it; return how to end that."""
        return self._ears.add(address, deliver)

    async def aclose(self) -> None:
        """Send what waits, give the lease up, and close the connections."""
        await self._ears.aclose()
        self._lease.close()
        if self._lease.was_taken:
            self._post("DEL", _instance(self._instance))
        await self.commands.close()
        await self._redis.aclose()

    def _renew(self) -> None:
        self._post("SET", _instance(self._instance), b"", "PX", round(limits.LEASE_SECONDS * 1000))

    async def _lives(self, instance: str) -> bool:
        return instance == self._instance or bool(await self.commands.submit(("EXISTS", _instance(instance))))

    async def _replace(self, turn_id: str, expected: bytes, new: bytes) -> bytes | None:
        """Store a record, or return the one that is stored where it is not the `expected` one."""
        command = ("EVAL", _REPLACE, 1, _turn(turn_id), expected, new, limits.CLAIM_SECONDS)
        held: bytes | None = await self.commands.submit(command)
        return held

    def _post(self, *command: str | bytes | int) -> None:
        """Send a command whose reply nobody waits for."""
        try:
            self.commands.put(command).add_done_callback(self._noted)
        except StoreUnavailable as error:
            if command[0] == "PUBLISH":
                self._letter(command)
            self._state("sending", error)

    def _noted(self, outcome: "asyncio.Future[Any]") -> None:
        error = None if outcome.cancelled() else outcome.exception()
        self._state("sending", error if isinstance(error, OrchestraError) else None)

    async def _send(self, commands: list[Command]) -> Sequence[Any]:
        """Send commands, each publication with all that waits for its address by now."""
        return await outcomes(self._redis, [self._letter(each) if each[0] == "PUBLISH" else each for each in commands])

    def _letter(self, command: Command) -> Command:
        """Return the command with all that waits for its address."""
        address = str(command[1])
        letters = self._letters.pop(address, [])
        self._waiting_bytes -= sum(map(len, letters))
        return ("PUBLISH", _channel(address), msgspec.msgpack.encode(letters))

    def _state(self, what: str, error: Exception | None) -> None:
        """Tell the hook where `what` has begun to fail, or has stopped to."""
        if self._is_away.get(what, False) != (error is not None):
            self._is_away[what] = error is not None
            at = asyncio.get_running_loop().time()
            state = "back" if error is None else "away"
            self._hook(Lifecycle(at, f"relay {what}", state, "" if error is None else str(error.__cause__ or error)))


class _Lease:
    """Renews an instance's lease as long as it has turns, or their logs."""

    def __init__(self, renew: Callable[[], None]) -> None:
        self.was_taken = False
        self._renew = renew
        self._held: dict[str, None] = {}
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, turn_id: str) -> None:
        """Have a lease for as long as the turn is held, and its log is kept."""
        self._held[turn_id] = None
        if self._timer is None:
            self.was_taken = True
            self._due(asyncio.get_running_loop())

    def release(self, turn_id: str) -> None:
        """Hold the turn no longer."""
        self._held.pop(turn_id, None)
        self._until = asyncio.get_running_loop().time() + limits.LOG_SECONDS

    def close(self) -> None:
        """Renew no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._held or loop.time() < self._until:
            self._renew()
            self._timer = loop.call_later(limits.LEASE_SECONDS / RENEWALS_PER_LEASE, self._due, loop)


class _Ears:
    """Hears channels over one connection, which is made again where it was lost."""

    def __init__(self, redis: Redis, tell: Callable[[str, Exception | None], None]) -> None:
        self._redis = redis
        self._tell = tell
        self._ears: dict[str, list[Deliver]] = {}
        self._touched: dict[str, None] = {}  # addresses that may have to be subscribed to, or no longer
        self._changed = asyncio.Event()
        self._closed = False  # asked as well: redis-py's `wait_for` may lose a cancellation (Python 3.11)
        self._task: asyncio.Task[None] | None = None

    def add(self, address: str, deliver: Deliver) -> Callable[[], None]:
        """Let `deliver` hear `address`, and return how to end that."""
        self._ears.setdefault(address, []).append(deliver)
        self._touch(address)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen(), context=Context())

        def end() -> None:
            ears = self._ears.get(address, [])
            if deliver in ears:
                ears.remove(deliver)
            if not ears and self._ears.pop(address, None) is not None:
                self._touch(address)

        return end

    def _touch(self, address: str) -> None:
        self._touched[address] = None
        self._changed.set()

    async def aclose(self) -> None:
        """Hear nothing any more."""
        self._closed = True
        self._changed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _listen(self) -> None:
        while not self._closed:
            try:
                async with self._redis.pubsub() as pubsub, asyncio.TaskGroup() as both:
                    both.create_task(self._subscribe(pubsub))
                    both.create_task(self._receive(pubsub))
            except* Exception as lost:  # whatever it is: who hears nothing any more must begin again
                self._tell("hearing", lost.exceptions[0])
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Keep the connection's subscriptions to what is listened to."""
        heard: dict[str, None] = {}
        self._touched = dict.fromkeys(self._ears)
        while not self._closed:
            self._changed.clear()
            touched, self._touched = self._touched, {}
            new = [address for address in touched if address in self._ears and address not in heard]
            old = [address for address in touched if address not in self._ears and address in heard]
            if new:
                heard |= dict.fromkeys(new)
                await pubsub.subscribe(*map(_channel, new))
                self._tell("hearing", None)
            if old:
                for address in old:
                    del heard[address]
                await pubsub.unsubscribe(*map(_channel, old))
            await self._changed.wait()

    async def _receive(self, pubsub: PubSub) -> None:
        """Deliver what comes; a connection that stays silent when it is asked is given up."""
        prefix = len(_channel(""))
        asked = False
        while not self._closed:
            if not pubsub.subscribed:
                await asyncio.sleep(SUBSCRIBED_SECONDS)
                continue
            message = await pubsub.get_message(timeout=SILENCE_SECONDS)
            if message is None and asked:
                raise TimeoutError("Redis does not answer")
            if message is None:
                await pubsub.ping()
            elif message["type"] == "message":
                self._deliver(message["channel"].decode()[prefix:], message["data"])
            asked = message is None

    def _deliver(self, address: str, data: bytes) -> None:
        try:
            letters = _LETTERS.decode(data)
        except msgspec.DecodeError:
            return  # nobody of ours said it
        for letter in letters:
            for deliver in tuple(self._ears.get(address, ())):
                deliver(letter)


def _record(held: bytes) -> _Record | None:
    """Return a record, or None where it cannot be read: a claim then replaces it."""
    try:
        return _RECORDS.decode(held)
    except msgspec.DecodeError:
        return None


def _turn(turn_id: str) -> str:
    return f"orchestra:turn:{{{turn_id}}}"


def _live(session_id: str) -> str:
    return f"orchestra:live:{{{session_id}}}"


def _instance(instance: str) -> str:
    return f"orchestra:instance:{{{instance}}}"


def _channel(address: str) -> str:
    return f"orchestra:to:{address}"
