"""Reference scores: what others reached in the same environment, to be drawn beside a run's own curve.

Atari (reference_scores.json): a random player, a professional tester, and DQN after 50 M frames evaluated with ε = 0.05.
Others: the return at which Gymnasium's registry says that the environment is solved.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text())
ATARI: dict[str, list[float]] = _TABLE["atari"]  # game -> a score for each of the table's columns


class Published(NamedTuple):
    """What to compare a return with."""

    scores: Mapping[str, float] = {}
    source: str = ""


def published(settings: Mapping[str, Any]) -> Published:
    """Scores for the environment named by the setting `env_id`; empty where none are known.

    >>> published({"env_id": "ALE/Pong-v5"}).scores
    {'random': -20.7, 'human': 9.3, 'DQN (2015)': 18.9}
    """
    env_id = str(settings.get("env_id", ""))
    if (game := env_id.removeprefix("ALE/").split("-")[0].removesuffix("NoFrameskip")) in ATARI:
        return Published(dict(zip(_TABLE["columns"], ATARI[game], strict=True)), _TABLE["source"])
    spec = gymnasium.registry.get(env_id)
    if spec is None or spec.reward_threshold is None:
        return Published()
    return Published({"solved": float(spec.reward_threshold)}, f"reward threshold of {env_id} in Gymnasium's registry")
