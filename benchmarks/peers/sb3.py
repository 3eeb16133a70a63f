"""Stable-Baselines3 at work, measured as its users run it. Prints one JSON line.

    python sb3.py fps a2c|ppo pong --seconds 20 [--threads 2] [--processes]
    python sb3.py cartpole SEED [--steps 100000]
    python sb3.py sac HalfCheetah-v5 SEED [--steps 100000] [--out FOLDER]

Settings are those of rl-baselines3-zoo: 8 environments; A2C with 5 steps, PPO with 128 steps, 4 epochs and minibatches of 256
on Pong; PPO with 32 steps, 20 epochs and one minibatch of 256 on CartPole; SAC as it comes, after 10,000 random steps, on MuJoCo's
tasks. Seconds count from the first step played. `sac` writes FOLDER/metrics.jsonl, which `tinyverse plot` draws, and
prints the mean return of 10 greedy episodes at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

NUM_ENVS, SOLVED, EPISODES, EVALUATED = 8, 475.0, 100, 10


def falling(start: float) -> Callable[[float], float]:
    """A schedule that falls in a line to 0."""
    return lambda remaining: start * remaining


def pong(algorithm: str, processes: bool) -> BaseAlgorithm:
    gymnasium.register_envs(ale_py)
    kind, options = (SubprocVecEnv, {"start_method": "fork"}) if processes else (DummyVecEnv, {})
    envs = make_atari_env("PongNoFrameskip-v4", n_envs=NUM_ENVS, vec_env_cls=kind, vec_env_kwargs=options)
    stacked: Any = VecFrameStack(envs, 4)
    if algorithm == "a2c":
        rmsprop = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
        return A2C("CnnPolicy", stacked, ent_coef=0.01, vf_coef=0.25, policy_kwargs=rmsprop, device="cpu")
    return PPO(
        "CnnPolicy", stacked, n_steps=128, n_epochs=4, batch_size=256, learning_rate=falling(2.5e-4),
        clip_range=falling(0.1), vf_coef=0.5, ent_coef=0.01, device="cpu",
    )  # fmt: skip


def cartpole(seed: int) -> BaseAlgorithm:
    envs = make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=seed)
    return PPO(
        "MlpPolicy", envs, n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, ent_coef=0.0,
        learning_rate=falling(1e-3), clip_range=falling(0.2), seed=seed, device="cpu",
    )  # fmt: skip


class Clock(BaseCallback):
    """Notes time and steps before each rollout; ends training after some seconds, the first rollouts not counted."""

    def __init__(self, seconds: float, warm: int) -> None:
        super().__init__()
        self.seconds, self.warm = seconds, warm
        self.marks: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.marks.append((time.perf_counter(), self.num_timesteps))

    def _on_step(self) -> bool:
        marks = self.marks[self.warm :]
        return len(marks) < 2 or marks[-1][0] - marks[0][0] < self.seconds

    def rate(self) -> float:
        (began, first), (ended, last) = self.marks[self.warm], self.marks[-1]
        return (last - first) / (ended - began)


class Curve(BaseCallback):
    """Writes seconds, steps and the mean return of the last 100 episodes at the end of each, as tinyverse does."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.began, self.returns = file, math.nan, []  # type: ignore[var-annotated]

    def _on_training_start(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("")
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        if ended := [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]:
            self.returns += ended
            row = {"seconds": time.perf_counter() - self.began, "step": self.num_timesteps}
            row |= {"play/return": float(np.mean(self.returns[-EPISODES:])), "play/episodes": len(self.returns)}
            with self.file.open("a") as out:
                out.write(json.dumps(row) + "\n")
        return True


class Solved(BaseCallback):
    """Ends training when the mean return of the last 100 episodes reaches 475."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: float | None = None
        self.began, self.returns = math.nan, []  # type: ignore[var-annotated]

    def _on_training_start(self) -> None:
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return self.seconds is None

    def _on_rollout_end(self) -> None:
        if len(self.returns) >= EPISODES and np.mean(self.returns[-EPISODES:]) >= SOLVED:
            self.seconds = time.perf_counter() - self.began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="fps a2c|ppo pong, cartpole SEED, or sac ENV SEED")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("sb3-sac"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", action="store_true", help="environments in processes of their own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.words[0] == "fps":
        algorithm = options.words[1]
        model, clock = pong(algorithm, options.processes), Clock(options.seconds, warm=1 if algorithm == "ppo" else 10)
        model.learn(10**9, callback=clock)
        result: dict[str, Any] = {"steps_per_second": clock.rate()}
    elif options.words[0] == "sac":
        env_id, seed = options.words[1], int(options.words[2])
        model = SAC("MlpPolicy", make_vec_env(env_id, seed=seed), learning_starts=10_000, seed=seed, device="cpu")
        model.learn(options.steps, callback=Curve(options.out / "metrics.jsonl"))
        mean, deviation = evaluate_policy(model, make_vec_env(env_id, seed=seed + 1000), n_eval_episodes=EVALUATED)
        result = {"steps": model.num_timesteps, "mean": mean, "error": deviation / math.sqrt(EVALUATED)}
    else:
        model, solved = cartpole(int(options.words[1])), Solved()
        model.learn(options.steps, callback=solved)
        passed = time.perf_counter() - solved.began
        result = {"steps_per_second": model.num_timesteps / passed, "seconds": solved.seconds, "total": passed}
        result |= {"steps": model.num_timesteps}
    model.get_env().close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
