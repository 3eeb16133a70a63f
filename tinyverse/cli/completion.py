"""The command `completion`: words for the shell's Tab key, and what a shell wants to be told once to ask for them.

The experiment stands before the verb, which click does not expect: it is lifted out here, as everywhere else.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from tinyverse.cli.words import GLOBALS
from tinyverse.core.errors import SettingsError

VARIABLE = "_TINYVERSE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Prints what bash, zsh or fish evaluates to complete experiments, verbs and options.

    Example: eval "$(tinyverse completion bash)"
    """
    if shell not in SHELLS:
        raise SettingsError(f"completion {shell}: there are {', '.join(SHELLS)}.")
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    print(_of(group, shell).source())


def answer(verbs: click.Group) -> bool:
    """Prints completions if a shell asks for them; whether it did."""
    shell, _, what = os.environ.get(VARIABLE, "").partition("_")
    if shell not in SHELLS or what != "complete":
        return False
    print(_of(verbs, shell).complete())
    return True


def _of(verbs: click.Group, shell: str) -> ShellComplete:
    """Click's completion for this shell; before its first word comes the experiment."""
    kind = get_completion_class(shell)
    assert kind is not None

    class Lifted(kind):  # type: ignore[valid-type, misc]
        @staticmethod
        def _check_version() -> None:
            """Asking bash for its version takes as long as the rest; a shell too old shows no completions."""

        def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
            if not args:
                return [CompletionItem(word) for word in [*_experiments(), *GLOBALS] if word.startswith(incomplete)]
            if args[0] in GLOBALS:
                return super().get_completions(args, incomplete)
            items = super().get_completions(args[1:], incomplete)
            return [item for item in items if len(args) > 1 or item.value not in GLOBALS]

    return Lifted(verbs, {}, "tinyverse", VARIABLE)


def _experiments() -> list[str]:
    """Files of this folder and packaged examples."""
    from tinyverse.experiment.loader import examples

    return [*(file.name for file in sorted(Path().glob("*.py"))), *examples()]
