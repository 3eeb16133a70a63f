"""Words: which experiment and which verb a command's first words name, and what was meant where they name none."""

from __future__ import annotations

import sys
from difflib import get_close_matches

import click

from tinyverse import __version__
from tinyverse.core.text import did_you_mean

VERBS = (
    "play", "train", "eval", "export", "run", "local", "info", "watch", "check", "sessions", "report", "config", "doctor",
    "stop", "clear",
)  # fmt: skip
GLOBALS = ("server", "plot", "new", "completion")
ALONE = ("info", "doctor")  # verbs that say something without an experiment too

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
