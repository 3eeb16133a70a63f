"""Guard: what a trainer learned that is no number reaches neither players nor checkpoints, and what is done then."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.helpers.people import a_trainer
from tests.trainer.test_trainer import network_sessions, push, some_sessions
from tinyverse.core import codec
from tinyverse.core.errors import NotANumber, SettingsError
from tinyverse.core.session import Session
from tinyverse.core.weights import decode_weights
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay.config import Flow
from tinyverse.replay.samplers import Uniform
from tinyverse.trainer.loop import train
from tinyverse.trainer.nan_guard import Guard
from tinyverse.trainer.run_folder import RunFolder


def fails_at(trainer, *updates, how="metrics"):
    """Makes these updates (from 1) go wrong: in what they report, or in the weights only."""
    step = trainer.learner.train_step

    def train_step(batch):
        metrics = dict(step(batch))
        if trainer.update + 1 in updates:
            trainer.learner.agent.weight = np.array(np.nan)
            if how == "metrics":
                metrics["loss/total"] = torch.tensor(np.nan)
        return metrics

    trainer.learner.train_step = train_step
    return trainer


def a_run_with(tmp_path, sessions=20, **options):
    database, folder = MemoryDatabase(), RunFolder(tmp_path)
    trainer = a_trainer(database, folder=folder, publish_every=1, **options)
    trainer.join()
    trainer.feed()
    push(database, some_sessions(sessions))
    return database, folder, trainer


def published(database):
    return [decode_weights(database.get_weights(version=v)[1])[0] for v in range(50) if database.get_weights(version=v)]


@pytest.mark.parametrize("how", ["metrics", "weights"])
def test_nan_stops_training_and_is_neither_published_nor_saved(tmp_path, how):
    database, folder, trainer = a_run_with(tmp_path)
    fails_at(trainer, 4, how=how)
    with pytest.raises(NotANumber, match=r"update \d learned what is no number \((loss/total|weights)\)"):
        train(trainer, updates=8)
    assert all(np.isfinite(array).all() for weights in published(database) for array in weights.values())
    checkpoint = folder.load()
    assert checkpoint is None or np.isfinite(checkpoint["weights"]["weight"])
    kept = list(tmp_path.glob("nan-update-*.safetensors"))
    assert len(kept) == (how == "metrics")
    if kept:
        arrays, metadata = codec.decode(kept[0].read_bytes())
        assert metadata == {"update": "4", "not_finite": "loss/total"}
        wrong = trainer.learner.batches[3]
        np.testing.assert_array_equal(arrays["batch.rewards"], wrong.rewards.numpy())
        np.testing.assert_array_equal(arrays["batch.observations"], wrong.observations.numpy())


def test_nan_in_the_last_update_is_seen_too(tmp_path):
    database, folder, trainer = a_run_with(tmp_path)
    with pytest.raises(NotANumber):
        train(fails_at(trainer, 3), updates=3)
    assert folder.load() is None and database.state().version < 3


def test_a_rollback_takes_the_last_checkpoint_and_goes_on(tmp_path, caplog):
    database, folder, trainer = a_run_with(tmp_path, on_nan="rollback", flow=Flow(batch=2, buffer_size=50))
    fails_at(trainer, 4)
    assert folder.load()["update"] == 0  # one to go back to, from the first moment on
    assert train(trainer, updates=8) == 8
    assert trainer.guard.rollbacks == 1 and "Going back to the checkpoint of update 0" in caplog.text
    assert (trainer.update, float(np.max(trainer.agent.weight))) == (8, 4.0)  # 4 updates since the weights of update 0
    assert database.state().update == 8 and folder.load()["update"] == 8
    assert all(np.isfinite(array).all() for weights in published(database) for array in weights.values())


def test_the_sessions_of_a_spoilt_batch_are_not_learned_from_again(tmp_path):
    database, _, trainer = a_run_with(
        tmp_path, sessions=6, on_nan="rollback", sampler=Uniform(), flow=Flow(batch=2, buffer_size=50, reuse=None)
    )
    push(database, some_sessions(6, start=6))
    arrays = {**some_sessions(1)[0].arrays, "rewards": np.full(5, 7.0, np.float32)}
    poison = Session(arrays, metadata={
        "player": "faulty", "sequence": "0", "version": "0", "update": "0",
    })  # fmt: skip
    database.append([poison.encode()])
    step = trainer.learner.train_step

    def train_step(batch):
        return {**step(batch), "loss/total": np.nan if (batch.rewards == 7).any() else 0.0}

    trainer.learner.train_step = train_step
    train(trainer, updates=60)
    assert trainer.guard.rollbacks == 1
    assert 11 <= len(trainer.replay) <= 12


def test_rolling_back_again_and_again_ends(tmp_path):
    _, _, trainer = a_run_with(tmp_path, on_nan="rollback")
    with pytest.raises(NotANumber, match="after each of 3 rollbacks to update 0"):
        train(fails_at(trainer, *range(2, 10)), updates=9)


def test_infinity_is_no_number_either_and_other_metrics_may_say_nothing():
    guard, batch = Guard(), None
    guard.note(1, batch, {"value/explained_variance": np.nan, "loss/total": 1.0, "grad_norm": torch.tensor(2.0)})
    assert not guard.is_spoilt(wait=True)
    guard.note(2, batch, {"loss/total": 1.0, "grad_norm": torch.tensor(np.inf)})
    assert guard.is_spoilt() and guard.spoilt.names == ("grad_norm",) and guard.spoilt.update == 2
    guard.forget()
    assert guard.passes(3, {"a": np.zeros(2, np.float32), "n": np.array(3)})
    assert not guard.passes(3, {"a": np.array([np.inf], np.float32)})


def test_what_cannot_be_rolled_back_is_refused():
    with pytest.raises(SettingsError, match="folder with checkpoints"):
        a_trainer(MemoryDatabase(), on_nan="rollback")
    with pytest.raises(SettingsError, match="stop and rollback"):
        a_trainer(MemoryDatabase(), on_nan="ignore")


def test_a_real_loss_that_explodes(tmp_path):
    from tests.trainer.test_trainer import a_network_trainer

    database, folder = MemoryDatabase(), RunFolder(tmp_path)
    trainer = a_network_trainer(database, folder)
    trainer.join()
    sessions = network_sessions(6)
    huge = [dataclasses.replace(s, arrays={**s.arrays, "rewards": np.full(5, 3e38, np.float32)}) for s in sessions[2:4]]
    trainer.learner.reward_clip = None
    push(database, sessions[:2] + huge + sessions[4:])
    with pytest.raises(NotANumber, match="grad_norm"):
        train(trainer, updates=3)
    assert all(np.isfinite(array).all() for weights in published(database) for array in weights.values())
