"""Result cards: true, whole in one file, and without a secret or a way to inject markup."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tinyverse.cli.context import RunContext, without_secrets
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.cli.report import report
from tinyverse.core import system
from tinyverse.core.errors import RunConflict, SettingsError
from tinyverse.monitoring.reference_scores import ATARI, published
from tinyverse.monitoring.report import _result
from tinyverse.trainer.run_folder import RunFolder

START = {
    "when": "2026-01-01", "argv": ["atari.py", "run", "-o", "a b=1"], "seed": 7, "source": "/x/atari.py", "device": "cpu",
    "machine": {"cpu": "Abacus", "cores": 4, "memory": 8e9, "gpus": [], "system": "Linux"}, "versions": {"python": "3.11"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def a_run(name, seed=7, rate=1e-3, words="<b>|"):
    folder = RunFolder(Path("runs") / name)
    settings = {"env_id": "ALE/Pong-v5", "rate": rate, "words": words}
    folder.write_settings({"experiment": "atari", "settings": settings, "seed": seed})
    folder.log({**START, "seed": seed}, "starts")
    folder.log({**START, "argv": ["atari.py", "train", "--seed", "3"]}, "starts")
    for n in range(1, 4):
        folder.log(
            {"seconds": 10.0 * n, "step": 500 * n, "frames": 2000 * n, "update": n, "play/return": -20.0 + n % 3}
        )
    folder.log({"step": 1500, "update": 3, "eval/return": 4.5, "eval/standard_error": 0.25, "eval/episodes": 8})
    return folder


def a_report(context, others=()):
    """The paths of what the command `report` writes."""
    report.callback(context, others)
    return context.folder.path / "report.html", context.folder.path / "report.md"


def test_the_card_says_what_the_run_says():
    folder = a_run("pong")
    page, text = a_report(RunContext("atari.py", "pong"))
    assert (page, text) == (folder.path / "report.html", folder.path / "report.md")
    said = text.read_text()
    assert "| pong | 7 | 1,500 | 6,000 | 3 | 30s | 200 | 50 | -20.00 | -18.00 | 4.50 ± 0.25, 8 episodes |" in said
    for row in ("| human | 9.3 |", "| rate | 0.001 |", "| processor | Abacus, 4 cores |", "| python | 3.11 |"):
        assert row in said
    assert "```\ntinyverse atari.py run -o 'a b=1' --seed 7\ntinyverse atari.py train --seed 3\n```" in said
    assert (folder.path / "report.png").exists() and "tinyverse atari.py eval --name pong makes one" in said


def test_the_page_is_one_file_in_which_words_stay_words():
    a_run("pong", words="</td><script>alert(1)</script>|")
    Path("records").mkdir()
    Path("records/pong-v3.webm").write_bytes(b"a video")
    page, text = a_report(RunContext("atari", "pong"))
    html = page.read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert html.count('src="data:') == 2 and 'src="data:video/webm;base64,YSB2aWRlbw=="' in html
    assert "<script" not in html and "<script" not in text.read_text()
    assert "[Video](../../records/pong-v3.webm)" in text.read_text()


def test_other_seeds_get_a_row_and_other_settings_are_refused():
    a_run("pong-s1", seed=1), a_run("pong-s2", seed=2), a_run("pong-s3", rate=0.5)
    _, text = a_report(RunContext("atari", "pong-s1"), ["pong-s2", "pong-s1"])
    assert re.findall(r"\| (pong-s\d) \| (\d) \|", text.read_text()) == [("pong-s1", "1"), ("pong-s2", "2")]
    with pytest.raises(RunConflict, match=r"pong-s3 was made with rate=0\.5, this asks for rate=0\.001"):
        a_report(RunContext("atari", "pong-s1"), ["pong-s3"])
    with pytest.raises(SettingsError, match="there is no run nowhere"):
        a_report(RunContext("atari", "nowhere"))


def test_a_young_run_has_a_card_too():
    folder = RunFolder(Path("runs/young"))
    folder.write_settings({"experiment": "atari", "settings": {}})
    folder.log({"seconds": 1.0, "step": 10, "frames": 10, "update": 0, "play/return": None})
    page, _ = a_report(RunContext("atari", "young"))
    assert "<img" not in page.read_text() and "No episode has ended after 10 steps" in page.read_text()


def test_training_records_who_started_it_without_the_password(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["tinyverse", "tabular", "local", "--password", "hunter2", "--redis=redis://:hunter2@x/0"]
    )
    for _ in range(2):
        local.callback(RunContext("tabular", quiet=True, seed=5), TrainOptions(updates=2))
    folder = RunFolder("runs/tabular")
    first, second = folder.rows("starts")
    assert first["seed"] == second["seed"] == 5
    assert first["argv"] == ["tabular", "local"] == folder.settings()["argv"]
    assert Path(first["source"]).name == "tabular.py" and Path(first["source"]).is_file()
    assert first["machine"]["cores"] == system.cores() and first["versions"]["torch"]
    assert "hunter2" not in "".join(file.read_text() for file in folder.path.glob("*.json*"))


def test_secrets_at_the_end_or_twice():
    assert without_secrets(["a", "--redis", "x", "--password", "y", "b", "--password"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("single", "best"),
    [
        ([], "4.50 ± 0.25, 8 episodes"),
        ([(9.0, 7)], "4.50 ± 0.25, 8 episodes"),  # fewer episodes
        ([(6.0, 8)], "6.00, 8 episodes"),
        ([(6.0, 8), (5.0, 20)], "5.00, 20 episodes"),
        ([(4.0, 20)], "4.50 ± 0.25, 8 episodes"),
    ],
)
def test_an_evaluation_by_itself_counts_if_none_had_more_games(single, best):
    folder = a_run("pong")
    for mean, episodes in single:
        folder.log({"eval/return": mean, "eval/standard_error": None, "eval/episodes": episodes}, "evaluations")
    assert _result(folder)["best evaluation"] == best


def test_published_scores():
    assert len(ATARI) == 49 and all(len(scores) == 3 for scores in ATARI.values())
    assert published({"env_id": "ALE/Breakout-v5"}).scores["DQN (2015)"] == 401.2
    assert published({"env_id": "CartPole-v1"}).scores == {"solved": 475.0}
    assert published({}).scores == published({"env_id": "Nowhere-v0"}).scores == {}
    assert json.dumps(system.facts())


def test_evaluations_of_another_mode_than_the_newest_are_not_compared(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for greedy, mean in ((0, 9.0), (1, 5.0), (1, 4.0)):
        row = {"eval/return": mean, "eval/standard_error": None, "eval/episodes": 2, "eval/greedy": greedy}
        folder.log(row, "evaluations")
    assert "5.00, 2 episodes, greedy" in _result(folder).values()
