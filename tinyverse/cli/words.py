"""The commands there are, and which experiment and which command the first words of a command line name.

VERBS want an experiment before them, GLOBALS stand alone, and ALONE are verbs that say something without one too.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import NamedTuple

import click

from tinyverse import __version__
from tinyverse.core.text import did_you_mean


class Listed(NamedTuple):
    """A command, before its module is imported."""

    where: str  # module:attribute
    example: str
    help: str


_LEARNING = {
    "run": Listed("tinyverse.cli.run:run", "cartpole run --players 1", "plays and trains on this machine, with one command"),
    "local": Listed("tinyverse.cli.local:local", "catch.py local", "plays and trains in one process, without a server"),
    "play": Listed("tinyverse.cli.play:play", "atari.py play -b 8", "steps 8 environments; as often as you like, on as many machines as you like"),
    "train": Listed("tinyverse.cli.train:train", "atari.py train -b 16", "learns from what players push"),
    "eval": Listed("tinyverse.cli.eval:evaluate", "atari.py eval -n 5", "whole episodes: mean ± standard error, and a video in ./records"),
}  # fmt: skip

_LOOKING = {
    "info": Listed("tinyverse.cli.info:info", "atari.py info", "who does what, and what each waits for; without EXPERIMENT: the runs there are"),
    "watch": Listed("tinyverse.cli.watch:watch", "atari.py watch", "the run as a page in a browser: curves, workers, films, any player's environment"),
    "report": Listed("tinyverse.cli.report:report", "atari.py report", "a page to pass on: curve, film, settings, machine, commands"),
    "sessions": Listed("tinyverse.cli.sessions:sessions", "atari.py sessions ls", "what was played: show ID, video ID, export FILE, import FILE"),
    "export": Listed("tinyverse.cli.export:export", "atari.py export FILE", "the weights as plain safetensors, or as ONNX"),
    "config": Listed("tinyverse.cli.config:config", "atari.py config", "every setting and option, and where its value comes from"),
    "check": Listed("tinyverse.cli.check:check", "atari.py check", "builds everything once, and shows it"),
    "doctor": Listed("tinyverse.cli.doctor:doctor", "atari.py doctor", "is everything here as it should be? Also without EXPERIMENT"),
    "stop": Listed("tinyverse.cli.stop:stop", "atari.py stop", "asks every worker of the run to finish and leave"),
    "clear": Listed("tinyverse.cli.clear:clear", "atari.py clear", "removes the run from the database"),
}  # fmt: skip

GLOBALS = {
    "plot": Listed("tinyverse.cli.plot:plot", "plot pong-s1 pong-s2", "learning curves of these runs, as a PNG"),
    "new": Listed("tinyverse.cli.new:new", "new my_game.py", "an experiment of your own to begin with, and a test for it"),
    "server": Listed("tinyverse.cli.server:server", "server start", "or stop, status, users: the server on this machine"),
    "completion": Listed("tinyverse.cli.completion:completion", "completion bash", "Tab completes experiments, verbs and options"),
}  # fmt: skip

VERBS = _LEARNING | _LOOKING
ALONE = ("info", "doctor")


def _lines(commands: dict[str, Listed]) -> str:
    return "".join(f"  tinyverse {command.example:<26}  {command.help}\n" for command in commands.values())


USAGE = f"""\
tinyverse EXPERIMENT VERB [options]

EXPERIMENT is a file (atari.py), a module (my.games.pong), or a packaged example (atari, cartpole, catch, tabular).

\b
{_lines(_LEARNING)}
\b
{_lines(_LOOKING)}
\b
{_lines(GLOBALS)}
Add --help after a verb for its options.
"""


def sort_out(words: list[str]) -> tuple[str, list[str]]:
    """(experiment, verb and options): the experiment is lifted out of the front; "" where the verb needs none.

    Help and version are printed, and end the process.

    Raises:
        click.UsageError: the words name no verb, or an experiment in the wrong place; says what was meant.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.replace("\b\n", ""), end="")
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"tinyverse {__version__}")
        sys.exit(0)
    if words[0].startswith("-"):
        raise click.UsageError(f"options belong behind the verb: tinyverse EXPERIMENT VERB {words[0]} …")
    if words[0] in GLOBALS or (words[0] in ALONE and (len(words) == 1 or words[1].startswith("-"))):
        return "", words
    if words[0] in VERBS:
        if len(words) > 1 and not words[1].startswith("-"):  # the first two words swapped
            return words[1], [words[0], *words[2:]]
        raise click.UsageError(f"which experiment? For example: tinyverse atari.py {words[0]}")
    if meant := _meant(words):
        raise click.UsageError(f"{words[0]} is no experiment. Did you mean: tinyverse {meant}")
    if len(words) == 1:
        raise click.UsageError(
            f"{words[0]} and then what? For example: tinyverse {words[0]} run. Verbs: {', '.join(VERBS)}."
        )
    if words[1] not in (*VERBS, "-h", "--help"):
        if words[1].startswith("-"):
            raise click.UsageError(
                f"options belong behind the verb: tinyverse {words[0]} VERB {words[1]} … Verbs: {', '.join(VERBS)}."
            )
        hint = did_you_mean(words[1], VERBS)
        raise click.UsageError(f"there is no verb {words[1]!r}.{hint} Verbs: {', '.join(VERBS)}.")
    return words[0], words[1:]


def _meant(words: list[str]) -> str:
    """The command that was meant where its word, mistyped, stands in the experiment's place; "" where it does not."""
    first, rest = words[0], words[1:]
    known = GLOBALS if rest and rest[0] in VERBS else (*GLOBALS, *VERBS)
    close = get_close_matches(first, known, 1)
    if not close:
        return ""
    from tinyverse.experiment.loader import is_experiment

    verb_follows = rest and get_close_matches(rest[0], VERBS) and not is_experiment(rest[0])
    if is_experiment(first) or (verb_follows and close[0] in VERBS):
        return ""
    if close[0] in GLOBALS or (close[0] in ALONE and (not rest or rest[0].startswith("-"))):
        return " ".join([close[0], *rest])
    swapped = rest and not rest[0].startswith("-")
    return " ".join([rest[0], close[0], *rest[1:]] if swapped else ["EXPERIMENT", close[0], *rest])
