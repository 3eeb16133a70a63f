"""The command line: `tinyverse EXPERIMENT VERB [options]`. Reads words, calls the command, says what went wrong.

Usage errors exit 2, run errors 1. A command's module is imported when the command is named (click's LazyGroup), and no
such module imports torch or gymnasium before its options are read, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from tinyverse.cli.completion import VARIABLE, answer
from tinyverse.cli.words import GLOBALS, USAGE, VERBS, sort_out
from tinyverse.core import system
from tinyverse.core.errors import SettingsError, TinyverseError


class LazyGroup(click.Group):
    """The commands of `words`, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *GLOBALS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        listed = VERBS.get(cmd_name) or GLOBALS.get(cmd_name)
        if listed is None:
            return None
        module, _, attribute = listed.where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: `words.USAGE`, the help, names them all."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Options and commands, for which none is imported."""
        found = [CompletionItem(name, help=listed.help) for name, listed in {**VERBS, **GLOBALS}.items()]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(item for item in found if item.value.startswith(incomplete)), *options]


verbs = LazyGroup(
    "tinyverse",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "auto_envvar_prefix": "TINYVERSE",
    },
    help=USAGE,
)


def main(arguments: list[str] | None = None) -> None:
    """The console script. Never returns."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ± that a terminal or a log does not know is no reason to fail
    if VARIABLE in os.environ and answer(verbs):
        sys.exit(0)
    system.prepare()
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))  # modules of this folder, as `python -m tinyverse` finds them by itself
    try:
        experiment, words = sort_out(words)
        code = verbs.main(
            args=words,
            prog_name="tinyverse" + (f" {experiment}" if experiment else ""),
            obj=experiment,
            standalone_mode=False,
        )
    except click.exceptions.Abort:
        _fail("stopped.", 130)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SettingsError as error:
        _fail(str(error), 2)
    except TinyverseError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped.", 130)
    except Exception as error:
        from tinyverse.experiment.loader import is_ours, user_traceback

        if is_ours(error) or "-vv" in words:
            raise
        _fail(
            f"the experiment raised {type(error).__name__} (-vv shows the whole way there):\n{user_traceback(error)}", 1
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"tinyverse: {message}", file=sys.stderr)
    sys.exit(code)
