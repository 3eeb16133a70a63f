"""The commands there are, and which experiment and which command the first words of a command line name.

VERBS want an experiment before them, GLOBALS stand alone, and ALONE are verbs that say something without one too.
"""

import sys
from difflib import get_close_matches

import click

from tinyverse import __version__
from tinyverse.core.text import did_you_mean

_LEARNING = {  # verb: (example, help)
    "run": ("cartpole run --players 1", "plays and trains on this machine, with one command"),
    "local": ("catch.py local", "plays and trains in one process, without a server"),
    "play": ("atari.py play -b 8", "steps 8 environments; as often as you like, on as many machines as you like"),
    "train": ("atari.py train -b 16", "learns from what players push"),
    "eval": ("atari.py eval -n 5", "whole episodes: mean ± standard error, and a video in ./records"),
}  # fmt: skip

_LOOKING = {
    "info": ("atari.py info", "who does what, and what each waits for; without EXPERIMENT: the runs there are"),
    "watch": ("atari.py watch", "the run as a page in a browser: curves, workers, videos, any player's environment"),
    "report": ("atari.py report", "a page to pass on: curve, video, settings, machine, commands"),
    "sessions": ("atari.py sessions ls", "what was played: show ID, video ID, export FILE, import FILE"),
    "export": ("atari.py export FILE", "the weights as plain safetensors, or as ONNX"),
    "config": ("atari.py config", "every setting and option, and where its value comes from"),
    "check": ("atari.py check", "builds everything once, and shows it"),
    "doctor": ("atari.py doctor", "is everything here as it should be? Also without EXPERIMENT"),
    "stop": ("atari.py stop", "asks every worker of the run to finish and leave"),
    "clear": ("atari.py clear", "removes the run from the database"),
}  # fmt: skip

GLOBALS = {
    "plot": ("plot pong-s1 pong-s2", "learning curves of these runs, as a PNG"),
    "new": ("new my_game.py", "an experiment of your own to begin with, and a test for it"),
    "server": ("server start", "or stop, status, users: the server on this machine"),
    "completion": ("completion bash", "Tab completes experiments, verbs and options"),
}  # fmt: skip

VERBS = _LEARNING | _LOOKING
ALONE = ("info", "doctor")


def _lines(commands: dict[str, tuple[str, str]]) -> str:
    return "".join(f"  tinyverse {example:<26}  {help}\n" for example, help in commands.values())


USAGE = f"""\
tinyverse EXPERIMENT VERB [options]

EXPERIMENT is a file (atari.py), a module (my.games.pong), or a packaged example (atari, cartpole, catch, tabular).

{_lines(_LEARNING)}
{_lines(_LOOKING)}
{_lines(GLOBALS)}
Add --help after a verb for its options.
"""


def sort_out(words: list[str]) -> tuple[str, list[str]]:
    """(experiment, verb and options): the experiment is lifted out of the front; "" where the verb needs none.

    Help and version are printed, and end the process. A click.UsageError says what was meant by other words.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if words else 2)
    first, *rest = words
    if first == "--version":
        print(f"tinyverse {__version__}")
        sys.exit(0)
    if first.startswith("-"):
        raise click.UsageError(f"options belong behind the verb: tinyverse EXPERIMENT VERB {first} …")
    if first in GLOBALS or (first in ALONE and (not rest or rest[0].startswith("-"))):
        return "", words
    if first in VERBS:
        if rest and not rest[0].startswith("-"):  # the first two words swapped
            return rest[0], [first, *rest[1:]]
        raise click.UsageError(f"which experiment? For example: tinyverse atari.py {first}")
    if meant := _meant(first, rest):
        raise click.UsageError(f"{first} is no experiment. Did you mean: tinyverse {meant}")
    verbs = f"Verbs: {', '.join(VERBS)}."
    if not rest:
        raise click.UsageError(f"{first} and then what? For example: tinyverse {first} run. {verbs}")
    if rest[0] in (*VERBS, "-h", "--help"):
        return first, rest
    if rest[0].startswith("-"):
        raise click.UsageError(f"options belong behind the verb: tinyverse {first} VERB {rest[0]} … {verbs}")
    raise click.UsageError(f"there is no verb {rest[0]!r}.{did_you_mean(rest[0], VERBS)} {verbs}")


def _meant(first: str, rest: list[str]) -> str:
    """The command that was meant where its word, mistyped, stands in the experiment's place; "" where it does not."""
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
