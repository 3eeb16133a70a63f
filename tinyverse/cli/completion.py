"""The command `completion`: what a shell is told once, so that its Tab key asks `tinyverse` for words."""

import click
from click.shell_completion import get_completion_class

from tinyverse.core.errors import SettingsError


@click.command()
@click.argument("shell")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Prints what bash, zsh or fish evaluates to complete experiments, verbs and options.

    Example: eval "$(tinyverse completion bash)"
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise SettingsError(f"completion {shell}: there are bash, zsh, fish.")
    print(kind(ctx.find_root().command, {}, "tinyverse", "_TINYVERSE_COMPLETE").source())
