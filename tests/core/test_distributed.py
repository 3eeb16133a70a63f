"""Distributed: ranks at half the batch learn what one learns at the whole, wait for each other, end and rise together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.algorithms.test_dqn import Chainer
from tests.algorithms.test_dqn import agent_of as q_agent_of
from tests.algorithms.test_sac import agent_of as squashed_agent_of
from tests.algorithms.test_sac import random_batch
from tests.helpers.chains import agent_of, play
from tests.helpers.fork_server import GROUP, fork_server
from tests.helpers.people import CountingLearner, a_trainer, until
from tests.trainer.test_trainer import push, some_sessions
from tinyverse.algorithms import A2C, DQN, PPO, SAC, VTrace, losses
from tinyverse.core import distributed
from tinyverse.core.errors import NotANumber, SettingsError
from tinyverse.database.memory import MemoryDatabase
from tinyverse.database.redis import RedisDatabase
from tinyverse.networks import MLP
from tinyverse.networks.normalization import Normalized
from tinyverse.networks.squashed import SquashedGaussian
from tinyverse.replay.config import ReplayConfig
from tinyverse.trainer.ranks import Ranks
from tinyverse.trainer.run_folder import RunFolder

torch.set_num_threads(1)
pytestmark = pytest.mark.timeout(300)
PATIENCE = 90.0  # seconds; a busy machine imports torch for many of them
RANKS, GAMES, UPDATES = 2, 8, 5


def in_ranks(function, *arguments):
    """Runs `function(*arguments)` in two processes that have joined each other; what each returned, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = fork_server()
    results = context.Queue()
    ranks = [
        context.Process(target=_as_rank, args=(rank, port, results, function, arguments), daemon=True)
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=PATIENCE) for _ in ranks)
    for process in ranks:
        process.join(PATIENCE)
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    return [found[rank] for rank in range(RANKS)]


def _as_rank(rank, port, results, function, arguments):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo"
    )
    try:
        with distributed.joined("cpu"):
            results.put((rank, function(*arguments)))
            distributed.any_rank(False)  # nobody goes before all are done
    except Exception as error:
        results.put((rank, error))
        raise


# -- the same learning ----------------------------------------------------------------------------------------------

CASES = {
    "a2c": lambda: A2C(agent_of(), learning_rate=0.01),
    "a2c, advantages and returns normalised": lambda: A2C(
        agent_of(), learning_rate=0.01, normalize_advantages=True, return_scale=True
    ),
    "a2c, observations normalised": lambda: A2C(agent_of(trunk=Normalized(MLP(16))), learning_rate=0.01),
    "ppo": lambda: PPO(agent_of(), learning_rate=0.01, epochs=3, minibatches=1, value_clip=0.1),
    "ppo, plain advantages": lambda: PPO(
        agent_of(), learning_rate=0.01, epochs=2, minibatches=2, normalize_advantages=False
    ),
    "vtrace": lambda: VTrace(agent_of(), learning_rate=0.01),
    "vtrace, normalised": lambda: VTrace(agent_of(), learning_rate=0.01, normalize_advantages=True, surrogate_clip=0.2),
    "dqn": lambda: DQN(
        q_agent_of(kind=Chainer, parts={"trunk": MLP(16)}, epsilon=0.7, alpha=0.0), learning_rate=0.01, target_every=2
    ),
    "sac": lambda: SAC(squashed_agent_of(), length=None, learning_rate=0.01, max_grad_norm=1.0),
}


def batches_of(case, learner):
    """The whole batches: ends of episodes fall unevenly on the environments, and the environments count unequally."""
    if case == "sac":
        whole = [random_batch(seed) for seed in range(UPDATES)]  # of 5 environments: a sixth did not happen
        keep = torch.tensor([0, 1, 2, 3, 4, 4, 4, 4])
        whole = [batch.columns(keep) for batch in whole]
        return [dataclasses.replace(batch, valid=batch.valid & (torch.arange(8) < 6)) for batch in whole]
    random = torch.Generator().manual_seed(0)
    whole = [play(learner.agent, GAMES, 10) for _ in range(UPDATES)]
    for batch in whole:
        batch.weights = torch.rand(GAMES, generator=random) + 0.5
        batch.extras["behaviour_log_prob"] += 0.2 * torch.randn(10, GAMES, generator=random)
        batch.valid[:, 1] &= torch.arange(10) < 3
    return whole


def unrandom():
    """No noise in SAC's actions, and PPO's minibatches in order: random numbers of ranks are their own."""
    torch.randperm = lambda count, device=None: torch.arange(count)

    def rsample(self, generator=None):
        raw = self.mean + 0.3 * self.log_std.exp()
        return raw.tanh(), self._log_prob_of_raw(raw)

    SquashedGaussian.rsample = rsample


def learn(case):
    """The weights after some updates, from this rank's half of each batch, or from all of it."""
    learner = CASES[case]()
    for batch in batches_of(case, learner):
        # in the order in which both ranks' first minibatches make the whole's first
        mine = (
            torch.arange(GAMES) // 2 % RANKS == distributed.rank() if distributed.size() > 1 else torch.ones(GAMES) > 0
        )
        learner.train_step(batch.columns(mine.nonzero()[:, 0]))
    state = learner.state_dict()
    return {name: tensor.numpy() for name, tensor in _tensors(state)}


def _tensors(state, name=""):
    if isinstance(state, torch.Tensor):
        yield name, state.double()
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}")


def learn_all():
    unrandom()
    return {case: learn(case) for case in CASES}


@pytest.fixture(scope="module")
def learned():
    """What two ranks learned in every case."""
    return in_ranks(learn_all)


@pytest.mark.xdist_group(GROUP)  # they share the fixture
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_at_half_the_batch_learn_what_one_learns(learned, case, monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.randperm)
    monkeypatch.setattr(SquashedGaussian, "rsample", SquashedGaussian.rsample)
    unrandom()
    first, second = (rank[case] for rank in learned)
    whole, before = learn(case), {name: t.numpy() for name, t in _tensors(CASES[case]().state_dict())}
    assert first.keys() == second.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(first[name], second[name], name)
        np.testing.assert_allclose(first[name], whole[name], atol=1e-5, rtol=1e-4, err_msg=name)
    assert max(np.abs(whole[name] - before[name]).max() for name in before) > 0.01


def add_up():
    rank = distributed.rank()
    mask = torch.ones(2 + 4 * rank)
    slope = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    slope.grad = torch.tensor([1.0, 3.0]) * (rank + 1)
    distributed.average_gradients([slope, torch.nn.Parameter(torch.zeros(3))])
    return {
        "where": (rank, distributed.size(), distributed.is_rank_zero()),
        "count": float(losses.count(mask)),
        "of nothing": float(losses.count(0 * mask)),
        "exchange": distributed.exchange(rank, 10.5),
        "any rank": (distributed.any_rank(rank == 1), distributed.any_rank(False)),
        "broadcast": distributed.broadcast({"text": "much" * 1000} if distributed.is_rank_zero() else {})["text"],
        "gather": Ranks().gather([f"player:{rank}"] * (1 + rank)),
        "slope": slope.grad.tolist(),
        "rank zero first": who_came_when(),
    }


def who_came_when():
    """Rank 0's time of leaving the block and rank 1's of entering it."""
    with distributed.rank_zero_first():
        entered = time.monotonic()
        time.sleep(0.2)
        left = time.monotonic()
    (_, left), (entered, _) = distributed.exchange(entered, left)
    return left <= entered


@pytest.mark.xdist_group(GROUP)
def test_what_ranks_tell_each_other():
    first, second = in_ranks(add_up)
    assert (first.pop("where"), second.pop("where")) == ((0, 2, True), (1, 2, False))
    assert first == second == {
        "count": 4.0, "of nothing": 0.5, "exchange": [(0.0, 10.5), (1.0, 10.5)], "any rank": (True, False),
        "broadcast": "much" * 1000, "slope": [1.5, 4.5], "rank zero first": True,
        "gather": ["player:0", "player:1", "player:1"],
    }  # fmt: skip


def test_alone_everything_is_the_identity():
    tensor = torch.ones(3, requires_grad=True)
    assert distributed.total(tensor) is tensor
    assert (distributed.rank(), distributed.size(), distributed.is_rank_zero(), distributed.launched()) == (
        0,
        1,
        True,
        False,
    )
    assert distributed.exchange(3, 4) == [(3, 4)]
    assert distributed.broadcast({"x": 1}) == {"x": 1}
    assert distributed.is_mine("p", 7)


# -- shares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_every_session_is_somebodys_and_shares_are_even(monkeypatch, ranks):
    monkeypatch.setattr(distributed, "size", lambda: ranks)
    counts = Counter()
    for player in range(20):
        for sequence in range(100):
            owners = []
            for rank in range(ranks):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                owners += [rank] * distributed.is_mine(f"player-{player}", sequence)
            assert len(owners) == 1
            counts[owners[0]] += 1
    assert max(counts.values()) - min(counts.values()) <= 20


def test_a_flow_is_shared():
    flow = ReplayConfig(batch_size=8, buffer_size=101, min_sessions=9, reuse=3.0, max_lag=7)
    assert flow.shared(1) == flow
    assert flow.shared(4) == ReplayConfig(batch_size=2, buffer_size=26, min_sessions=3, reuse=3.0, max_lag=7)
    with pytest.raises(SettingsError, match="a batch of 8 sessions cannot be shared evenly by 3 ranks"):
        flow.shared(3)


def a_rank(url, run, **options):
    CountingLearner.distributed = True  # in this process
    flow = ReplayConfig(batch_size=4, buffer_size=100).shared(distributed.size())
    with distributed.rank_zero_first():
        trainer = a_trainer(RedisDatabase(url, run), flow=flow, **options)
        trainer.join()
    trainer.checkpoints.level()
    return trainer


def turns(trainer, count):
    for _ in range(count):
        trainer.feed()
        trainer.step()


def furthest_of(trainer):
    return trainer.ranks.furthest(trainer.feeder.cursor.learned, trainer.state.run_id)


def wait_for_the_poor(url, run):
    """One rank has nothing at first; then both have something; then one has more than the other."""
    trainer = a_rank(url, run)
    assert trainer.database.state().version == 0
    facts = {}

    def owned_by(rank, sessions):
        return [
            one
            for one in sessions
            if distributed.is_mine("p", int(one.metadata["sequence"])) == (rank == distributed.rank())
        ]

    sessions = some_sessions(24)
    rich, poor = owned_by(0, sessions), owned_by(1, sessions)
    for name, pushed in (("rich only", rich[:4]), ("both", poor[4:6]), ("more", poor[6:8])):
        if distributed.is_rank_zero():
            push(trainer.database, pushed)
        distributed.any_rank(False)
        turns(trainer, 5)
        if distributed.is_rank_zero():
            trainer.publisher.report(trainer.update)
        distributed.any_rank(False)
        state = trainer.database.state()
        facts[name] = (trainer.update, trainer.waiting.reason, state.deficit, state.cursor == furthest_of(trainer))
    facts["reported"] = (state.max_ahead, state.capacity, state.step == trainer.feeder.steps)
    trainer.publisher.beat()
    distributed.any_rank(False)
    facts["workers"] = sorted(worker.role for worker in trainer.database.workers())
    distributed.any_rank(False)  # none leaves before all have looked
    seen = sorted(int(slot) for batch in trainer.learner.batches for slot in batch.slots)
    trainer.leave()
    distributed.any_rank(False)
    return facts, seen


@pytest.mark.xdist_group(GROUP)
def test_a_rank_without_sessions_makes_all_wait_and_none_hang(redis_url):
    ranks = in_ranks(wait_for_the_poor, redis_url, f"test-{secrets.token_hex(4)}")
    (first, _), (second, _) = ranks
    assert first["rich only"][:2] == (0, "rank 1, which waits for sessions of its own")
    assert second["rich only"][:2] == (0, "0 of 2 sessions")
    assert first["rich only"][2] <= 0, "players go on while a rank is poor, however rich the other is"
    assert first["both"][0] == second["both"][0] == 1
    assert first["more"][0] == second["more"][0] == 2
    assert first["more"][2:] == (0, True) and second["more"][3], "both know the furthest cursor of any"
    assert first["reported"] == ((4 + 4) * 1.0, 100, True)
    assert first["workers"] == ["train", "train"]


def test_what_another_rank_has_learned_from_is_reported_and_what_is_unread_here_is_not_lost(monkeypatch):
    monkeypatch.setattr(CountingLearner, "distributed", True)
    trainer = a_trainer(database := MemoryDatabase(), ranks=Ranks())
    trainer.join()
    monkeypatch.setattr(distributed, "exchange", lambda *mine: [mine, (*mine[:4], 3, 0)] if len(mine) > 1 else [mine])
    trainer.feed()
    assert not trainer.step()
    push(database, some_sessions(4))
    trainer.feed()
    assert trainer.step()
    assert (trainer.feeder.cursor.learned, database.state().cursor) == ("2-0", "3-0")
    assert trainer.step()
    assert database.state().cursor == "4-0"


def one_learns_nan(url, run, place):
    """Rank 1 gives NaN in its second update; the others see nothing of it themselves."""
    trainer = a_rank(url, run, folder=RunFolder(place) if distributed.is_rank_zero() else None)
    step = trainer.learner.train_step

    def train_step(batch):
        wrong = distributed.rank() == 1 and trainer.update == 1
        return {**step(batch), "loss/total": float("nan")} if wrong else step(batch)

    trainer.learner.train_step = train_step
    if distributed.is_rank_zero():
        push(trainer.database, some_sessions(24))
    distributed.any_rank(False)
    said = ""
    try:
        turns(trainer, 6)
        trainer.check()
    except NotANumber as error:
        said = str(error)
    return trainer.update, said


@pytest.mark.xdist_group(GROUP)
def test_what_one_rank_learned_wrong_stops_all(redis_url, tmp_path):
    ranks = in_ranks(one_learns_nan, redis_url, f"test-{secrets.token_hex(4)}", tmp_path)
    assert [update for update, _ in ranks] == [2, 2]
    assert all("no number" in said for _, said in ranks)


def wrong_learner(url, run):
    with pytest.raises(SettingsError, match="CountingLearner cannot learn on 2 ranks"):
        a_trainer(RedisDatabase(url, run))
    return True


@pytest.mark.xdist_group(GROUP)
def test_a_learner_that_averages_nothing_is_refused(redis_url):
    assert in_ranks(wrong_learner, redis_url, "test-refused") == [True, True]


# -- real processes -------------------------------------------------------------------------------------------------


class TwoRanks:
    """`catch` in a folder of its own on a real server: players and a trainer of two ranks."""

    def __init__(self, path, url):
        self.path, self.name = path, f"ranks-{secrets.token_hex(4)}"
        self.database = RedisDatabase(url, self.name)
        home = str(Path(__file__).parents[2])
        self.env = {**os.environ, "TINYVERSE_REDIS_URL": url, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"}
        self.processes = []

    def start(self, verb, *words, launcher=(), cwd="."):
        command = [sys.executable, *launcher, "-m", "tinyverse", "catch", verb, "--name", self.name, *map(str, words)]
        with (self.path / f"{len(self.processes)}.err").open("w") as file:
            process = subprocess.Popen(command, cwd=self.path / cwd, env=self.env, stderr=file, start_new_session=True)
        self.processes.append(process)
        return process

    def said(self, process):
        return (self.path / f"{self.processes.index(process)}.err").read_text()

    def ends(self, process, code=0):
        assert process.wait(PATIENCE) == code, self.said(process)

    def ranks(self):
        trainers = [worker for worker in self.database.workers() if worker.role == "train"]
        return [worker.pid for worker in trainers if psutil.pid_exists(worker.pid)]

    def checkpoints(self):
        files = self.path.glob(f"runs/{self.name}/checkpoints/*.pt")
        return sorted(int(file.stem.split("-")[1]) for file in files)


@pytest.fixture
def place(tmp_path, redis_url):
    ranks = TwoRanks(tmp_path, redis_url)
    yield ranks
    for process in ranks.processes:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in [*children, process]:
            with contextlib.suppress(psutil.Error, OSError):
                one.kill()
        process.wait()


@pytest.mark.parametrize("updates", [20, pytest.param(150, marks=pytest.mark.slow)])
def test_gpus_on_a_cpu_learn_publish_and_end_together(place, updates):
    place.start("play", "-b", 8, "-q")
    trainer = place.start("train", "--gpus", 2, "--device", "cpu", "-b", 16, "-n", updates, "--seed", 1)
    place.ends(trainer)
    state = place.database.state()
    assert state.update == updates and place.checkpoints() == [updates]
    assert state.capacity == 5000 and state.max_ahead == 32
    assert 0.9 < state.sampled / (updates * 16) < 1.2
    rows = [json.loads(line) for line in (place.path / f"runs/{place.name}/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["update"] == updates and rows[-1]["step"] >= updates * 16 * 8
    assert updates < 150 or rows[-1]["play/return"] > -0.3, "it began at -0.6"
    assert len([line for line in place.said(trainer).splitlines() if "training run" in line]) == 1
    assert place.database.counters().get("rejected", 0) == 0
    assert not place.ranks()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "stop"])
def test_all_ranks_stop_together(place, how):
    place.start("play", "-b", 8, "-q")
    trainer = place.start("train", "--gpus", 2, "--device", "cpu", "-b", 8, "--save-every", 1000)
    until(lambda: place.database.state().update > 5 and len(place.ranks()) == 2, PATIENCE)
    if how == "signal":
        trainer.send_signal(signal.SIGINT)
    else:
        place.database.ask_stop()
    place.ends(trainer)
    assert "Traceback" not in place.said(trainer), place.said(trainer)
    assert len(place.checkpoints()) == 1
    assert not place.ranks()


@pytest.mark.slow
def test_torchrun_on_two_machines_makes_one_trainer(place):
    place.env |= {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = (
        "-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id x --local-addr 127.0.0.1 "
        f"--rdzv-endpoint 127.0.0.1:{port}"
    ).split()
    place.start("play", "-b", 8, "-q")
    machines = [place.path / "a", place.path / "b"]
    for machine in machines:
        machine.mkdir()
        place.start("train", "-b", 8, "-n", 30, launcher=torchrun, cwd=machine.name)
    for process in place.processes[1:]:
        place.ends(process)
    assert place.database.state().update == 30
    kept = [list(machine.glob("runs/*/checkpoints/*.pt")) for machine in machines]
    assert sorted(map(len, kept)) == [0, 1], "rank 0 alone writes"


def test_an_error_for_a_person_ends_all_ranks_at_once(place):
    trainer = place.start("train", "--gpus", 2, "--device", "cpu", "-b", 9)
    place.ends(trainer, 1)
    said = place.said(trainer)
    assert "a batch of 9 sessions cannot be shared evenly by 2 ranks" in said
    assert "Traceback" not in said


def test_more_gpus_than_there_are_are_refused(tinyverse):
    said = tinyverse("catch", "train", "--gpus", 64)
    assert said.code == 2 and "--gpus 64: this machine has" in said.err


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_brings_all_back_from_the_checkpoint(place, victim):
    place.start("play", "-b", 8, "-q")
    trainer = place.start("train", "--gpus", 2, "--device", "cpu", "-b", 8, "--save-every", 0.3)
    until(lambda: place.checkpoints() and len(place.ranks()) == 2, PATIENCE)
    before = place.ranks()
    by_rank = sorted(before, key=lambda pid: psutil.Process(pid).environ()["RANK"])
    version, checkpoint = place.database.state().version, place.checkpoints()[-1]
    os.kill(by_rank[victim], signal.SIGKILL)
    until(lambda: len(after := place.ranks()) == 2 and not set(after) & set(before), PATIENCE)
    until(lambda: place.database.state().version > version + 5, PATIENCE)
    said = place.said(trainer)
    began = [int(line.split("from update ")[1].split(",")[0]) for line in said.splitlines() if "from update" in line]
    assert began[0] == 0 and began[-1] >= checkpoint
    assert place.database.state().update > checkpoint
    place.database.ask_stop()
    place.ends(trainer)


@pytest.mark.faults
def test_ranks_do_not_outlive_their_launcher(place):
    place.start("play", "-b", 8, "-q")
    trainer = place.start("train", "--gpus", 2, "--device", "cpu", "-b", 8, "--save-every", 1000)
    until(lambda: place.database.state().update > 5 and len(place.ranks()) == 2, PATIENCE)
    trainer.kill()
    until(lambda: not place.ranks(), PATIENCE)
    assert len(place.checkpoints()) == 1
