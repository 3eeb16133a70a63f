"""The door: `tinyverse EXPERIMENT VERB [options]`. Reads words, calls the verbs, prints; nothing else happens here.

Usage errors exit 2, run errors 1. Whatever is slow to import (torch, gymnasium) is imported after the options are
read, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tinyverse import __version__, completing, machine
from tinyverse.configuring import adopt, read
from tinyverse.errors import SettingsError, TinyverseError

if TYPE_CHECKING:
    from tinyverse.asked import Asked
    from tinyverse.training import Learning

VERBS = (
    "play", "train", "eval", "export", "run", "local", "info", "watch", "check", "sessions", "report", "config", "doctor",
    "stop", "clear",
)  # fmt: skip
GLOBALS = ("server", "plot", "new", "completion")
Command = Callable[..., Any]

USAGE = """\
tinyverse EXPERIMENT VERB [options]

EXPERIMENT is a file (atari.py), a module (my.games.pong), or a packaged example (atari, cartpole, catch, tabular).

\b
  tinyverse cartpole run --players 1    play and train on this machine, with one command
  tinyverse catch.py local              play and train in one process, without a server
  tinyverse atari.py play -b 8          step 8 games; as often as you like, on as many machines as you like
  tinyverse atari.py train -b 16        learn from what players push
  tinyverse atari.py eval -n 5          whole games: mean ± standard error, and a video in ./records

  tinyverse atari.py info               who does what, and what each waits for
  tinyverse atari.py watch              the run as a page in a browser: curves, workers, films, any player's game
  tinyverse atari.py report             a page to pass on: curve, film, settings, machine, commands
  tinyverse atari.py sessions ls        what was played: show ID, video ID, export FILE, import FILE
  tinyverse atari.py export FILE        the weights as plain safetensors, or as ONNX
  tinyverse atari.py config             every setting and option, and where its value comes from
  tinyverse atari.py check              builds everything once; stop and clear end a run and remove it

  tinyverse plot pong-s1 pong-s2        learning curves of these runs, as a PNG
  tinyverse new my_game.py              an experiment of your own to begin with, and a test for it
  tinyverse server start                or stop, status, users: the server on this machine
  tinyverse info                        the runs on the server
  tinyverse doctor                      is everything here as it should be?
  tinyverse completion bash             Tab completes experiments, verbs and options

Add --help after a verb for its options.
"""


def main(arguments: list[str] | None = None) -> None:
    """The console script. Never returns."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if completing.VARIABLE in os.environ and completing.answer(verbs, GLOBALS, completing.experiments):
        sys.exit(0)
    machine.prepare()
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))  # modules of this folder, as `python -m tinyverse` finds them by itself
    try:
        experiment, words = _sort_out(words)
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
        from tinyverse.loader import is_ours, user_traceback

        if is_ours(error) or "-vv" in words:
            raise
        _fail(
            f"the experiment raised {type(error).__name__} (-vv shows the whole way there):\n{user_traceback(error)}", 1
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"tinyverse: {message}", file=sys.stderr)
    sys.exit(code)


def _sort_out(words: list[str]) -> tuple[str, list[str]]:
    """(experiment, verb and options): the experiment is lifted out of the front."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.replace("\b\n", ""), end="")
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"tinyverse {__version__}")
        sys.exit(0)
    if words[0].startswith("-"):
        raise click.UsageError(f"options belong behind the verb: tinyverse EXPERIMENT VERB {words[0]} …")
    if words[0] in GLOBALS or (words[0] in ("info", "doctor") and (len(words) == 1 or words[1].startswith("-"))):
        return "", words
    if words[0] in VERBS:
        if len(words) > 1 and not words[1].startswith("-"):  # the first two words swapped
            return words[1], [words[0], *words[2:]]
        raise click.UsageError(f"which experiment? For example: tinyverse atari.py {words[0]}")
    if len(words) == 1:
        raise click.UsageError(
            f"{words[0]} and then what? For example: tinyverse {words[0]} run. Verbs: {', '.join(VERBS)}."
        )
    if words[1] not in (*VERBS, "-h", "--help"):
        if words[1].startswith("-"):
            raise click.UsageError(
                f"options belong behind the verb: tinyverse {words[0]} VERB {words[1]} … Verbs: {', '.join(VERBS)}."
            )
        close = get_close_matches(words[1], VERBS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise click.UsageError(f"there is no verb {words[1]!r}.{hint} Verbs: {', '.join(VERBS)}.")
    return words[0], words[1:]


# -- options --------------------------------------------------------------------------------------------------------


def _decorated(function: Command, decorators: list[Callable[[Command], Command]]) -> Command:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def common(function: Command) -> Command:
    """The options of every verb, gathered into one `Asked`."""

    @click.pass_obj
    @functools.wraps(function)
    def wrapped(
        experiment: str, /, redis: str | None, host: str | None, port: int | None, password: str | None, database: str | None, shards: int | None,
        name: str | None, seed: int | None, options: tuple[str, ...], config: Path | None, verbose: int, quiet: bool, **rest: Any,
    ) -> Any:  # fmt: skip
        from tinyverse.asked import Asked

        logging.basicConfig(
            level=logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING,
            format="%(name)s: %(message)s",
        )
        from tinyverse.redis_server import public

        given = click.get_current_context().get_parameter_source("password") is ParameterSource.COMMANDLINE
        if given or (redis and public(redis) != redis):
            print(
                "tinyverse: a password on the command line is seen by everyone on this machine; TINYVERSE_PASSWORD and TINYVERSE_REDIS_URL are not.",
                file=sys.stderr,
            )
        asked = Asked(
            experiment, name or "", _settings(config, options), redis=redis, host=host, port=port, password=password,
            database=database, shards=shards, seed=seed, quiet=quiet,
        )  # fmt: skip
        return function(asked, **rest)

    return _decorated(wrapped, [
        click.option("--redis", metavar="URL", help="The server, e.g. redis://host:6379/0, rediss:// with TLS, unix://; several, with commas, share the sessions. [env: TINYVERSE_REDIS_URL, REDIS_URL]"),
        click.option("--host", help="The server's host (as --redis redis://HOST:PORT/0)."),
        click.option("--port", type=int, help="The server's port [6379]."),
        click.option("--password", envvar="TINYVERSE_PASSWORD", help="The server's password; better in the URL's environment variable."),
        click.option("--database", metavar="MODULE:CLASS", help="A Database class of your own instead of Redis."),
        click.option("--shards", type=int, envvar="TINYVERSE_SHARDS", help="Streams over which sessions are spread, the same for all workers of a run [one for each URL]."),
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
        from tinyverse.training import Learning

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
        click.option("--on-nan", type=click.Choice(["stop", "rollback"]), default="stop", show_default=True, help="After NaN: end, with the batch kept for inspection, or go on from the last checkpoint."),
        click.option("--player-share", type=float, default=1.0, show_default=True, metavar="0…1", help="Keep no more of one player's sessions than this, while others play."),
        click.option("--track", multiple=True, metavar="WHERE", help="Log to wandb or mlflow too; each is an extra. metrics.jsonl and TensorBoard are always written."),
        click.option("--metrics-port", metavar="[HOST:]PORT", help="Serve the newest numbers to Prometheus; without HOST to this machine only."),
        click.option("--save-every", type=float, default=60.0, show_default=True, metavar="SECONDS", help="Between two checkpoints."),
    ])  # fmt: skip


def _settings(config: Path | None, options: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = read(config)[0] if config else {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise SettingsError(f"-o {option}: write it as NAME=VALUE.")
        settings[name.strip()] = value
    return settings


# -- verbs ----------------------------------------------------------------------------------------------------------


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "auto_envvar_prefix": "TINYVERSE",
    },
    help=USAGE,
)
def verbs() -> None:
    pass


def stepping(function: Command) -> Command:
    """How a player's games are stepped."""
    return _decorated(function, [
        click.option("--workers", type=int, default=0, help="Processes that step a player's games, where stepping is heavy Python [none]."),
        click.option("--step-timeout", type=float, metavar="SECONDS", help="Kill and replace a worker whose step takes longer."),
        click.option("--worker-memory", type=int, metavar="MIB", help="Replace a worker that grows beyond."),
    ])  # fmt: skip


@verbs.command()
@common
@click.option("-b", "--games", "games", type=int, help="Games stepped at once [the experiment's, else 1].")
@click.option("-n", "batches", type=int, help="Batches of sessions to play [no end].")
@click.option(
    "-s", "sync_every", type=int, default=1, show_default=True, help="Batches between two looks for new weights."
)
@click.option(
    "--cores", type=int, default=1, show_default=True, help="With 2 or more, games are stepped while the agent acts."
)
@stepping
@click.option("--device", default="cpu", show_default=True, help="Where to act.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Of acting [the experiment's].")
@click.option("--human", is_flag=True, help="You play, in a window; the experiment or its environment names the keys.")
@click.option("--fps", type=float, help="Steps a second of --human [the environment's].")
def play(asked: Asked, **options: Any) -> None:
    """Steps a batch of games and pushes sessions.

    Example: tinyverse atari.py play -b 8
    """
    from tinyverse.playing import do_play

    do_play(asked, **options)


@verbs.command()
@common
@learning
@click.option(
    "--gpus",
    "--ranks",
    "gpus",
    type=int,
    metavar="N",
    help="Learn as N processes on this machine, each on a GPU of its own, or with --device cpu on its cores; they share the batch.",
)
def train(asked: Asked, wanted: Learning) -> None:
    """Learns from pushed sessions and publishes weights.

    Example: tinyverse atari.py train -b 16 -o learning_rate=3e-4
    """
    from tinyverse import towers
    from tinyverse.training import do_train, launch

    if wanted.gpus is not None and not towers.launched():
        launch(asked, wanted, wanted.gpus, sys.argv[1:])
    else:
        do_train(asked, wanted)


@verbs.command()
@common
@learning
@click.option("--players", type=int, default=1, show_default=True, help="Player processes.")
@click.option("--games", type=int, help="Games per player [the experiment's].")
@stepping
def run(asked: Asked, wanted: Learning, **options: Any) -> None:
    """Server, players, trainer and dashboard here, with one command. Ctrl-C ends them all.

    Example: tinyverse cartpole.py run --players 2
    """
    from tinyverse.together import do_run

    do_run(asked, wanted, **options)


@verbs.command()
@common
@learning
@click.option("--games", type=int, help="Games at once [the experiment's, at most -b].")
def local(asked: Asked, wanted: Learning, **options: Any) -> None:
    """Plays and trains in one process, in lockstep, without a server.

    Example: tinyverse catch.py local
    """
    from tinyverse.together import do_local

    do_local(asked, wanted, **options)


WEIGHTS = click.option(
    "--weights",
    metavar="VERSION|FILE|best",
    help="A kept version, a checkpoint or an export, or the best evaluated [the newest].",
)


@verbs.command(name="eval")
@common
@click.option("-n", "games", type=int, default=1, show_default=True, help="Games to play.")
@click.option("-b", "at_once", type=int, default=1, show_default=True, help="Games at once.")
@click.option("-j", "jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option("--greedy", is_flag=True, help="The likeliest action instead of a sample.")
@click.option("--render", is_flag=True, help="Show the first game in a window.")
@WEIGHTS
@click.option("--video/--no-video", default=True, show_default=True, help="Film the first game into ./records.")
@click.option(
    "--every",
    type=float,
    is_flag=False,
    flag_value=1.0,
    metavar="[SECONDS]",
    help="Go on with the newest weights, at most once in so many seconds [1], and keep the best.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to act.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per evaluation.")
def evaluate(asked: Asked, as_json: bool, **options: Any) -> None:
    """Plays whole games: mean ± standard error, and a video.

    Example: tinyverse atari.py eval -n 5
    """
    from tinyverse.judging import do_eval

    def show(result: Any) -> None:
        if as_json:
            facts = {
                "run": asked.run,
                "version": result.version,
                "mean": result.mean,
                "returns": result.returns,
                "lengths": result.lengths,
            }
            error = None if len(result.returns) < 2 else result.standard_error
            print(
                json.dumps({**facts, "standard_error": error, "video": result.video and str(result.video)}), flush=True
            )
        else:
            print(f"{asked.run}: {result}", flush=True)
            if options["video"] and not options["render"]:
                print(f"video: {result.video}" if result.video else result.note, flush=True)

    do_eval(asked, on_result=show, **options)


@verbs.command()
@common
@click.argument("file", type=click.Path(path_type=Path))
@WEIGHTS
def export(asked: Asked, file: Path, weights: str | None) -> None:
    """Writes the weights with their settings to FILE.safetensors, or a network that acts to FILE.onnx.

    Example: tinyverse atari.py export pong.safetensors --weights best
    """
    from tinyverse.exporting import do_export

    print(do_export(asked, file, weights=weights))


@verbs.command()
@common
@click.option("--watch", is_flag=True, help="Draw it anew each second.")
@click.option("--errors", is_flag=True, help="The last errors that ended a worker, with their tracebacks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(asked: Asked, **options: Any) -> None:
    """Who does what, and what each waits for. Without an experiment: the runs on the server.

    Example: tinyverse atari.py info --watch
    """
    from tinyverse.tidying import do_info

    do_info(asked, **options)


@verbs.command()
@common
@click.option(
    "--listen",
    default="127.0.0.1:7080",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to serve it; on another address than loopback, with a token.",
)
@click.option(
    "--values/--no-values",
    default=True,
    show_default=True,
    help="Build the experiment's agent here, to draw what it thinks of a state.",
)
def watch(asked: Asked, **options: Any) -> None:
    """The run as a page in a browser, which reads and changes nothing: curves, workers, films, any player's game.

    Example: tinyverse atari.py watch
    """
    from tinyverse.watching import do_watch

    do_watch(asked, on_url=lambda url: print(f"open {url} (Ctrl-C ends it)", flush=True), **options)


@verbs.command()
@common
def check(asked: Asked) -> None:
    """Builds everything once and shows names, shapes, bytes and milliseconds.

    Example: tinyverse my_game.py check
    """
    from tinyverse.judging import do_check

    rows = do_check(asked)
    width = max(len(what) for what, _ in rows)
    for what, seen in rows:
        print(f"{what:<{width}}  {seen}")
    print("all is well")


@verbs.command()
@common
def stop(asked: Asked) -> int:
    """Asks every worker of the run, wherever it is, to finish and leave.

    Example: tinyverse atari.py stop
    """
    from tinyverse.tidying import do_stop

    before, left = do_stop(asked)
    print(f"{before - left} of {before} workers of run {asked.run} have left")
    return 1 if left else 0


@verbs.command()
@common
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-weights", is_flag=True, help="Keep the weights and the agreement on settings.")
@click.option("--force", is_flag=True, help="Also while workers live.")
@click.option("--stop", "stop_server", is_flag=True, help="End this user's local server afterwards.")
def clear(asked: Asked, yes: bool, keep_weights: bool, force: bool, stop_server: bool) -> None:
    """Removes the run's sessions, weights and bookkeeping from the database; runs/NAME stays.

    Example: tinyverse atari.py clear --yes
    """
    from tinyverse import redis_server
    from tinyverse.tidying import do_clear

    what = "sessions and bookkeeping" if keep_weights else "sessions, weights and bookkeeping"
    if not yes:
        click.confirm(f"Remove the {what} of run {asked.run} from the database?", abort=True)
    do_clear(asked, keep_weights=keep_weights, force=force)
    print(f"removed the {what} of run {asked.run}")
    if stop_server and redis_server.stop():
        print("stopped the local server")


@verbs.command()
@common
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def doctor(asked: Asked, as_json: bool) -> int:
    """Looks at Python, torch, this machine, the server and, if one is named, the experiment. Exits 1 after a warning.

    Example: tinyverse atari.py doctor
    """
    from tinyverse.doctor import do_doctor

    findings = []
    for finding in do_doctor(asked):
        findings.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(
            json.dumps(
                [{"what": each.what, "ok": each.ok, "said": each.said, "advice": each.advice} for each in findings]
            )
        )
    return 0 if all(finding.ok for finding in findings) else 1


@verbs.group()
def sessions() -> None:
    """The stored sessions: as a list, a table, a film, or files.

    Example: tinyverse atari.py sessions ls
    """


ID = click.argument("key", metavar="[ID]", required=False)


@sessions.command(name="ls")
@common
@click.option("-n", "limit", type=int, default=20, show_default=True, help="How many of the newest to look at.")
@click.option("--human", is_flag=True, help="Of these, only what people played.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def sessions_ls(asked: Asked, **options: Any) -> None:
    """The newest sessions, a line each.

    Example: tinyverse atari.py sessions ls -n 50
    """
    from tinyverse.looking import do_list

    do_list(asked, **options)


@sessions.command(name="show")
@common
@ID
@click.option(
    "--values", is_flag=True, help="Ask the experiment's agent, with the newest weights, for value and entropy."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def sessions_show(asked: Asked, key: str | None, **options: Any) -> None:
    """A session, the newest if no ID is given, step by step.

    Example: tinyverse atari.py sessions show 1700000000000-0
    """
    from tinyverse.looking import do_show

    do_show(asked, key, **options)


@sessions.command(name="video")
@common
@ID
@click.option("--fps", type=float, default=15.0, show_default=True, help="Steps a second.")
def sessions_video(asked: Asked, key: str | None, fps: float) -> None:
    """A film of what the agent saw, into ./records.

    Example: tinyverse atari.py sessions video 1700000000000-0
    """
    from tinyverse.looking import do_film

    print(f"video: {do_film(asked, key, fps=fps)}")


@sessions.command(name="export")
@common
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-n", "limit", type=int, help="Of the newest so many [all].")
@click.option("--human", is_flag=True, help="Only what people played.")
def sessions_export(asked: Asked, file: Path, **options: Any) -> None:
    """Stored sessions as files: FILE.json, and shards of safetensors beside it; or FILE.h5, for other tools.

    Example: tinyverse atari.py sessions export demos.json --human
    """
    from tinyverse.looking import do_export, do_export_hdf5

    if file.suffix == ".h5":
        print(f"{do_export_hdf5(asked, file, **options):,} sessions in {file}")
        return
    found = do_export(asked, file, **options)
    print(f"{len(found):,} sessions, shards: {len(found.shards)}, index: {found.path}")


@sessions.command(name="import")
@common
@click.argument("file", type=click.Path(path_type=Path))
def sessions_import(asked: Asked, file: Path) -> None:
    """Pushes exported sessions into the run, if all of them fit it. What its trainer has had already it passes over.

    Example: tinyverse atari.py sessions import demos.json
    """
    from tinyverse.looking import do_import

    print(f"{do_import(asked, file):,} sessions imported into run {asked.run}")


@verbs.command(name="config")
@common
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
def show_config(context: click.Context, asked: Asked, as_json: bool) -> None:
    """Every setting and option that has a value, and where it comes from: command line, environment, file, experiment.

    Example: tinyverse atari.py config --config fast.toml
    """
    from tinyverse.configuring import effective

    config, options = context.params["config"], dict(each.split("=", 1) for each in context.params["options"])
    words = ["--config", str(config)] if config else []
    contexts = {
        verb: verbs.commands[verb].make_context(verb, list(words), parent=context.parent)
        for verb in ("play", "train", "eval")
    }
    values = list(effective(asked, config, options, contexts))
    if as_json:
        print(json.dumps([value._asdict() for value in values], default=str))
        return
    widths = [max(len(str(value[column])) for value in values) for column in range(3)]
    for value in values:
        print("  ".join(f"{word!s:<{width}}" for word, width in zip(value, [*widths, 0], strict=True)).rstrip())


@verbs.command()
@common
@click.argument("others", nargs=-1, metavar="[RUN]...")
def report(asked: Asked, others: tuple[str, ...]) -> None:
    """One page about a run to pass on, with its curve, a film if `eval` has made one, settings, machine, versions and the
    commands that made it: report.html and report.md in runs/NAME. Further RUNs are other seeds of the same settings.

    Example: tinyverse atari.py report --name pong-s1 pong-s2 pong-s3
    """
    from tinyverse.reporting import do_report

    page, text = do_report(asked, others)
    print(f"report: {page} and {text.name}")


@verbs.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("records/plot.png"),
    show_default=True,
    help="The PNG to write.",
)
@click.option(
    "-x",
    type=click.Choice(["step", "frames", "seconds", "minutes", "update"]),
    default="step",
    show_default=True,
    help="Over what.",
)
@click.option(
    "-y", default="play/return", show_default=True, metavar="METRIC", help="A name in metrics.jsonl, e.g. eval/return."
)
@click.option("--title", default="", help="Words above the curves.")
def plot(runs: tuple[str, ...], **options: Any) -> None:
    """Draws learning curves. A RUN is a name in ./runs or a folder; names that differ only in -s1, -s2 … are seeds of one
    curve, its mean with a band from the lowest to the highest. LABEL=RUN,RUN puts runs into one curve by hand.

    Example: tinyverse plot pong-s1 pong-s2 before=old-pong -x minutes
    """
    from tinyverse.plotting import do_plot

    print(f"curve: {do_plot(runs, **options)}")


@verbs.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Writes an experiment around a small environment of your own into FILE, with comments, and a test beside it.

    Example: tinyverse new my_game.py
    """
    from tinyverse.beginning import do_new

    made, test = do_new(file)
    print(f"wrote {made} and {test}. Next: tinyverse {made} check, then tinyverse {made} local -n 300")


@verbs.command()
@click.argument("shell")
def completion(shell: str) -> None:
    """Prints what bash, zsh or fish evaluates to complete experiments, verbs and options.

    Example: eval "$(tinyverse completion bash)"
    """
    from tinyverse.completing import script

    print(script(verbs, shell))


@verbs.group()
def server() -> None:
    """This user's local database server.

    Example: tinyverse server status
    """


@server.command(name="start")
@click.option(
    "--listen",
    metavar="HOST[:PORT]",
    help="Listen on TCP too, for other machines, with a password; without it only on a socket. [port 7070]",
)
@click.option(
    "--max-memory", metavar="MB", type=int, help="Memory it may use [a quarter of the machine's, at most 4000]."
)
def server_start(listen: str | None, max_memory: int | None) -> None:
    """Starts it, unless it runs.

    Example: tinyverse server start --listen 10.0.0.5:7070
    """
    from tinyverse import redis_server

    started = redis_server.start(listen, max_memory * 1_000_000 if max_memory else None)
    print(f"server {started.version} runs in {started.folder} (pid {started.pid})")
    if started.tcp_url:
        print(f"others reach it with TINYVERSE_REDIS_URL={redis_server.for_others(started.tcp_url)}")
        print("which may do everything in every run; for players of one run: tinyverse server users RUN")


@server.command(name="users")
@click.argument("run")
@click.option(
    "--redis",
    metavar="URL",
    help="A server of your own, with a user who may make others; better in TINYVERSE_REDIS_URL.",
)
def server_users(run: str, redis: str | None) -> None:
    """Makes three users for a run: a player, a trainer, and a viewer who only reads. Again: new passwords.

    Example: tinyverse server users pong
    """
    from tinyverse import access

    for role, url in access.make_users(run, redis).items():
        print(f"{role:<8} TINYVERSE_REDIS_URL={url}")


@server.command(name="stop")
def server_stop() -> None:
    """Stops it; what it holds is gone."""
    from tinyverse import redis_server

    print("stopped" if redis_server.stop() else "no local server was running")


@server.command(name="status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def server_status(as_json: bool) -> int:
    """Whether it runs, where, and how much it holds."""
    from tinyverse import redis_server

    facts = redis_server.status()
    if as_json:
        print(json.dumps(facts))
    elif facts is None:
        print("no local server runs")
    else:
        print(f"server {facts['version']} in {facts['folder']} (pid {facts['pid']}), up {facts['uptime']} s, "
              f"{facts['memory'] / 1e6:.1f} of {facts['max_memory'] / 1e6:.0f} MB, {facts['clients']} clients")  # fmt: skip
        print(f"TINYVERSE_REDIS_URL={facts['tcp_url'] or facts['url']}")
    return 0 if facts else 1
