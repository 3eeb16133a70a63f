"""The command line: `tinyverse EXPERIMENT VERB [options]`. Reads words, calls the command, says what went wrong.

Usage errors exit 2, run errors 1. A command's module is imported when the command is named (click's LazyGroup), and no
such module imports torch or gymnasium before its options are read, so that `--help` answers at once.
"""

import importlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any, TextIO

import click
from click.shell_completion import CompletionItem

from tinyverse.cli.words import GLOBALS, USAGE, VERBS, sort_out
from tinyverse.core import system
from tinyverse.core.errors import SettingsError, TinyverseError


class LazyGroup(click.Group):
    """The commands of `words`, each imported when it is asked for. The experiment stands before them: `ctx.obj`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            ctx.obj, args = sort_out(args)
        elif args and args[0] not in GLOBALS:  # words to be completed
            ctx.obj, *args = args
        if ctx.obj:
            ctx.info_name = f"{ctx.info_name} {ctx.obj}"
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *GLOBALS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"tinyverse.cli.{cmd_name}")
        command: click.Command = getattr(module, "evaluate" if cmd_name == "eval" else cmd_name)
        if "Example: " not in (command.help or ""):
            command.epilog = f"Example: tinyverse {(VERBS | GLOBALS)[cmd_name][0]}"
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(USAGE)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Experiments, then verbs and options. No command is imported for them."""
        if ctx.obj is None:
            from tinyverse.experiment.loader import examples

            words = dict.fromkeys([*(file.name for file in sorted(Path().glob("*.py"))), *examples(), *GLOBALS], "")
        else:
            words = {name: help for name, (_, help) in VERBS.items()}
        found = [CompletionItem(word, help=help) for word, help in words.items() if word.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


verbs = LazyGroup(
    "tinyverse",
    context_settings={
        "help_option_names": ["-h", "--help"], "max_content_width": 110, "auto_envvar_prefix": "TINYVERSE",
    },
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """The console script. Never returns."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.stdout, sys.stderr = _open(sys.stdout, 1), _unbreakable(_open(sys.stderr, 2))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ± that a terminal or a log does not know is no reason to fail
    for name, value in list(os.environ.items()):  # Kubernetes describes a Service called tinyverse-watch in this way
        if re.fullmatch(r"TINYVERSE_\w+_PORT", name) and re.match(r"(tcp|udp|sctp)://", value):
            del os.environ[name]
    system.prepare()
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))  # modules of this folder, as `python -m tinyverse` finds them by itself
    try:
        code = verbs.main(args=words, prog_name="tinyverse", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("stopped.", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TinyverseError as error:
        _fail(str(error), 2 if isinstance(error, SettingsError) else 1)
    except Exception as error:
        from tinyverse.experiment.loader import is_ours, user_traceback

        if is_ours(error) or "-vv" in words:
            raise
        kind = type(error).__name__
        _fail(f"the experiment raised {kind} (-vv shows the whole way there):\n{user_traceback(error)}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _open(stream: TextIO | None, number: int) -> TextIO:
    """The stream; where the process was started with it closed, one to nowhere, whose number no other file then gets."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
        stream = None
    return stream or open(os.devnull, "w")  # as long as the process lives


class _Unbreakable(io.FileIO):
    """Drops what cannot be written: a log on a full disk, or a terminal that is gone, ends no training."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _unbreakable(stream: TextIO) -> TextIO:
    """The standard error itself, so that it cannot fail; any other stream as it is."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is only one
    if type(raw) is not io.FileIO or raw.fileno() != 2:
        return stream
    unbreakable = io.BufferedWriter(_Unbreakable(2, "w", closefd=False))
    return io.TextIOWrapper(unbreakable, stream.encoding, "replace", line_buffering=True, write_through=True)


def _fail(message: str, code: int) -> None:
    print(f"tinyverse: {message}", file=sys.stderr)
    sys.exit(code)
