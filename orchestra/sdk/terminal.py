"""`orchestra chat`: a conversation in a terminal, or one message for a pipe.

A terminal is never sent what an answer holds of control characters: a model may be made to say what moves the cursor,
renames the window or types a command. Where the output is no terminal it gets the reply to the letter, and nothing
else; what there is to say about it goes to standard error.
"""

import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from rich.console import Console

from orchestra.errors import InvalidRequest, OrchestraError, TurnCancelled
from orchestra.frames import Ready
from orchestra.sdk import wire
from orchestra.sdk.asyncclient import AsyncClient, AsyncConversation, AsyncSession
from orchestra.sdk.events import Answered, Began, Connected, Disconnected, Event, Failed, Level, Restarted, Text
from orchestra.sdk.failures import Unreachable
from orchestra.sdk.retries import Retries

PROMPT = "> "
SHOWN_TURNS_MAX = 5
INTERRUPTED = 128 + signal.SIGINT
"""The status that a shell gives to a command that Ctrl-C ended."""

LOCAL_COMMANDS = "here: /export [file] writes the conversation, /quit leaves; the service's own commands:"

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def cleaned(text: str) -> str:
    """Return `text` without control characters (C0, DEL, C1, bidirectional) but line ends and tabs."""
    return _CONTROLS.sub("", text)


def indented(text: str) -> str:
    """Return `text` with its further lines indented: none of them looks like a prompt or a note of ours."""
    return re.sub(r"\r\n?|[\n\u0085\u2028\u2029]", "\n    ", text)


def chat(url: str, session_id: str | None, message: str | None) -> int:
    """Talk to the service at `url` until the user leaves, or say one message; return the exit status.

    Parameters
    ----------
    url : str
    session_id : str or None
        Of a session to go on with, or to begin under that id. None begins one.
    message : str or None
        What to say, instead of what is typed. Where nobody types, standard input is.

    Raises
    ------
    OrchestraError
        No service answers, or it refuses.
    """
    if message is not None:  # what is no UTF-8 on a command line comes as surrogates
        message = message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        if not message:
            raise InvalidRequest("there is nothing to say: name a message, or type where standard input is a terminal")
    return asyncio.run(_chat(url, session_id, message))


async def _chat(url: str, session_id: str | None, message: str | None) -> int:
    await _knock(url)
    async with AsyncClient(url) as client:
        session = client.session(session_id)
        async with session.connect() as conversation:
            if message is not None:
                return await _say_once(conversation, message)
            return await Terminal(session, conversation, greets=session_id is not None).talk()


async def _knock(url: str) -> None:
    """See that a service answers, at once.

    Raises
    ------
    Unreachable
        None does; says the cure.
    """
    try:
        async with AsyncClient(url, retries=Retries(attempts_max=1), timeout_seconds=10) as client:
            await client.session("knock").read(limit=1)
    except Unreachable as error:
        if error.detail.endswith(wire.NOT_TLS):
            raise
        raise Unreachable(
            f"no service answers at {url}: start one with `orchestra serve`, or name its --url"
        ) from error
    except OrchestraError as error:
        if error.kind == "unexpected-answer":
            raise


async def _say_once(conversation: AsyncConversation, message: str) -> int:
    """Say one message, and write its reply: in pieces to a terminal, as a whole to anything else."""
    view = View()
    async with _interrupts() as interrupts:
        events = asyncio.create_task(_answered(view, conversation, await conversation.send(message)))
        interrupted = asyncio.create_task(interrupts.get())
        await asyncio.wait((events, interrupted), return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if events.done():
            return events.result()
        events.cancel()
        await asyncio.wait((events,))
    return INTERRUPTED


async def _answered(view: "View", conversation: AsyncConversation, message_id: str) -> int:
    try:
        async for event in conversation:
            if isinstance(event, Failed) and event.id == message_id:
                raise event.error
            if view.is_terminal or isinstance(event, Disconnected | Connected):
                view.show(event)
            if isinstance(event, Answered) and event.id == message_id:
                view.end(event)
                return 0
    except asyncio.CancelledError:
        await conversation.cancel(message_id)
        raise
    raise AssertionError("a conversation has no end of its own")


class View:
    """Writes what happens in a conversation.

    Attributes
    ----------
    is_within_line : bool
        Whether what was written last is a line that goes on.
    """

    def __init__(self) -> None:
        self._out = Console(highlight=False, markup=False, soft_wrap=True)
        self._notes = self._out if self._out.is_terminal else Console(stderr=True, highlight=False, markup=False)
        self.is_within_line = False
        self._is_away = False
        self._level = ""
        self._turn_id: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads it as it comes."""
        return self._out.is_terminal

    def show(self, event: Event) -> None:
        """Write what `event` tells."""
        match event:
            case Text():
                if event.turn_id != self._turn_id:
                    self.line_end()
                    self._turn_id = event.turn_id
                self.write(event.text)
            case Restarted():
                self.note("the answer begins again")
            case Began(id=None):
                self.note(f"{event.client_id or 'somebody'} says: {indented(event.message)}")
            case Answered():
                self.line_end()
                if event.reply.degraded:
                    self.note(f"left out: {', '.join(event.reply.degraded)}")
            case Failed():
                stopped = isinstance(event.error, TurnCancelled)
                self.note("stopped" if stopped else event.error.detail, "dim" if stopped else "red")
            case Level():
                self._tell_level(event.level, event.off)
            case Disconnected() if not self._is_away:  # once is enough
                self._is_away = True
                self.note(f"not connected: {event.reason}; trying again in {event.seconds:.1f} s")
            case Connected():
                self._connected(event)

    def end(self, answered: Answered) -> None:
        """Write a whole reply where nobody read its pieces."""
        if not self.is_terminal:
            sys.stdout.write(answered.reply.reply.rstrip("\n") + "\n")
            sys.stdout.flush()
            if answered.reply.degraded:
                self.note(f"left out: {', '.join(answered.reply.degraded)}")

    def greet(self, ready: Ready, turns: bool) -> None:
        """Write where the user is, and what was said last."""
        self.note(f"session {ready.session_id} - /help, /export [file], /quit; Ctrl-C stops an answer")
        for turn in ready.history[-SHOWN_TURNS_MAX:] if turns else ():
            self.write(f"{PROMPT}{indented(turn.message)}\n{turn.reply}\n")
        if ready.off:
            self._tell_level(ready.level, ready.off)
        self._level = ready.level

    def write(self, text: str, style: str = "") -> None:
        """Write a piece of text."""
        if text := cleaned(text):
            self._out.print(text, end="", style=style)
            self._out.file.flush()
            self.is_within_line = not text.endswith("\n")

    def note(self, text: str, style: str = "dim") -> None:
        """Write a line about the conversation."""
        self.line_end()
        self._notes.print(f"({cleaned(text)})", style=style, soft_wrap=True)

    def line_end(self) -> None:
        """End the line that was begun."""
        if self.is_within_line:
            self.write("\n")

    def user_ended_line(self) -> None:
        """Take that the user's own line end was echoed."""
        self.is_within_line = False

    def _connected(self, event: Connected) -> None:
        self._is_away = False
        if event.again:
            self.note("connected again")
            for turn in event.missed:
                self.write(f"{PROMPT}{indented(turn.message)}\n{turn.reply}\n")
            if event.ready.level != self._level:
                self._tell_level(event.ready.level, event.ready.off)

    def _tell_level(self, level: str, off: tuple[str, ...]) -> None:
        self._level = level
        self.note(f"the service is at level {level}" + (f", without {', '.join(off)}" if off else ""))


class _InputEnded:
    """The user typed Ctrl-D."""


class _Interrupted:
    """The user typed Ctrl-C."""


_Thing = Event | str | _InputEnded | _Interrupted | OrchestraError
"""What happens to a terminal: something in the conversation, a line, its end, a signal, and that it is over."""


class Terminal:
    """A conversation with a person who types."""

    def __init__(self, session: AsyncSession, conversation: AsyncConversation, *, greets: bool) -> None:
        self._session = session
        self._conversation = conversation
        self._greets = greets
        self._view = View()
        self._things: asyncio.Queue[_Thing] = asyncio.Queue()
        self._lines: deque[tuple[str, bool]] = deque()  # typed, and whether while an answer ran
        self._has_ended = False
        self._typed = b""
        self._running: str | None = None
        self._interrupts = 0

    async def talk(self) -> int:
        """Talk until the user leaves; return the exit status."""
        async with _interrupts() as interrupts, self._typing():
            listening = [
                asyncio.create_task(self._listen()),
                asyncio.create_task(self._pass_on(interrupts)),
            ]
            try:
                return await self._talk()
            finally:
                for each in listening:
                    each.cancel()
                await asyncio.wait(listening)

    async def _talk(self) -> int:
        while True:
            thing = await self._things.get()
            match thing:
                case OrchestraError():
                    self._view.line_end()
                    raise thing
                case _InputEnded():
                    self._has_ended = True
                case _Interrupted():
                    if await self._interrupt():
                        return INTERRUPTED
                case str():
                    self._lines.append((thing, self._running is not None))
                case _:
                    self._see(thing)
            while self._running is None and self._lines:
                line, has_waited = self._lines.popleft()
                if has_waited:  # it stands above the answer, or amid it: show what is answered now
                    self._view.write(f"{line}\n")
                if not await self._take(line):
                    return 0
            if self._has_ended and self._running is None:
                self._view.write("\n")
                return 0

    def _see(self, event: Event) -> None:
        if isinstance(event, Connected) and not event.again:
            self._view.greet(event.ready, self._greets)
            self._view.write(PROMPT, "bold")
            return
        self._view.show(event)
        if isinstance(event, Answered | Failed) and event.id == self._running:
            self._running, self._interrupts = None, 0
        is_between = not isinstance(event, Text | Began | Restarted)
        if is_between and self._running is None and not self._view.is_within_line:
            self._view.write(PROMPT, "bold")

    async def _take(self, line: str) -> bool:
        """Do what the user typed; False where that is to leave."""
        self._interrupts = 0
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return False
        if command == "/export":
            await self._export(rest.strip())
        elif command:
            if command == "/help":
                self._view.note(LOCAL_COMMANDS)
            self._running = await self._conversation.send(line)
            return True
        self._view.write(PROMPT, "bold")
        return True

    async def _export(self, path: str) -> None:
        try:
            document = await self._session.export("markdown")
            if path:
                _write(path, document)
                self._view.note(f"the conversation is in {path}")
            else:
                self._view.write(document)
        except (OrchestraError, OSError) as error:
            self._view.note(str(error), "red")

    async def _interrupt(self) -> bool:
        """Stop the answer that runs; tell whether to leave."""
        self._interrupts += 1
        if self._interrupts > 1:
            self._view.line_end()
            return True
        if self._running is not None:
            await self._conversation.cancel(self._running)
        else:
            self._view.note("Ctrl-C once more leaves")
            self._view.write(PROMPT, "bold")
        return False

    async def _listen(self) -> None:
        try:
            async for event in self._conversation:
                await self._things.put(event)
        except OrchestraError as error:
            await self._things.put(error)

    async def _pass_on(self, interrupts: asyncio.Queue[None]) -> None:
        while True:
            await interrupts.get()
            await self._things.put(_Interrupted())

    @asynccontextmanager
    async def _typing(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, self._read)
        try:
            yield
        finally:
            loop.remove_reader(sys.stdin)

    def _read(self) -> None:
        """Take what was typed: the terminal gives whole lines."""
        typed = b""
        with suppress(OSError):  # of a terminal that is gone
            typed = os.read(sys.stdin.fileno(), 65_536)
        if not typed:
            asyncio.get_running_loop().remove_reader(sys.stdin)
            self._things.put_nowait(_InputEnded())
            return
        *lines, self._typed = (self._typed + typed).split(b"\n")
        for line in lines:
            self._view.user_ended_line()
            self._things.put_nowait(line.decode("utf-8", "replace"))


def _write(path: str, document: str) -> None:
    Path(path).expanduser().write_text(document, encoding="utf-8")


@asynccontextmanager
async def _interrupts() -> AsyncIterator[asyncio.Queue[None]]:
    """Give each Ctrl-C as an entry of a queue."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[None]()
    loop.add_signal_handler(signal.SIGINT, queue.put_nowait, None)
    try:
        yield queue
    finally:
        loop.remove_signal_handler(signal.SIGINT)
