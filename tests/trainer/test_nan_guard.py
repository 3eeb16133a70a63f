"""NanGuard: NaN that a trainer learned reaches neither players nor checkpoints, and training stops."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.helpers.people import a_trainer
from tests.trainer.test_trainer import network_sessions, push, some_sessions
from tinyverse.core import codec
from tinyverse.core.errors import NotANumber
from tinyverse.core.weights import decode_weights
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Uniform
from tinyverse.trainer.loop import train
from tinyverse.trainer.nan_guard import NanGuard
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
        wrong = trainer.learner.batches[3]
        assert metadata == {"update": "4", "not_finite": "loss/total", "sessions": json.dumps(wrong.sources)}
        np.testing.assert_array_equal(arrays["batch.rewards"], wrong.rewards.numpy())
        np.testing.assert_array_equal(arrays["batch.observations"], wrong.observations.numpy())


def test_nan_in_the_last_update_is_seen_too(tmp_path):
    database, folder, trainer = a_run_with(tmp_path)
    with pytest.raises(NotANumber):
        train(fails_at(trainer, 3), updates=3)
    assert folder.load() is None and database.state().version < 3


def test_started_again_it_goes_on_from_the_last_checkpoint(tmp_path):
    database, folder, trainer = a_run_with(tmp_path)
    assert trainer.feed() and trainer.step() and trainer.step()
    trainer.save(wait=True)
    with pytest.raises(NotANumber):
        train(fails_at(trainer, 4), updates=8)
    assert folder.load()["update"] == 2
    again = a_trainer(database, folder=folder, publish_every=1)
    again.join()
    assert train(again, updates=3) == 3
    assert (again.update, again.agent.weight.tolist(), folder.load()["update"]) == (5, [5.0], 5)
    assert all(np.isfinite(array).all() for weights in published(database) for array in weights.values())


def test_infinity_is_no_number_either_and_other_metrics_may_say_nothing():
    guard, batch = NanGuard(), None
    guard.note(1, batch, {"value/explained_variance": np.nan, "loss/total": 1.0, "grad_norm": torch.tensor(2.0)})
    assert not guard.is_bad(wait=True)
    guard.note(2, batch, {"loss/total": 1.0, "grad_norm": torch.tensor(np.inf)})
    assert guard.is_bad() and guard.bad.names == ("grad_norm",) and guard.bad.update == 2
    guard = NanGuard()
    assert guard.passes(3, {"a": np.zeros(2, np.float32), "n": np.array(3)})
    assert not guard.passes(3, {"a": np.array([np.inf], np.float32)})


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


POISON = 666.0  # a reward from which this learner learns NaN


def fails_on_poison(trainer):
    step = trainer.learner.train_step

    def train_step(batch):
        metrics = dict(step(batch))
        if (batch.rewards == POISON).any():
            metrics["loss/total"] = torch.tensor(np.nan)
        return metrics

    trainer.learner.train_step = train_step
    return trainer


@pytest.mark.parametrize("save_replay", [True, False])
def test_sessions_of_a_bad_batch_are_left_out_by_every_later_trainer(tmp_path, save_replay):
    database, folder = MemoryDatabase(), RunFolder(tmp_path)
    flow = ReplayConfig(batch_size=1, buffer_size=32, min_sessions=8, reuse=8)
    options = {"folder": folder, "save_replay": save_replay, "flow": flow}
    sessions = some_sessions(16)
    sessions[5].arrays["rewards"] = np.full_like(sessions[5].arrays["rewards"], POISON)
    first = a_trainer(database, sampler=Uniform(), **options)
    first.join()
    first.feed()
    push(database, sessions)
    while first.feed():
        pass
    first.step()
    first.save(wait=True)  # the bad session lies in the checkpoint too
    with pytest.raises(NotANumber, match=r"Its 1 session \(1 of .*\) will not be learned from again"):
        train(fails_on_poison(first), updates=200)
    assert folder.quarantined() == {sessions[5].source}

    again = a_trainer(database, sampler=Uniform(), **options)
    again.join()
    while again.feed():
        pass
    push(database, some_sessions(16, start=16))
    train(fails_on_poison(again), updates=100)
    assert all((batch.rewards != POISON).all() for batch in again.learner.batches)
    assert sum(again.feeder.rejected.values()) == (not save_replay)
