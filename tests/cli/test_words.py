"""Every wrong word gets one good sentence."""

from __future__ import annotations

import pytest

from tests.helpers.command_line import Tinyverse, one_sentence, swap_with_spy
from tinyverse.cli import play


@pytest.mark.parametrize("words", [["play", "catch"], ["catch", "play"]])
def test_the_first_two_words_may_be_swapped(
    tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    calls = swap_with_spy(monkeypatch, play.play, "callback")
    assert tinyverse(*words, "-b", 2).code == 0
    (((context,), options),) = calls
    assert context.experiment == "catch" and options["num_envs"] == 2


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["-b", "3", "catch", "play"], ["options belong behind the verb: tinyverse EXPERIMENT VERB -b"]),
        (["catch", "-b", "3", "play"], ["options belong behind the verb: tinyverse catch VERB -b"]),
        (["catch"], ["tinyverse catch run"]),
        (["play"], ["which experiment? For example: tinyverse atari.py play"]),
        (["catch", "trian"], ["no verb 'trian'", "Did you mean train?", "Verbs: run, local, play, train"]),
        (["catch", "xyzzy"], ["no verb 'xyzzy'. Verbs: run"]),
        (["wacth"], ["wacth is no experiment. Did you mean: tinyverse EXPERIMENT watch"]),
        (["infoo", "--json"], ["Did you mean: tinyverse info --json"]),
        (["trian", "catch", "-b", "3"], ["Did you mean: tinyverse catch train -b 3"]),
        (["servr", "start"], ["servr is no experiment. Did you mean: tinyverse server start"]),
        (["plto", "a", "b"], ["Did you mean: tinyverse plot a b"]),
        (["catc", "trian"], ["no verb 'trian'", "Did you mean train?"]),
        (["catch", "play", "--batch", "3"], ["No such option", "--batch"]),
        (["catch", "play", "--num-evns", "3"], ["No such option '--num-evns'", "'--num-envs'"]),
        (["catch", "sessions", "shwo"], ["No such command 'shwo'", "'show'"]),
        (["catch", "play", "-b", "many"], ["'many' is not a valid integer"]),
        (["catch", "play", "surprise"], ["unexpected extra argument"]),
        (["server", "strat"], ["No such command 'strat'", "'start'"]),
    ],
)
def test_wrong_words(tinyverse: Tinyverse, words: list[str], parts: list[str]) -> None:
    one_sentence(tinyverse(*words), 2, *parts)
