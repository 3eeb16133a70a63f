"""Reference scores: those of the table, those of Gymnasium's registry, and none."""

from __future__ import annotations

from tinyverse.monitoring.reference_scores import ATARI, published


def test_published_scores():
    assert len(ATARI) == 49 and all(len(scores) == 3 for scores in ATARI.values())
    assert published({"env_id": "ALE/Breakout-v5"}).scores["DQN (2015)"] == 401.2
    assert published({"env_id": "CartPole-v1"}).scores == {"solved": 475.0}
    assert published({}).scores == published({"env_id": "Nowhere-v0"}).scores == {}
