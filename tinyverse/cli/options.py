"""The options that several commands share, and the kinds of command that have them.

RunCommand      is about a run: its function gets which run and which server as a RunContext
TrainCommand    also learns: its function gets how to learn as TrainOptions
"""

import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import click
from click.core import ParameterSource

from tinyverse.cli.config_file import adopt, read
from tinyverse.cli.context import RunContext
from tinyverse.core.errors import SettingsError
from tinyverse.database.server import public


def _option(*words: str, default: Any = None, **more: Any) -> Any:
    """A field that has an option on the command line."""
    return dataclasses.field(default=default, metadata={"words": words, "named": {"default": default, **more}})


@dataclasses.dataclass
class TrainOptions:
    """The options of `train`, `run` and `local`; None means: as the experiment says."""

    # fmt: off
    batch_size: int | None = _option("-b", "--batch-size", type=int, help="Sessions per update [the experiment's].")
    updates: int | None = _option("-n", type=int, help="Updates to make [no end].")
    minutes: float | None = _option("--minutes", type=float, help="Minutes after which to stop [no end].")
    publish_every: int | None = _option("-s", type=int, help="Updates between two publications of weights [the experiment's, else 10].")
    buffer_size: int | None = _option("--buffer-size", type=int, help="Sessions kept for learning [the experiment's, else 5000].")
    reuse: float | None = _option("--reuse", type=float, help="How often a session is learned from, on average; players wait for it.")
    max_lag: int | None = _option("--max-lag", type=int, help="Drop sessions older than this many updates.")
    min_sessions: int | None = _option("--min-sessions", type=int, help="Sessions in memory before learning begins.")
    device: str = _option("--device", default="cpu", help="Where to learn: cpu, cuda, cuda:1 [cpu; with --gpus cuda].")
    precision: str | None = _option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Of the arithmetic [the experiment's].")
    threads: int | None = _option("--threads", type=int, help="Threads of torch [the cores less the players].")
    compile: bool = _option("--compile", default=False, is_flag=True, help="Compile the network (torch.compile): slow to start; for GPUs.")
    profile: bool = _option("--profile", default=False, is_flag=True, help="Write where the time went to runs/NAME/profile.txt.")
    resume: bool | None = _option("--resume/--fresh", help="Insist on an earlier run, or put it aside [go on if there is one].")
    force: bool = _option("--force", default=False, is_flag=True, help="Go on with other settings than the run was made with.")
    init_from: str | None = _option("--init-from", metavar="FILE", help="Begin a new run with weights of another: a checkpoint or an export.")
    save_replay: bool | None = _option("--save-replay/--no-save-replay", help="Keep stored sessions in checkpoints [while they take at most 1 GB].")
    player_share: float = _option("--player-share", type=float, default=1.0, show_default=True, metavar="0…1", help="Keep no more of one player's sessions than this, while others play.")
    track: tuple[str, ...] = _option("--track", default=(), multiple=True, metavar="WHERE", help="Log to wandb or mlflow too; each is an extra. metrics.jsonl and TensorBoard are always written.")
    metrics_port: str | None = _option("--metrics-port", metavar="[HOST:]PORT", help="Serve the newest numbers to Prometheus; without HOST to this machine only.")
    save_every: float = _option("--save-every", type=float, default=60.0, show_default=True, metavar="SECONDS", help="Between two checkpoints.")
    gpus: int | None = None  # of `train` only: ranks on this machine; with device "cpu", on its cores
    # fmt: on


RUN_OPTIONS = [
    click.Option(["--redis"], metavar="URL", help="The server, e.g. redis://host:6379/0, rediss:// with TLS, unix://. [env: TINYVERSE_REDIS_URL, REDIS_URL]"),
    click.Option(["--host"], help="The server's host (as --redis redis://HOST:PORT/0)."),
    click.Option(["--port"], type=int, help="The server's port [6379]."),
    click.Option(["--password"], envvar="TINYVERSE_PASSWORD", help="The server's password; better in the URL's environment variable."),
    click.Option(["--database"], metavar="MODULE:CLASS", help="A Database class of your own instead of Redis."),
    click.Option(["--name", "--key-prefix", "name"], help="The run's name [the experiment's name]."),
    click.Option(["--seed"], type=int, help="Makes a worker's random numbers repeatable."),
    click.Option(["-o", "options"], multiple=True, metavar="NAME=VALUE", help="A setting: an argument of make_experiment."),
    click.Option(["--config"], type=click.Path(path_type=Path), is_eager=True, callback=adopt, help="Settings from a TOML file, and options of the verb from its table [VERB]; the command line goes before it."),
    click.Option(["-v", "--verbose"], count=True, help="Say more; twice for everything."),
    click.Option(["-q", "--quiet"], is_flag=True, help="Say nothing but errors."),
]  # fmt: skip

TRAIN_OPTIONS = [
    click.Option([*field.metadata["words"], field.name], **field.metadata["named"])
    for field in dataclasses.fields(TrainOptions)
    if field.metadata
]

weights_option = click.option("--weights", metavar="VERSION|FILE|best", help="A kept version, a checkpoint or an export, or the best evaluated [the newest].")  # fmt: skip


STEPPING_OPTIONS = [  # how a player's environments are stepped
    click.Option(["--workers"], type=int, default=0, help="Processes that step a player's environments, where stepping is heavy Python [none]."),
    click.Option(["--step-timeout"], type=float, metavar="SECONDS", help="Kill and replace a worker whose step takes longer."),
    click.Option(["--worker-memory"], type=int, metavar="MIB", help="Replace a worker that grows beyond."),
]  # fmt: skip


class RunCommand(click.Command):
    """A command about a run: its function gets a RunContext, then the command's own options by name."""

    callback: Callable[..., Any]
    shared: ClassVar[list[click.Option]] = RUN_OPTIONS

    def __init__(self, name: str | None, *, params: list[click.Parameter] | None = None, **named: Any) -> None:
        super().__init__(name, params=[*self.shared, *(params or [])], **named)

    def invoke(self, ctx: click.Context) -> Any:
        given = dict(ctx.params)
        first = self.gathered(ctx, given)
        return ctx.invoke(self.callback, *first, **given)

    def gathered(self, ctx: click.Context, given: dict[str, Any]) -> list[Any]:
        """The first arguments of the function, made of options that are taken out of `given`."""
        return [_run_context(ctx, **{str(option.name): given.pop(str(option.name)) for option in RUN_OPTIONS})]


class TrainCommand(RunCommand):
    """A command that learns: its function gets a RunContext, TrainOptions, then the command's own options by name."""

    shared = [*RUN_OPTIONS, *TRAIN_OPTIONS]

    def gathered(self, ctx: click.Context, given: dict[str, Any]) -> list[Any]:
        first = super().gathered(ctx, given)
        options = {name: given.pop(name) for name in list(given) if name in TrainOptions.__dataclass_fields__}
        if options.get("gpus") and ctx.get_parameter_source("device") is ParameterSource.DEFAULT:
            options["device"] = "cuda"
        return [*first, TrainOptions(**options)]


def _run_context(
    ctx: click.Context, *, redis: str | None, name: str | None, options: tuple[str, ...], config: Path | None, verbose: int, **given: Any
) -> RunContext:  # fmt: skip
    level = logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    typed = ctx.get_parameter_source("password") is ParameterSource.COMMANDLINE
    if typed or (redis and public(redis) != redis):
        print(
            "tinyverse: a password on the command line is seen by everyone on this machine; TINYVERSE_PASSWORD and TINYVERSE_REDIS_URL are not.",
            file=sys.stderr,
        )
    settings: dict[str, Any] = read(config)[0] if config else {}
    for option in options:
        setting, equals, value = option.partition("=")
        if not equals or not setting:
            raise SettingsError(f"-o {option}: write it as NAME=VALUE.")
        settings[setting.strip()] = value
    return RunContext(ctx.obj, name or "", settings, redis=redis, **given)
