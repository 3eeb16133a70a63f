"""The run config comes from a server or a file: what is garbled is said, and what could name a module is not taken."""

from __future__ import annotations

from typing import Any

import pytest

from tinyverse.core.errors import RunConflict, SettingsError, SpecError
from tinyverse.core.run_config import check_can_join, check_trusted, experiment_and_settings
from tinyverse.core.session import SessionSpec


@pytest.mark.parametrize(
    "wrong",
    [{"settings": "["}, {"settings": "[" * 100_000}, {"settings": "[]"}, {"settings": ""}, {"experiment": "a\x1b"}, {"format": "2"}],
    ids=str,
)  # fmt: skip
def test_a_garbled_run_config_is_said(wrong: dict[str, str]) -> None:
    meta = {"format": "1", "experiment": "catch", "settings": '{"a": 1}', "spec": "{}"}
    assert experiment_and_settings(meta) == {"experiment": "catch", "settings": {"a": 1}}
    with pytest.raises(RunConflict):
        experiment_and_settings({**meta, **wrong})
    with pytest.raises(RunConflict):
        experiment_and_settings({"run_id": "x"})


@pytest.mark.parametrize(
    "value", ["evil:CartPole-v1", "/etc/passwd", "../x", "map.wad", "~/x", ["a", "evil:X"], {"a:b": 1}]
)
def test_a_name_from_a_server_is_taken_only_where_it_stands_here_too(value: Any) -> None:
    with pytest.raises(SettingsError, match="on the server is not this experiment's own.* If you trust it, add -o"):
        check_trusted({"env_id": value}, [{"env_id": "CartPole-v1"}, {}])
    check_trusted({"env_id": value}, [{}, {"env_id": value}])


def test_plain_words_of_a_server_are_taken_and_those_of_a_file_are_not() -> None:
    stored = {"env_id": "ALE/Pong-v5", "learning_rate": 0.5, "size": None}
    check_trusted(stored, [{}])
    check_trusted({**stored, "env_id": "CartPole-v1"}, [{"env_id": "CartPole-v1"}], of_file="x.safetensors")
    with pytest.raises(SettingsError, match="env_id=ALE/Pong-v5 in x.safetensors .* -o env_id=ALE/Pong-v5"):
        check_trusted(stored, [{"env_id": "CartPole-v1"}], of_file="x.safetensors")


def test_settings_of_others_command_no_terminal() -> None:
    with pytest.raises(RunConflict) as refused:
        check_can_join("run", {"experiment": "catch", "settings": {"a": "\x1b[2J"}}, "catch", {"a": "b"})
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"rewards": ["<f4", []]}', '{"rewards": ["<f4", [5]]}', '{"rewards": ["<f4", [-1]]}',
     '{"rewards": ["<f4", [5]], "terminated": ["|b1", [4]], "truncated": ["|b1", [5]], "alive": ["|b1", [5]]}'],
)  # fmt: skip
def test_a_spec_that_no_session_can_have_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="garbled"):
        SessionSpec.from_json(text)
