"""Doctor: a line for each thing, a warning with its advice where something is wrong, and nothing is left behind."""

from __future__ import annotations

import json

import pytest

from tinyverse.cli import doctor
from tinyverse.cli.context import RunContext
from tinyverse.database.redis import list_runs


def findings(**options):
    return {found.what: found for found in doctor.examine(RunContext("", **options))}


def test_all_is_looked_at_and_nothing_is_left_behind(redis_url, redis_server, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    from tinyverse.database.connection import connect

    with connect(redis_server.admin_url) as client:
        before = client.dbsize()
        found = findings(redis=redis_url)
        assert client.dbsize() == before and not any(
            name.startswith("doctor") for name in list_runs(redis_server.admin_url)
        )
    wanted = [
        "python",
        "torch",
        "threads",
        "cpu",
        "gpu",
        "memory",
        "disk",
        "codec",
        "server",
        "rights",
        "clock",
        "speed",
    ]
    assert list(found) == wanted
    assert [what for what, each in found.items() if not each.ok and what not in ("memory", "disk", "cpu")] == []
    assert (
        "push" in found["speed"].message and "the same" in found["codec"].message and "***" in found["server"].message
    )


def test_a_user_that_may_do_everything_is_a_warning(redis_server):
    found = findings(redis=redis_server.admin_url)
    assert not found["rights"].ok and "~tv:*" in found["rights"].advice


def test_without_a_server_it_says_what_would_be_started(folder):
    found = findings()
    assert found["server"].ok and "none runs yet" in found["server"].message and "push" in found["speed"].message


def test_a_server_that_does_not_answer_is_a_warning(folder):
    assert not findings(redis="redis://127.0.0.1:1/0")["server"].ok


@pytest.mark.parametrize(
    ("version", "path", "says"),
    [
        ("9.1.2", "", ""), ("7.2.11", "", ""), ("7.0.15", "/usr/bin/redis-server", ""), ("strange", "", ""),
        ("6.0.9", "", "Install a newer server"), ("6.2.14", "", "Install 6.2.20 or newer"),
        ("7.2.4", "/usr/bin/redis-server", "may have mended it"),
    ],
)  # fmt: skip
def test_known_holes(version, path, says):
    advice = " ".join(found.advice for found in doctor._holes(version, path))
    assert says in advice and bool(advice) == bool(says)


def test_threads_that_spin_and_a_clock_that_is_off(redis_server, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert "OMP_WAIT_POLICY=PASSIVE" in findings(redis=redis_server.url)["threads"].advice
    now = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: now() - 3600)
    found = findings(redis=redis_server.url)["clock"]
    assert found.message.startswith(("3599", "3600")) and "NTP" in found.advice


def test_the_command_prints_lines_or_json_and_its_code_tells(tinyverse, redis_url, monkeypatch):
    said = tinyverse("catch", "doctor", "--redis", redis_url)
    lines = said.out.splitlines()
    assert any("experiment" in line and "catch: " in line and line.startswith("ok") for line in lines), said
    assert said.code == int(any(line.startswith("warning") for line in lines))
    facts = json.loads(tinyverse("doctor", "--redis", redis_url, "--json").out)
    assert {tuple(each) for each in facts} == {("what", "ok", "message", "advice")} and len(facts) == 12
    broken = tinyverse("doctor", "--redis", "redis://127.0.0.1:1/0")
    assert broken.code == 1 and "does not answer" in broken.out


def test_an_experiment_that_cannot_play_is_a_warning(tinyverse, folder, redis_url):
    (folder / "broken.py").write_text(
        "from tinyverse import Experiment\n\ndef make_experiment():\n    return Experiment(make_env=lambda: 3)\n"
    )
    said = tinyverse("broken.py", "doctor", "--redis", redis_url)
    assert said.code == 1
    assert "warning  experiment    broken.py: " in said.out and "tinyverse broken.py check shows more" in said.out
