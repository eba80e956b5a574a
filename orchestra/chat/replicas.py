"""Copies of the logs of turns that run on other instances, kept for as long as somebody here follows them.

    contract: the messages that instances send each other;  state: `Replica`;  behaviour: `Replicas`

The instance that runs a turn has its log; what follows the turn elsewhere asks it, again and again, for what is behind
the number that it has (`Attend`). That is one message for four things: it starts the stream of entries, it fills what
was lost on the way (Redis' pub/sub loses messages), it says that somebody follows the turn, lest it be abandoned, and
its answer says that the instance lives. So a turn that is followed where it runs costs Redis nothing.

An instance that does not answer has lost the connection, or its life. Its lease tells which; when it is gone, the
followers are told `TurnLost`, unless the conversation has the turn.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from orchestra import limits
from orchestra.chat.stores import StoreCalls
from orchestra.chat.turnlog import Entry, Followed, TurnLog, ended_log, error_frame
from orchestra.errors import OrchestraError, StoreUnavailable, TurnLost
from orchestra.frames import Done, LogFrame
from orchestra.model import Turn
from orchestra.ports import Relay

EVERYWHERE = "instances"
"""The address at which every instance hears."""
ATTEND_SECONDS = 1.0
ATTENDED_SECONDS = 3.5
"""Who asked so long ago, and not again, follows the turn no more."""
SILENCE_SECONDS = 2.5
"""After so long without an answer the holder's lease is looked at."""
SILENCE_SECONDS_MAX = 15.0
"""After so long without an answer the turn is given up, whatever the lease says, or where nobody can tell."""
IDLE_ROUNDS_MAX = 2
ASK_AGAIN_SECONDS = 0.1


class Begun(Struct, frozen=True, array_like=True, tag="b"):
    """To a session's address: a turn of it runs on `holder`."""

    session_id: str
    turn_id: str
    holder: str


class Attend(Struct, frozen=True, array_like=True, tag="a"):
    """To the holder: send `sender` what the turn's log has behind number `after`, and for a while what will come."""

    session_id: str
    turn_id: str
    after: int
    sender: str


class Stop(Struct, frozen=True, array_like=True, tag="s"):
    """To the holder: a client of the session cancels the turn."""

    session_id: str
    turn_id: str


class Entries(Struct, frozen=True, array_like=True, tag="e"):
    """To who attends: frames, as JSON, from number `first` on; `last` is that of the last one that there is.

    `base` is the number before the first of this run.
    """

    turn_id: str
    base: int
    first: int
    last: int
    frames: tuple[bytes, ...]


class Gone(Struct, frozen=True, array_like=True, tag="g"):
    """To who attends: nothing is known here of the turn."""

    turn_id: str


class Deleted(Struct, frozen=True, array_like=True, tag="d"):
    """To `EVERYWHERE`: the session was deleted. Who misses it still finds it so in the conversations."""

    session_id: str


Message = Begun | Attend | Stop | Entries | Gone | Deleted
MESSAGES = msgspec.msgpack.Decoder(Message)
_FRAMES: msgspec.json.Decoder[LogFrame] = msgspec.json.Decoder(LogFrame)


class Replica(Followed):
    """The copy of one turn's log, and who follows it here."""

    def __init__(self, owner: "Replicas", log: TurnLog, holder: str) -> None:
        super().__init__(log)
        self.holder = holder
        self.watchers = 0
        self.stopping = False
        self.idle_rounds = 0
        self.heard_at = self.asked_at = 0.0
        self._owner = owner

    def attach(self) -> None:
        """Count one more follower."""
        self.watchers += 1
        self._owner.adopt(self)

    async def detach(self, *, grace: bool) -> None:
        """Count one less; the holder learns it by not being asked any more."""
        self.watchers -= 1


class Replicas:
    """All copies in this process.

    Parameters
    ----------
    relay : Relay
    calls : StoreCalls
    stored : callable
        Finds a turn in the conversations.
    deliver : callable
        Gets each new entry.
    is_listened : callable
        Tells whether anybody here listens to a session.
    keep : callable
        Gets each log that has ended.
    """

    def __init__(
        self,
        relay: Relay,
        calls: StoreCalls,
        stored: Callable[[str], Awaitable[Turn | None]],
        deliver: Callable[[TurnLog, Entry], None],
        is_listened: Callable[[str], bool],
        keep: Callable[[TurnLog], None],
    ) -> None:
        self._relay = relay
        self._calls = calls
        self._stored = stored
        self._deliver = deliver
        self._is_listened = is_listened
        self._keep = keep
        self._replicas: dict[str, Replica] = {}
        self._rounds: asyncio.Task[None] | None = None
        self._losing: dict[str, asyncio.Task[None]] = {}
        self._failed_at = -limits.LEASE_SECONDS  # when the relay last failed to answer here

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, turn_id: str) -> Replica | None:
        """Return the copy of that turn's log, if there is one."""
        return self._replicas.get(turn_id)

    def follow(
        self, session_id: str, turn_id: str, holder: str, *, message: str | None = None, after: int = 0
    ) -> Replica:
        """Return the copy of a turn's log, which is begun where there is none.

        It is dropped after a moment unless somebody follows it. `after` is what number a follower has already.
        """
        replica = self._replicas.get(turn_id)
        if replica is None:
            replica = Replica(self, TurnLog(session_id, turn_id, message), holder)
            self.adopt(replica)
        if not replica.log.entries:
            replica.log.base = max(replica.log.base, after)
        return replica

    def adopt(self, replica: Replica) -> None:
        """Keep the copy up to date."""
        replica.idle_rounds = 0
        if replica.log.ended:
            return
        if self._replicas.setdefault(replica.log.turn_id, replica) is not replica:
            self._end(replica, None)  # it was dropped, and another took its place: whoever came so late begins again
            return
        if not replica.asked_at:
            replica.heard_at = _now()
            self._ask(replica)
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._go_round())

    def stop(self, replica: Replica) -> None:
        """Cancel the turn, and say so until it has ended."""
        replica.stopping = True
        self._tell(replica.holder, Stop(replica.log.session_id, replica.log.turn_id))

    def receive(self, message: Entries | Gone) -> None:
        """Take what a holder says."""
        replica = self._replicas.get(message.turn_id)
        if replica is None:
            return
        replica.heard_at = _now()
        if isinstance(message, Gone):
            self._lose(replica)
        elif replica.log.entries and message.base != replica.log.base:
            if message.base > replica.log.base:  # a run that began after this one was lost
                self._end(replica, None)
                if self._is_listened(replica.log.session_id):
                    self.follow(replica.log.session_id, message.turn_id, replica.holder)
        else:
            self._take(replica, message)

    async def aclose(self) -> None:
        """Follow nothing any more."""
        self._replicas.clear()
        tasks = [*self._losing.values(), *([self._rounds] if self._rounds else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _take(self, replica: Replica, message: Entries) -> None:
        log = replica.log
        if not log.entries:
            log.base = message.base
        log.told = max(log.told, message.last)
        known = log.seq + 1 - message.first
        if known < 0:
            self._ask_again(replica)
            return
        new = message.frames[known:]
        for data in new:
            try:
                entry = Entry(_FRAMES.decode(data), data)
            except msgspec.DecodeError:  # of another version: it cannot be followed here
                self._end(replica, None)
                return
            log.append(entry)
            self._deliver(log, entry)
        if log.ended:
            self._replicas.pop(log.turn_id, None)
            self._keep(log)
        elif new and log.seq < message.last:  # a part of what there is
            self._ask(replica)

    def _ask_again(self, replica: Replica) -> None:
        """Ask for what is missing, once for all that comes on the heels of each other."""
        if _now() - replica.asked_at >= ASK_AGAIN_SECONDS:
            self._ask(replica)

    def _ask(self, replica: Replica) -> None:
        replica.asked_at = _now()
        log = replica.log
        after = log.seq if log.entries else 0
        self._tell(replica.holder, Attend(log.session_id, log.turn_id, after, self._relay.instance))

    def _tell(self, holder: str, message: Message) -> None:
        self._relay.tell(instance_address(holder), msgspec.msgpack.encode(message))

    async def _go_round(self) -> None:
        """Ask for all copies, each second; look after those that hear nothing, and drop those that nobody follows."""
        while self._replicas:
            await asyncio.sleep(ATTEND_SECONDS)
            for replica in tuple(self._replicas.values()):
                log = replica.log
                if replica.watchers or replica.stopping or self._is_listened(log.session_id):
                    replica.idle_rounds = 0
                else:
                    replica.idle_rounds += 1
                if replica.idle_rounds >= IDLE_ROUNDS_MAX:
                    del self._replicas[log.turn_id]
                    replica.asked_at = 0.0
                    continue
                self._ask(replica)
                if replica.stopping:
                    self.stop(replica)
                if _now() - replica.heard_at > SILENCE_SECONDS:
                    self._lose(replica)
        self._rounds = None

    def _lose(self, replica: Replica) -> None:
        """See, apart, what became of a turn whose holder does not answer, or does not know it."""
        turn_id = replica.log.turn_id
        if turn_id not in self._losing:
            task = self._losing[turn_id] = asyncio.create_task(self._look_after(replica))
            task.add_done_callback(lambda _: self._losing.pop(turn_id, None))

    async def _look_after(self, replica: Replica) -> None:
        log, silent_at = replica.log, replica.heard_at
        silence = _now() - silent_at
        if 0 < silence <= SILENCE_SECONDS_MAX:
            try:
                found = await self._calls("relay", log.turn_id, self._relay.find(log.session_id, log.turn_id))
            except StoreUnavailable:
                self._failed_at = _now()
                return
            if found is not None and found.alive and found.holder == replica.holder:
                return
            if _now() - self._failed_at < limits.LEASE_SECONDS:
                return  # the relay was away: who lives has yet to renew the lease that ran out meanwhile
        try:
            stored = await self._stored(log.turn_id)
        except OrchestraError:
            stored = None
        if replica.heard_at == silent_at:
            self._end(replica, stored)

    def _end(self, replica: Replica, stored: Turn | None) -> None:
        """End the copy with what the conversation has of the turn, or with its loss."""
        log = replica.log
        if self._replicas.get(log.turn_id) is replica:
            del self._replicas[log.turn_id]
        if log.ended:
            return
        if stored is None:
            frames: tuple[LogFrame, ...] = (error_frame(lost(), turn_id=log.turn_id, seq=log.seq + 1),)
        elif log.entries or log.base:
            frames = (Done(log.turn_id, log.seq + 1, stored.as_reply),)
        else:
            ended = ended_log(stored)
            log.base, frames = ended.base, tuple(entry.frame for entry in ended.entries)
        for frame in frames:
            self._deliver(log, log.add(frame))


def lost() -> TurnLost:
    """Return what is said of a turn whose instance is gone."""
    return TurnLost(
        "the instance that ran this turn is gone: send the message again under the same id", retry_after_seconds=1
    )


def instance_address(instance: str) -> str:
    """Return where an instance hears."""
    return f"instance:{instance}"


def session_address(session_id: str) -> str:
    """Return where all hear who have listeners of a session."""
    return f"session:{session_id}"


def entries_of(log: TurnLog, after: int, bytes_max: int) -> Entries:
    """Return what `log` has behind number `after`, as much as fits; more is asked for when it has come."""
    start = max(0, min(after, log.seq) - log.base)
    frames: list[bytes] = []
    size = 0
    for entry in log.entries[start:]:
        size += len(entry.data)
        if frames and size > bytes_max:
            break
        frames.append(entry.data)
    return Entries(log.turn_id, log.base, log.base + start + 1, log.seq, tuple(frames))


def entries_since(log: TurnLog, entry: Entry) -> Entries:
    """Return the log's newest entry."""
    return Entries(log.turn_id, log.base, entry.seq, entry.seq, (entry.data,))


def _now() -> float:
    return asyncio.get_running_loop().time()
