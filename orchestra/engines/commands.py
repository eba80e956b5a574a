"""The command dispatcher: messages that start with a slash are answered by the service itself, without a provider."""

from collections.abc import AsyncGenerator, Callable

from orchestra.engines.engine import Task
from orchestra.model import Chunk, Delta, Finish

Command = Callable[[Task], str]


def help_text(_task: Task) -> str:
    """List the commands."""
    lines = (f"{name}  {(command.__doc__ or '').strip()}" for name, command in COMMANDS.items())
    return "\n".join(("Commands:", *lines))


COMMANDS: dict[str, Command] = {"/help": help_text}


class CommandDispatcher:
    """Answers commands."""

    name = "commands"

    def handles(self, message: str) -> bool:
        """Tell whether `message` is a command: a slash and a letter, so that a path or a fraction is none."""
        word = message.split(maxsplit=1)[0]
        return word.startswith("/") and word[1:].isalpha()

    async def answer(self, task: Task) -> AsyncGenerator[Chunk, None]:
        """Run the command; an unknown one is answered with the list of those that exist."""
        name = task.message.split(maxsplit=1)[0].lower()
        command = COMMANDS.get(name)
        yield Delta(command(task) if command else f"There is no command {name}.\n{help_text(task)}")
        yield Finish(reason="stop", model=self.name)
