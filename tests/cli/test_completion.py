"""The shell's Tab key: experiments first, then verbs, then options."""

from __future__ import annotations

import subprocess

import pytest

from tinyverse.cli import main as cli


@pytest.fixture
def tab(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_game.py").touch()

    def complete(line):
        words = line.split(" ")
        monkeypatch.setenv("_TINYVERSE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        with pytest.raises(SystemExit) as ended:
            cli.main([])
        assert ended.value.code == 0
        return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]

    return complete


@pytest.mark.parametrize(
    ("line", "there", "missing"),
    [
        ("tinyverse ", ["my_game.py", "catch", "atari", "server", "plot"], ["train"]),
        ("tinyverse my", ["my_game.py"], ["catch"]),
        ("tinyverse catch ", ["play", "train", "report", "config"], ["server", "plot", "new"]),
        ("tinyverse catch tr", ["train"], ["play"]),
        ("tinyverse catch train --buf", ["--buffer-size"], ["--reuse"]),
        ("tinyverse server st", ["start", "stop", "status"], []),
        ("tinyverse plot -x m", ["minutes"], ["step"]),
    ],
)
def test_tab(tab, line, there, missing):
    found = tab(line)
    assert set(there) <= set(found) and not set(missing) & set(found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(capsys, shell):
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", shell])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"_TINYVERSE_COMPLETE={shell}_complete" in said
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=said, text=True, check=True, timeout=10)


def test_another_shell_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", "tcsh"])
    assert ended.value.code == 2 and "completion tcsh: there are bash, zsh, fish." in capsys.readouterr().err
