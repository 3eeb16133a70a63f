"""Options: what several verbs are told in the same words: which run and which server, how to learn, how to step games."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tinyverse.cli.config import adopt, read
from tinyverse.core.errors import SettingsError

if TYPE_CHECKING:
    from tinyverse.cli.context import Asked

Command = Callable[..., Any]


def common(function: Command) -> Command:
    """The options of every verb, gathered into one `Asked`."""

    @click.pass_obj
    @functools.wraps(function)
    def wrapped(
        experiment: str, /, redis: str | None, host: str | None, port: int | None, password: str | None, database: str | None,
        name: str | None, seed: int | None, options: tuple[str, ...], config: Path | None, verbose: int, quiet: bool, **rest: Any,
    ) -> Any:  # fmt: skip
        from tinyverse.cli.context import Asked

        logging.basicConfig(
            level=logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING,
            format="%(name)s: %(message)s",
        )
        from tinyverse.database.connection import public

        given = click.get_current_context().get_parameter_source("password") is ParameterSource.COMMANDLINE
        if given or (redis and public(redis) != redis):
            print(
                "tinyverse: a password on the command line is seen by everyone on this machine; TINYVERSE_PASSWORD and TINYVERSE_REDIS_URL are not.",
                file=sys.stderr,
            )
        asked = Asked(
            experiment, name or "", _settings(config, options), redis=redis, host=host, port=port, password=password,
            database=database, seed=seed, quiet=quiet,
        )  # fmt: skip
        return function(asked, **rest)

    return _decorated(wrapped, [
        click.option("--redis", metavar="URL", help="The server, e.g. redis://host:6379/0, rediss:// with TLS, unix://. [env: TINYVERSE_REDIS_URL, REDIS_URL]"),
        click.option("--host", help="The server's host (as --redis redis://HOST:PORT/0)."),
        click.option("--port", type=int, help="The server's port [6379]."),
        click.option("--password", envvar="TINYVERSE_PASSWORD", help="The server's password; better in the URL's environment variable."),
        click.option("--database", metavar="MODULE:CLASS", help="A Database class of your own instead of Redis."),
        click.option("--name", "--key-prefix", "name", help="The run's name [the experiment's name]."),
        click.option("--seed", type=int, help="Makes a worker's random numbers repeatable."),
        click.option("-o", "options", multiple=True, metavar="NAME=VALUE", help="A setting: an argument of make_experiment."),
        click.option("--config", type=click.Path(path_type=Path), is_eager=True, callback=adopt, help="Settings from a TOML file, and options of the verb from its table [VERB]; the command line goes before it."),
        click.option("-v", "--verbose", count=True, help="Say more; twice for everything."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    ])  # fmt: skip


def learning(function: Command) -> Command:
    """The options of `train`, `run` and `local`, gathered into one `Learning`."""

    @functools.wraps(function)
    def wrapped(asked: Asked, **options: Any) -> Any:
        from tinyverse.cli.train import Learning

        fields = Learning.__dataclass_fields__
        given = {name: options.pop(name) for name in list(options) if name in fields}
        given["device"] = given["device"] or ("cuda" if given.get("gpus") else "cpu")
        return function(asked, Learning(**given), **options)

    return _decorated(wrapped, [
        click.option("-b", "batch", type=int, help="Sessions per update [the experiment's]."),
        click.option("-n", "updates", type=int, help="Updates to make [no end]."),
        click.option("--minutes", type=float, help="Minutes after which to stop [no end]."),
        click.option("-s", "publish_every", type=int, help="Updates between two publications of weights [the experiment's, else 10]."),
        click.option("--buffer-size", type=int, help="Sessions kept for learning [the experiment's, else 5000]."),
        click.option("--reuse", type=float, help="How often a session is learned from, on average; players wait for it."),
        click.option("--max-lag", type=int, help="Drop sessions older than this many updates."),
        click.option("--min-sessions", type=int, help="Sessions in memory before learning begins."),
        click.option("--device", help="Where to learn: cpu, cuda, cuda:1 [cpu; with --gpus cuda]."),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Of the arithmetic [the experiment's]."),
        click.option("--threads", type=int, help="Threads of torch [the cores less the players]."),
        click.option("--compile", is_flag=True, help="Compile the network (torch.compile): slow to start; for GPUs."),
        click.option("--profile", is_flag=True, help="Write where the time went to runs/NAME/profile.txt."),
        click.option("--resume/--fresh", default=None, help="Insist on an earlier run, or put it aside [go on if there is one]."),
        click.option("--force", is_flag=True, help="Go on with other settings than the run was made with."),
        click.option("--init-from", metavar="FILE", help="Begin a new run with weights of another: a checkpoint or an export."),
        click.option("--save-replay/--no-save-replay", default=None, help="Keep stored sessions in checkpoints [while they take at most 1 GB]."),
        click.option("--player-share", type=float, default=1.0, show_default=True, metavar="0…1", help="Keep no more of one player's sessions than this, while others play."),
        click.option("--track", multiple=True, metavar="WHERE", help="Log to wandb or mlflow too; each is an extra. metrics.jsonl and TensorBoard are always written."),
        click.option("--metrics-port", metavar="[HOST:]PORT", help="Serve the newest numbers to Prometheus; without HOST to this machine only."),
        click.option("--save-every", type=float, default=60.0, show_default=True, metavar="SECONDS", help="Between two checkpoints."),
    ])  # fmt: skip


def stepping(function: Command) -> Command:
    """How a player's games are stepped."""
    return _decorated(function, [
        click.option("--workers", type=int, default=0, help="Processes that step a player's games, where stepping is heavy Python [none]."),
        click.option("--step-timeout", type=float, metavar="SECONDS", help="Kill and replace a worker whose step takes longer."),
        click.option("--worker-memory", type=int, metavar="MIB", help="Replace a worker that grows beyond."),
    ])  # fmt: skip


def _settings(config: Path | None, options: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = read(config)[0] if config else {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise SettingsError(f"-o {option}: write it as NAME=VALUE.")
        settings[name.strip()] = value
    return settings


def _decorated(function: Command, decorators: list[Callable[[Command], Command]]) -> Command:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function
