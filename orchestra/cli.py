"""The command line: `orchestra serve`, `orchestra chat`, `orchestra config`, and what other packages add.

A package adds a sub-command as an entry point of the group `orchestra.commands` that names a typer app.
"""

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestra import __version__, config
from orchestra.errors import ConfigurationError, OrchestraError

app = typer.Typer(
    help="A chat orchestrator that can be rehearsed.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """A chat orchestrator that can be rehearsed."""
    if version:
        typer.echo(f"orchestra {__version__}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (ORCHESTRA_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port to listen on (ORCHESTRA_PORT).")] = None,
) -> None:
    """Serve chat turns until interrupted."""
    from orchestra.gateway import server  # noqa: PLC0415 - the other commands start faster without Sanic

    environ = dict(os.environ)
    if host is not None:
        environ["ORCHESTRA_HOST"] = host
    if port is not None:
        environ["ORCHESTRA_PORT"] = str(port)
    server.serve(config.load(environ, cwd=Path.cwd()).settings)


@app.command()
def chat(
    message: Annotated[list[str] | None, typer.Argument(help="Say this, write the reply, and leave.")] = None,
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    session: Annotated[str | None, typer.Option(help="Go on with this session, or begin it under this id.")] = None,
) -> None:
    """Talk to a running service; what is piped in is one message."""
    from orchestra.sdk import terminal  # noqa: PLC0415 - the other commands start faster without clients

    raise typer.Exit(terminal.chat(url, session, " ".join(message) if message else None))


@app.command("config")
def show_config() -> None:
    """Print every setting with its value, source, unit and meaning."""
    table = Table("setting", "value", "source", "unit", "meaning", box=None, header_style="bold", pad_edge=False)
    for row in config.load(dict(os.environ), cwd=Path.cwd()).rows():
        table.add_row(row.name, row.value, row.source, row.unit, row.meaning)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main() -> None:
    """Run the command line; an error that is ours ends it with a sentence and status 2, never with a traceback."""
    try:
        _add_commands(sys.argv[1:2])
        app()
    except OrchestraError as error:
        Console(stderr=True).print(f"orchestra: {error.detail}", style="bold red", markup=False, soft_wrap=True)
        raise SystemExit(2) from error


def _add_commands(wanted: list[str]) -> None:
    """Add the commands of other packages; only the `wanted` one is imported, so that the others cost no time."""
    for entry in sorted(entry_points(group="orchestra.commands"), key=lambda each: each.name):
        if [entry.name] == wanted:
            app.add_typer(_loaded(entry), name=entry.name)
        else:
            app.add_typer(typer.Typer(help=f"See `orchestra {entry.name} --help`."), name=entry.name)


def _loaded(entry: EntryPoint) -> typer.Typer:
    try:
        command: typer.Typer = entry.load()
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`orchestra {entry.name}` needs the package {error.name}: pip install 'ai-orchestra[simulation,embedded]'"
        ) from error
    return command
