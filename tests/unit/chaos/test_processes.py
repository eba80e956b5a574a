"""A live service is awaited within bounds, ended by process id, and never left behind."""

import os
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from chaos.processes import ServiceFailed, live_service, main, start_service

READY_AFTER = """
import http.server, os, pathlib, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        type(self).asked += 1
        self.send_response(200 if self.asked > 2 else 503)
        self.end_headers()
        self.wfile.write(b"x")
    def log_message(self, *_): pass
data = pathlib.Path(os.environ["ORCHESTRA_DATA_DIR"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {data} {data.is_dir()}")
http.server.HTTPServer((os.environ["ORCHESTRA_HOST"], int(os.environ["ORCHESTRA_PORT"])), Handler).serve_forever()
"""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _command(note: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", READY_AFTER, str(note))


def test_a_service_is_ready_and_is_gone_afterwards(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with live_service(tmp_path / "data", command=_command(note)) as service:
        pid, data_dir, was_made = note.read_text().split()
        assert (data_dir, was_made) == (str(tmp_path / "data"), "True")
        with urllib.request.urlopen(f"{service.url}/readyz", timeout=10) as answer:
            assert answer.status == 200
    assert not _alive(int(pid))


def test_a_service_is_stopped_when_its_user_fails(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with pytest.raises(ZeroDivisionError), live_service(tmp_path, command=_command(note)):
        raise ZeroDivisionError
    assert not _alive(int(note.read_text().split()[0]))


def test_a_killed_service_is_no_trouble_to_stop(tmp_path: Path) -> None:
    service = start_service(tmp_path, command=_command(tmp_path / "note"))
    service.kill()
    assert service.stop() == -9


def test_a_service_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"ended with status 3\nlast words"):
        start_service(tmp_path, command=(sys.executable, "-c", "print('last words'); raise SystemExit(3)"))


def test_a_service_that_is_never_ready_is_given_up_and_stopped(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    with pytest.raises(ServiceFailed, match="not ready within 2 s"):
        start_service(tmp_path, command=(sys.executable, "-c", code), ready_seconds_max=2.0)
    assert not note.exists() or not _alive(int(note.read_text()))


def test_a_command_beside_a_service_gets_its_address_and_gives_its_status(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + '/readyz'); sys.exit(7)"
    assert main([sys.executable, "-c", code, "{url}"], service=_command(note)) == 7
    pid, data_dir, _ = note.read_text().split()
    assert not _alive(int(pid))
    assert not Path(data_dir).exists()


def test_a_command_beside_a_service_that_fails_is_not_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-command"], service=(sys.executable, "-c", "raise SystemExit(3)")) == 1
    assert "ended with status 3" in capfd.readouterr().err


def test_sigterm_beside_a_service_stops_the_service_too(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = textwrap.dedent(f"""
        import sys
        from chaos.processes import main
        command = [sys.executable, "-c", "import time; print('working', flush=True); time.sleep(600)"]
        sys.exit(main(command, service={_command(note)!r}))
    """)
    with subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "working\n" for line in process.stdout)
        process.terminate()
        assert process.wait(60) == 128 + 15
    assert not _alive(int(note.read_text().split()[0]))


def test_settings_of_a_deployment_do_not_reach_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "ORCHESTRA_PROVIDER_URL"):
        monkeypatch.setenv(name, "http://deployment.example")
    note = tmp_path / "note"
    code = READY_AFTER.replace("{data.is_dir()}", "{'deployment.example' in str(os.environ)}")
    with live_service(tmp_path / "data", {"ORCHESTRA_WORKERS": "1"}, command=(sys.executable, "-c", code, str(note))):
        assert note.read_text().split()[2] == "False"


def test_a_command_that_does_not_exist_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["/no/such/command"], service=_command(tmp_path / "note")) == 1
    assert "/no/such/command" in capfd.readouterr().err


def test_a_command_that_a_signal_ends_gives_the_status_of_a_shell(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert main([sys.executable, "-c", code], service=_command(tmp_path / "note")) == 128 + 15
