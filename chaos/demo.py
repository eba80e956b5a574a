"""`orchestra demo`: what the project is for, in a minute and without a question.

First a rehearsal: a provider browns out, and the real orchestrator lives through it in virtual time. Then reality: the
same orchestrator as a live service on its own PostgreSQL and Redis, a short conversation with it, and what it stored.
"""

import asyncio
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from chaos.processes import LiveService, ServiceFailed, live_service
from orchestra.adapters import embedded
from orchestra.adapters.postgres import Postgres
from orchestra.adapters.redis import RedisSessions
from orchestra.errors import ConfigurationError
from orchestra.model import Session, Turn
from sim import report as reports
from sim import scenario, timeline
from sim.world import rehearse

STORY = Path(__file__).parent / "scenarios" / "provider_brownout.yaml"
COLUMNS = timeline.COLUMNS_MAX
USER = "ada"
TALK = (
    ("first session", "Hello, my name is Ada and I sail on Lake Geneva."),
    ("first session", "What is my name?"),
    ("second session", "Where do I sail?"),
    ("second session", "/help"),
)

app = typer.Typer(help="Rehearse a brownout, then hold a real conversation; needs no key.", invoke_without_command=True)


@app.callback()
def demo(
    report: Annotated[Path, typer.Option(help="Where the rehearsal's report goes, as one HTML file.")] = Path(
        "report.html"
    ),
) -> None:
    """Rehearse a provider brownout in virtual time, then hold a short conversation with the live service."""
    embedded.exit_on_sigterm()  # so that what is started here is stopped on the way out
    try:
        report.open("ab").close()
    except OSError as wrong:
        raise ConfigurationError(f"{report} cannot be written ({wrong.strerror}): choose another --report") from wrong
    console = Console(highlight=False)
    console.width = min(console.width, COLUMNS) if console.is_terminal else COLUMNS
    console.print(Rule("1  Rehearsal: a provider browns out, in virtual time", align="left"))
    run = rehearse(scenario.load(STORY))
    console.print(timeline.render(run, "orchestra sim run chaos/scenarios/provider_brownout.yaml", console))
    console.print(Rule("2  Reality: the same orchestrator, live on its own PostgreSQL and Redis", align="left"))
    try:
        with tempfile.TemporaryDirectory(prefix="orchestra-demo-") as folder, live_service(Path(folder)) as service:
            console.print(f"[dim]orchestra serve is ready at {service.url}, with the built-in offline model\n")
            replies = _talk(service, console)
            _show_stored(console, Path(folder), replies)
    except (ServiceFailed, OSError) as failure:
        console.print(f"the live part failed: {failure}", style="bold red", markup=False)
        raise typer.Exit(1) from failure
    console.print("[dim]The service and its stores have stopped.\n")
    reports.write(run, report)
    _close(console, report)
    raise typer.Exit(run.verdict.exit_code)


def _talk(service: LiveService, console: Console) -> list[dict[str, Any]]:
    """Say `TALK` over HTTP and show it."""
    replies: list[dict[str, Any]] = []
    sessions: dict[str, str] = {}
    for session, message in TALK:
        if session not in sessions:
            console.print(f"[bold]{session}")
        body = {"message": message, "user_id": USER}
        if session in sessions:
            body["session_id"] = sessions[session]
        reply = _post(f"{service.url}/chat/v2/chat", body)
        sessions[session] = reply["session_id"]
        replies.append(reply)
        console.print(Padding(Text.assemble(("Ada        ", "cyan"), message), (0, 0, 0, 2)))
        console.print(Padding(Text.assemble(("orchestra  ", "green"), _hung(reply["reply"])), (0, 0, 0, 2)))
        for memory in reply["recalled"]:
            recalled = f"{memory['text']!r} (cosine {memory['similarity']:.2f}), said in another session"
            console.print(Padding(Text.assemble(("recalled   ", "magenta"), (recalled, "dim")), (0, 0, 0, 2)))
    return replies


def _hung(text: str) -> str:
    return text.replace("\n", "\n" + " " * len("orchestra  "))


def _post(url: str, body: dict[str, str]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        reply: dict[str, Any] = json.load(response)
        return reply


def _show_stored(console: Console, data_dir: Path, replies: list[dict[str, Any]]) -> None:
    """Show what the stores themselves hold of the first session, past the service."""
    session, turns = asyncio.run(_stored(data_dir, replies[0]["session_id"]))
    assert session, "an acknowledged session is in Redis"
    console.print("\n[bold]as stored")
    lines = (
        ("Redis      ", f"session {session.id[:8]}… version {session.version}, {len(session.messages)} messages"),
        *(("PostgreSQL ", f"turn {turn.number}  {turn.message!r} → {len(turn.reply)} characters") for turn in turns),
        ("pgvector   ", f"{len(replies[2]['recalled'])} memory of user {USER!r} recalled in the second session"),
    )
    for label, line in lines:
        console.print(Padding(Text.assemble((label, "blue"), line), (0, 0, 0, 2)))
    console.print()


async def _stored(data_dir: Path, session_id: str) -> tuple[Session | None, tuple[Turn, ...]]:
    async with embedded.embedded_stores(data_dir) as stores:
        sessions = RedisSessions(stores.redis_url, hook=lambda event: None)
        postgres = await Postgres.connect(stores.database_url)
        try:
            return await sessions.load(session_id), await postgres.conversations.turns(session_id)
        finally:
            await sessions.close()
            await postgres.close()


def _close(console: Console, report: Path) -> None:
    console.print(Rule("3  Next", align="left"))
    console.print(Text.assemble("The plots of the rehearsal: ", (str(report.resolve()), "bold")), soft_wrap=True)
    console.print("The same seed gives the same run; another one another:  orchestra sim run … --seed 1")
    console.print("A service of your own:  make serve   All verbs:  make help")
