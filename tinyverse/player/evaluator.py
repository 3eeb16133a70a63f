"""Evaluator: plays whole episodes with given weights, reports mean ± standard error, and records the first episode.

It uses `make_env(evaluation=True)`, so the reward is the episode's own, whatever shaping training uses.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyverse.agents.agent import Agent
from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError
from tinyverse.core.system import set_threads
from tinyverse.core.text import counted
from tinyverse.core.weights import Weights
from tinyverse.envs.adapters import close
from tinyverse.envs.factory import pool_of
from tinyverse.envs.pool import Pool
from tinyverse.envs.video import VideoWriter, picture
from tinyverse.experiment.experiment import Experiment

MAX_STEPS = 200_000  # of one episode; a policy that loops for ever must not hang an evaluation
SHORT_SECONDS = 5.0  # of video; after less than that it goes on with the next episode


@dataclasses.dataclass
class Evaluation:
    """What whole episodes gave."""

    returns: list[float]
    lengths: list[int]
    version: int = -1
    greedy: bool = False  # the likeliest actions instead of samples
    seconds: float = 0.0
    video: Path | None = None
    note: str = ""  # why there is no video

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for a single episode."""
        return float(np.std(self.returns, ddof=1) / math.sqrt(len(self.returns))) if len(self.returns) > 1 else math.nan

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.2f}"
        episodes, steps = counted(len(self.returns), "episode"), counted(round(np.mean(self.lengths)), "step")
        return f"mean return {self.mean:.2f}{error} over {episodes} of {steps} (version {self.version}, {self.mode})"

    @property
    def mode(self) -> str:
        """How actions were chosen. Only means of one mode may be compared."""
        return "greedy" if self.greedy else "sampled"


def evaluate(
    experiment: Experiment,
    agent: Agent,
    *,
    episodes: int = 1,
    at_once: int = 1,
    greedy: bool | None = None,
    seed: int = 0,
    video: Path | None = None,
    render: bool = False,
    on_episode: Callable[[int, float], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Plays `episodes` whole episodes, `at_once` of them side by side.

    Each environment plays the same number, so that short episodes do not count more often than long ones.

    Args:
        greedy: take the likeliest actions; None: as the agent's `only_explores` says.
        video: where to write a video of the first episode, and of more if it is short; None: none.
        render: show the first episode in a window, if the environment can.
        on_episode: called after each episode with the number done and its return.
        should_stop: asked before each step; the result has the episodes that have ended by then.
    """
    began, num_slots = time.monotonic(), max(1, min(at_once, episodes))
    greedy = agent.only_explores if greedy is None else greedy
    envs: list[Any] = []
    pool = _pool(experiment, num_slots, envs, "human" if render else "rgb_array" if video else None)
    num_slots = pool.num_envs  # of several agents in one world there are always all
    quota = [episodes // num_slots + (slot < episodes % num_slots) for slot in range(num_slots)]
    played: list[list[tuple[float, int]]] = [[] for _ in quota]  # return and length
    agent.seed(seed)
    observations, state = pool.reset(seed), agent.initial_state(num_slots)
    is_first, ended = np.ones(num_slots, bool), np.zeros(num_slots, bool)
    total, length = np.zeros(num_slots), np.zeros(num_slots, np.int64)
    with contextlib.ExitStack() as stack:
        stack.callback(close, pool)
        camera = stack.enter_context(_Camera(video, envs[0] if envs else None))
        camera.shoot(observations)
        while not should_stop() and any(len(done) < wanted for done, wanted in zip(played, quota, strict=True)):
            actions, state, _ = agent.act(observations, state, is_first, greedy)
            step = pool.step(actions)
            valid, is_first = ~ended, ended
            observations, ended = step.observations, step.terminated | step.truncated
            total, length = (total + step.rewards) * valid, (length + 1) * valid
            camera.shoot(observations)
            for slot in np.flatnonzero((ended & valid) | (length >= MAX_STEPS)):
                if slot == 0:
                    camera.cut()
                if len(played[slot]) < quota[slot]:
                    played[slot].append((float(total[slot]), int(length[slot])))
                    on_episode(sum(map(len, played)), float(total[slot]))
                total[slot], length[slot] = 0.0, 0  # an episode without end is cut, and counted once
    returns = [total for done in played for total, _ in done]
    lengths = [length for done in played for _, length in done]
    return Evaluation(
        returns, lengths, greedy=greedy, seconds=time.monotonic() - began, video=camera.path, note=camera.note
    )


def evaluate_in_processes(
    make: Callable[[], Experiment], weights: Weights, *, jobs: int, episodes: int, video: Path | None = None,
    on_episode: Callable[[int, float], None] = lambda done, total: None, **options: Any,
) -> Evaluation:  # fmt: skip
    """Runs `evaluate` in `jobs` processes of this machine (joblib); `make` builds the experiment in each.

    The first process records the video; each has its own seed. `on_episode` is called when a process has played all its episodes.
    """
    import joblib

    jobs = max(1, min(jobs, episodes))
    seed = options.pop("seed", 0)
    together = Evaluation([], [])
    calls = (
        joblib.delayed(_part)(
            make, weights, episodes=episodes // jobs + (job < episodes % jobs), seed=seed + 1000 * job,
            video=None if job else video, **options,
        )
        for job in range(jobs)
    )  # fmt: skip
    for part in joblib.Parallel(n_jobs=jobs, return_as="generator")(calls):
        together.returns += part.returns
        together.lengths += part.lengths
        together.seconds, together.greedy = max(together.seconds, part.seconds), part.greedy
        together.video, together.note = together.video or part.video, together.note or part.note
        on_episode(len(together.returns), part.returns[-1])
    return together


def _part(make: Callable[[], Experiment], weights: Weights, **options: Any) -> Evaluation:
    set_threads(1)
    experiment = make()
    agent = experiment.agent()
    agent.set_weights(weights)
    return evaluate(experiment, agent, **options)


def _pool(experiment: Experiment, num_slots: int, envs: list[Any], render_mode: str | None) -> Pool:
    def make() -> Any:
        envs.append(experiment.env(evaluation=True, render_mode=render_mode if not envs else None))
        return envs[-1]

    try:
        return pool_of(make, num_slots)
    except ExperimentError:
        if experiment.make_pool is None or envs:
            raise
        return experiment.pool(num_slots)  # an experiment of vector environments only


class _Camera(contextlib.AbstractContextManager["_Camera"]):
    """Records the first episode, and those that follow in its place if it is short.

    A frame is what the environment renders, or an observation that is an image.
    """

    def __init__(self, path: Path | None, env: Any) -> None:
        self.path, self.note, self._env, self._open = path, "", env, True
        fps = (getattr(env, "metadata", None) or {}).get("render_fps") or 30
        self._writer = None if path is None else VideoWriter(path, fps)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        try:
            self._writer.__exit__(kind)
        except Exception as error:
            self._fail(error)

    def shoot(self, observations: nest.Tree) -> None:
        if self._writer is None or not self._open:
            return
        try:
            frame = picture(observations, self._env)
            if frame is None:
                raise ExperimentError("make_env takes no render_mode='rgb_array', and observations are no images")
            self._writer.write(frame)
        except Exception as error:  # a video is an extra: whatever a renderer lacks, the episodes are still played
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.path, self.note = None, f"no video: {error}"
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(type(error))  # leaves no file behind

    def cut(self) -> None:
        """An episode is over."""
        self._open = self._writer is not None and self._writer.frames < SHORT_SECONDS * self._writer.fps
