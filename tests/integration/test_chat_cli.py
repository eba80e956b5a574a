"""`orchestra chat` in a terminal of its own, and in pipes."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.processes import LiveService, free_port

SECONDS_MAX = 20.0
CHAT = (sys.executable, "-m", "orchestra", "chat", "--url")
AT_OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from orchestra.cli import main; main()"
"""Ctrl-C is a signal for whom the terminal controls."""

CTRL_C, CTRL_D = "\x03", "\x04"
EVIL = "\x1b]0;pwned\x07\x1b[31mred\x9b2J\x08\r!"


class Typist:
    """Someone at a terminal: types, and reads what is shown."""

    def __init__(self, terminal: int, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.shown = ""
        self._terminal = terminal
        self._seen = 0

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def reads(self, text: str) -> str:
        """Wait until `text` is shown, behind what was read before, and return what was shown up to it."""
        end = time.monotonic() + SECONDS_MAX
        while (found := self.shown.find(text, self._seen)) < 0:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} is not shown: {self.shown[self._seen :]!r}"
            self.shown += os.read(self._terminal, 65_536).decode()
        read, self._seen = self.shown[self._seen : found + len(text)], found + len(text)
        return read

    def left(self) -> int:
        """Wait until the command has ended, and return its status."""
        return self.process.wait(SECONDS_MAX)


@contextmanager
def sitting(url: str, *arguments: str) -> Iterator[Typist]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        (sys.executable, "-c", AT_OWN_TERMINAL, *CHAT[3:], url, *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    try:
        yield Typist(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def piped(url: str, *arguments: str, said: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run((*CHAT, url, *arguments), input=said, capture_output=True, timeout=60, check=False)


def plain(shown: str) -> str:
    """Return what is shown without the styles that we give."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def test_a_conversation_is_typed_and_gone_on_with(service: LiveService, tmp_path: Path) -> None:
    with sitting(service.url, "--session", "cli-1") as typist:
        assert "session cli-1" in typist.reads("> ")
        typist.types("hellö\n")
        assert 'I have noted: "hellö"' in typist.reads("> ")
        typist.types("/help\n")
        helped = plain(typist.reads("> "))
        assert "Commands:" in helped
        assert "/export [file] writes the conversation, /quit leaves" in helped
        typist.types(f"/export {tmp_path / 'said.md'}\n")
        assert "the conversation is in" in plain(typist.reads("> "))
        assert "hellö" in (tmp_path / "said.md").read_text()
        typist.types(CTRL_D)
        assert typist.left() == 0
    with sitting(service.url, "--session", "cli-1") as typist:
        typist.reads("hellö")
        typist.reads("Commands:")
        typist.types("/quit\n")
        assert typist.left() == 0


def test_one_message_from_the_command_line_or_a_pipe(service: LiveService) -> None:
    answered = piped(service.url, "hello", "there")
    assert (answered.returncode, answered.stderr) == (0, b"")
    assert answered.stdout.decode().startswith('I have noted: "hello there"')
    assert answered.stdout.endswith(b")\n")
    answered = piped(service.url, said="Grüezi\nmiteinander\n".encode())
    assert answered.stdout.decode().startswith('I have noted: "Grüezi miteinander"')
    nothing = piped(service.url)
    assert (nothing.returncode, nothing.stdout) == (2, b"")
    assert b"nothing to say" in nothing.stderr
    latin = piped(service.url, os.fsdecode(b"caf\xe9"))
    assert latin.stdout.decode().startswith('I have noted: "caf\ufffd"')
    astray = piped("http://127.0.0.1:abc", "hello")
    assert (astray.returncode, astray.stdout) == (2, b"")
    assert b"'http://127.0.0.1:abc' is no address of a service: give one such as http" in astray.stderr
    wrong = piped(service.url, "--session", "a b", "hello")
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"session_id must be" in wrong.stderr


def test_where_no_service_answers_the_cure_is_said() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    nobody = piped(url, "hello")
    assert nobody.returncode == 2
    assert f"no service answers at {url}: start one with `orchestra serve`" in nobody.stderr.decode()


def test_control_characters_of_an_answer_do_not_reach_a_terminal(restartable) -> None:
    answered = piped(restartable.url, f"say:{EVIL}")
    assert answered.stdout.decode() == f"one {EVIL}\n"  # to the letter, where it is no terminal
    with sitting(restartable.url, f"say:{EVIL}") as typist:
        shown = typist.reads("!")
        assert typist.left() == 0
    assert plain(shown).endswith("one ]0;pwned[31mred2J!")
    assert not set(plain(shown)) & set("\x1b\x07\x08\x9b")


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(restartable) -> None:
    restartable.speaker.proceed.clear()
    with sitting(restartable.url) as typist:
        typist.reads("> ")
        typist.types("halt, please\n")
        typist.reads("one ")  # it is there before the rest
        typist.types(CTRL_C)
        assert "(stopped)" in plain(typist.reads("> "))
        assert restartable.speaker.saw_abort_of("halt, please")
        typist.types("and now\n")
        typist.reads("one two")
        typist.reads("> ")
        typist.types(CTRL_C)
        typist.reads("once more leaves")
        typist.reads("> ")
        typist.types(CTRL_C)
        assert typist.left() == 128 + signal.SIGINT


def test_ctrl_c_ends_one_message(restartable) -> None:
    restartable.speaker.proceed.clear()
    with sitting(restartable.url, "halt, once") as typist:
        typist.reads("one ")
        typist.types(CTRL_C)
        assert typist.left() == 128 + signal.SIGINT
    assert restartable.speaker.saw_abort_of("halt, once")


def test_a_conversation_goes_on_after_a_restart_of_the_service(restartable) -> None:
    restartable.speaker.proceed.clear()
    with sitting(restartable.url, "--session", "cli-restart") as typist:
        typist.reads("> ")
        typist.types("halt\n")
        typist.reads("one ")
        restartable.kill()
        starting = threading.Thread(target=restartable.start)
        starting.start()
        try:
            typist.reads("not connected")
            typist.reads("connected again")
            typist.reads("the answer begins again")
            typist.reads("one two")
            typist.reads("> ")
        finally:
            starting.join()
        typist.types(CTRL_D)
        assert typist.left() == 0


def test_what_is_typed_during_an_answer_is_shown_when_its_turn_comes_and_ctrl_d_waits_for_it(restartable) -> None:
    restartable.speaker.proceed.clear()
    with sitting(restartable.url) as typist:
        typist.reads("> ")
        typist.types("halt\n")
        typist.reads("one ")
        typist.types("say:next\n")
        typist.reads("say:next")  # the terminal's echo
        typist.types(CTRL_D)
        restartable.speaker.proceed.set()
        assert "> say:next" in plain(typist.reads("one next"))
        assert typist.left() == 0
