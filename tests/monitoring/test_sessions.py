"""Stored sessions in plain values and pictures."""

from __future__ import annotations

import numpy as np

from tests.helpers.counting import CountingEnv
from tests.helpers.people import LENGTH, an_agent
from tinyverse.core.session import Session
from tinyverse.envs.pool import SerialPool
from tinyverse.monitoring import sessions
from tinyverse.player.player import Player


def a_session():
    """Of the counting game."""
    player = Player(an_agent(False), SerialPool(lambda: CountingEnv(False), 1), LENGTH, seed=2)
    player.version, player.update = 3, 30
    return player.play().sessions("play-x", 0)[0]


def test_entropy_and_log_probability_are_those_the_agent_noted():
    session = a_session()
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1, 1e-30, 1e-30]], np.float32))
    three = {name: session.arrays[name][:3] for name in ("actions", "rewards", "terminated", "truncated", "alive")}
    noted = {"extras.behaviour_logits": logits, "extras.behaviour_log_prob": np.array([-1, -2, -3], np.float32)}
    known = Session({"observations": session.observations[:4], **three, **noted})
    rows = sessions.steps_of(known)
    np.testing.assert_allclose([row["entropy"] for row in rows], [1.5 * np.log(2), np.log(3), 0], atol=1e-6)
    assert [row["log_prob"] for row in rows] == [-1, -2, -3] and {row["value"] for row in rows} == {None}
    assert [row["value"] for row in sessions.steps_of(known, value=np.arange(3.0))] == [0, 1, 2]


def test_an_image_is_filmed_as_it_is_and_numbers_as_cells():
    session = a_session()
    images = np.arange((LENGTH + 1) * 6 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(LENGTH + 1, 6, 8, 3)
    others = {name: array for name, array in session.arrays.items() if name != "observations"}
    seen = Session({"observations.a": session.observations, "observations.b": images, **others})
    np.testing.assert_array_equal(list(sessions.frames_of(seen)), images)
    cells = np.stack(list(sessions.frames_of(session)))
    assert cells.shape == (LENGTH + 1, 2 * sessions.CELL, 2 * sessions.CELL) and cells.dtype == np.uint8
    step = session.observations[:, 1].astype(float)
    wanted = (255 * (step - step.min()) / (step.max() - step.min())).astype(np.uint8)
    np.testing.assert_array_equal(cells[:, 0, sessions.CELL], wanted)
