"""Completing: words for the shell's Tab key. `tinyverse completion bash` prints what a shell wants to be told once.

The experiment stands before the verb, which click does not expect: it is lifted out here, as everywhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from tinyverse.core.errors import SettingsError

VARIABLE = "_TINYVERSE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


def script(verbs: click.Group, shell: str) -> str:
    """What `eval "$(tinyverse completion bash)"` evaluates.

    Raises:
        SettingsError: click knows no such shell.
    """
    if shell not in SHELLS:
        raise SettingsError(f"completion {shell}: there are {', '.join(SHELLS)}.")
    return _of(verbs, shell, lambda: []).source()


def answer(verbs: click.Group, global_words: tuple[str, ...], experiments: Callable[[], list[str]]) -> bool:
    """Prints completions if a shell asks for them; whether it did."""
    asked = os.environ.get(VARIABLE, "")
    shell, _, what = asked.partition("_")
    if shell not in SHELLS or what != "complete":
        return False

    def first() -> list[str]:
        return [*experiments(), *global_words]

    print(_of(verbs, shell, first, global_words).complete())
    return True


def _of(
    verbs: click.Group, shell: str, first: Callable[[], list[str]], global_words: tuple[str, ...] = ()
) -> ShellComplete:
    """Click's completion for this shell; before its first word comes the experiment."""
    kind = get_completion_class(shell)
    assert kind is not None

    class Lifted(kind):  # type: ignore[valid-type, misc]
        @staticmethod
        def _check_version() -> None:
            """Asking bash for its version takes as long as the rest; a shell too old shows no completions."""

        def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
            if not args:
                return [CompletionItem(word) for word in first() if word.startswith(incomplete)]
            if args[0] in global_words:
                return super().get_completions(args, incomplete)
            items = super().get_completions(args[1:], incomplete)
            return [item for item in items if len(args) > 1 or item.value not in global_words]

    return Lifted(verbs, {}, "tinyverse", VARIABLE)


def experiments() -> list[str]:
    """Files of this folder and packaged examples."""
    from tinyverse.experiment.loader import examples

    return [*(file.name for file in sorted(Path().glob("*.py"))), *examples()]
