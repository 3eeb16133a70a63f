"""The door: `tinyverse EXPERIMENT VERB [options]`. Reads words, calls the verbs, prints; nothing else happens here.

Usage errors exit 2, run errors 1. Whatever is slow to import (torch, gymnasium) is imported after the options are
read, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyverse.cli import completion as completing
from tinyverse.cli.options import common, learning, stepping
from tinyverse.cli.server import server
from tinyverse.cli.sessions import sessions
from tinyverse.cli.words import GLOBALS, USAGE, sort_out
from tinyverse.core import system
from tinyverse.core.errors import SettingsError, TinyverseError

if TYPE_CHECKING:
    from tinyverse.cli.context import Asked
    from tinyverse.cli.train import Learning


def main(arguments: list[str] | None = None) -> None:
    """The console script. Never returns."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ± that a terminal or a log does not know is no reason to fail
    if completing.VARIABLE in os.environ and completing.answer(verbs, GLOBALS, completing.experiments):
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


verbs.add_command(sessions)
verbs.add_command(server)


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
    from tinyverse.cli.play import do_play

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
    from tinyverse.cli.train import do_train, launch
    from tinyverse.core import distributed

    if wanted.gpus is not None and not distributed.launched():
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
    from tinyverse.cli.run import do_run

    do_run(asked, wanted, **options)


@verbs.command()
@common
@learning
@click.option("--games", type=int, help="Games at once [the experiment's, at most -b].")
def local(asked: Asked, wanted: Learning, **options: Any) -> None:
    """Plays and trains in one process, in lockstep, without a server.

    Example: tinyverse catch.py local
    """
    from tinyverse.cli.run import do_local

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
    from tinyverse.cli.eval import do_eval

    asked.bars = not as_json

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
    from tinyverse.cli.export import do_export

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
    from tinyverse.cli.info import do_info

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
    from tinyverse.cli.watch import do_watch

    do_watch(asked, on_url=lambda url: print(f"open {url} (Ctrl-C ends it)", flush=True), **options)


@verbs.command()
@common
def check(asked: Asked) -> None:
    """Builds everything once and shows names, shapes, bytes and milliseconds.

    Example: tinyverse my_game.py check
    """
    from tinyverse.cli.eval import do_check

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
    from tinyverse.cli.info import do_stop

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
    from tinyverse.cli.info import do_clear
    from tinyverse.database import server as redis_server

    what = "sessions and bookkeeping" if keep_weights else "sessions, weights and bookkeeping"

    def confirm() -> None:
        if not yes:
            click.confirm(f"Remove the {what} of run {asked.run} from the database?", abort=True)

    do_clear(asked, keep_weights=keep_weights, force=force, confirm=confirm)
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
    from tinyverse.cli.doctor import do_doctor

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


@verbs.command(name="config")
@common
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
def show_config(context: click.Context, asked: Asked, as_json: bool) -> None:
    """Every setting and option that has a value, and where it comes from: command line, environment, file, experiment.

    Example: tinyverse atari.py config --config fast.toml
    """
    from tinyverse.cli.config import effective

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
    from tinyverse.monitoring.report import do_report

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
    from tinyverse.cli.plot import do_plot
    from tinyverse.monitoring.progress import Bar

    with Bar("drawing the curves"):
        path = do_plot(runs, **options)
    print(f"curve: {path}")


@verbs.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Writes an experiment around a small environment of your own into FILE, with comments, and a test beside it.

    Example: tinyverse new my_game.py
    """
    from tinyverse.cli.new import do_new

    made, test = do_new(file)
    print(f"wrote {made} and {test}. Next: tinyverse {made} check, then tinyverse {made} local -n 300")


@verbs.command()
@click.argument("shell")
def completion(shell: str) -> None:
    """Prints what bash, zsh or fish evaluates to complete experiments, verbs and options.

    Example: eval "$(tinyverse completion bash)"
    """
    from tinyverse.cli.completion import script

    print(script(verbs, shell))
