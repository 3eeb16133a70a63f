"""Environments: what each kind gives raw, and through a player that pushes to a real server.

    python benchmarks/environments.py [--json] [--smoke] [--repeats N] [--write]

ours     `Player` and `Uploader`, as `tinyverse play` runs them, in steps per second
limit    the bare environments stepped in a loop with actions drawn before, reset when they end

Resets are no steps, here and there. `--write` puts the table into docs/environments.md; what is not installed is left
out. With `--repeats 3` it takes less than four minutes.
"""

from __future__ import annotations

import datetime
import importlib.util
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import measure

from tinyverse.core import system

system.prepare()

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402

from tinyverse.agents.agent import Agent  # noqa: E402
from tinyverse.core import nest  # noqa: E402
from tinyverse.database.base import new_worker  # noqa: E402
from tinyverse.database.redis import RedisDatabase  # noqa: E402
from tinyverse.database.server import private_server  # noqa: E402
from tinyverse.envs import Pool, pool_of  # noqa: E402
from tinyverse.player.loop import play  # noqa: E402
from tinyverse.player.player import Player  # noqa: E402
from tinyverse.player.uploader import Uploader  # noqa: E402

PAGE = Path(__file__).resolve().parent.parent / "docs" / "environments.md"
BEGIN, END = "<!-- environments -->\n", "<!-- end of environments -->\n"
STEPS, NUM_ENVS, SECONDS = 20, 2 if "--smoke" in sys.argv else 16, 2.0


def _old_gym() -> Any:
    import gym

    return gym.make("CartPole-v1", disable_env_checker=True)


def _minigrid() -> Any:
    import minigrid

    gymnasium.register_envs(minigrid)
    return minigrid.wrappers.ImgObsWrapper(gymnasium.make("MiniGrid-Empty-8x8-v0"))


def _doom() -> Any:
    import vizdoom.gymnasium_wrapper  # noqa: F401  # registers the scenarios

    return gymnasium.make("VizdoomBasic-v1", screen_resolution="RES_160X120")


def _dm_control() -> Any:
    from dm_control import suite

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of its own models, at each load
    return suite.load("cartpole", "swingup")


def _agents() -> Any:
    from pettingzoo.classic import rps_v2

    return rps_v2.parallel_env()


def _envpool() -> Any:
    import envpool

    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=NUM_ENVS)


def _atari() -> Any:
    from tinyverse.envs.atari import atari_pool

    return atari_pool("pong", NUM_ENVS)


def _vector() -> Any:
    return gymnasium.make_vec("CartPole-v1", num_envs=NUM_ENVS, vectorization_mode="vector_entry_point")


LEARNED = "learned: [results](results/README.md), 2026-11-21"
ROW_BY_ROW = "row by row: `tests/{}`, 2026-11-21"


class Kind(NamedTuple):
    """An environment, how it is made, and what was run with it here beside this script, and when."""

    name: str
    extra: str
    package: str
    make: Callable[[], Any]  # one environment, or all of them
    ran: str


KINDS = [
    Kind("Gymnasium CartPole-v1", "", "gymnasium", lambda: gymnasium.make("CartPole-v1"), LEARNED),
    Kind("Gymnasium CartPole-v1, vector", "", "gymnasium", _vector, ROW_BY_ROW.format("test_foreign.py")),
    Kind("old gym 0.26.2 CartPole-v1", "gym", "gym", _old_gym, ROW_BY_ROW.format("test_foreign.py")),
    Kind("envpool CartPole-v1", "envpool", "envpool", _envpool, ROW_BY_ROW.format("test_foreign.py")),
    Kind("PettingZoo rps_v2", "pettingzoo", "pettingzoo", _agents, ROW_BY_ROW.format("test_loop.py")),
    Kind("dm_control cartpole swingup", "dm-control", "dm_control", _dm_control, ROW_BY_ROW.format("test_foreign.py")),
    Kind("ViZDoom Basic", "vizdoom", "vizdoom", _doom, LEARNED),
    Kind(
        "MuJoCo HalfCheetah-v5",
        "mujoco",
        "mujoco",
        lambda: gymnasium.make("HalfCheetah-v5"),
        LEARNED,
    ),
    Kind("MiniGrid-Empty-8x8-v0", "minigrid", "minigrid", _minigrid, LEARNED),
    Kind("Box2D LunarLander-v3", "box2d", "Box2D", lambda: gymnasium.make("LunarLander-v3"), LEARNED),
    Kind("Atari Pong, vector", "atari", "ale_py", _atari, LEARNED),
]


class Drawn(Agent):
    """Takes actions that were drawn before, so that the cost of an agent is not measured."""

    def __init__(self, pool: Pool) -> None:
        self._choices = itertools.cycle(drawn(pool))

    def act(self, observations: Any, state: Any, is_first: np.ndarray, greedy: bool = False) -> tuple[Any, Any, dict]:
        return next(self._choices), state, {}


def drawn(pool: Pool) -> list[nest.Tree]:
    """Actions of all environments, [B, …] per leaf."""
    samples = ([pool.action_space.sample() for _ in range(pool.num_envs)] for _ in range(64))
    return [nest.map(lambda *leaves: np.stack(leaves), *actions) for actions in samples]


def main() -> None:
    write = "--write" in sys.argv and not sys.argv.remove("--write")
    spaces: dict[str, tuple[Any, Any]] = {}
    with measure.session("environments", __doc__) as bench, private_server() as server:
        for number, kind in enumerate(KINDS):
            if importlib.util.find_spec(kind.package) is None:
                continue
            try:
                pool = pool_of(kind.make, NUM_ENVS)
            except (
                ImportError,
                AttributeError,
                gymnasium.error.Error,
            ) as error:  # installed, but not with what is here
                print(f"{kind.name} cannot be built: {error}", file=sys.stderr)
                continue
            spaces[kind.name] = (pool.observation_space, pool.action_space)
            seconds = bench.seconds(SECONDS)
            ours = played(server.url, f"environment-{number}", pool, seconds)
            bench.compare(kind.name, {"ours": ours, "limit": raw(kind.make, pool, seconds)})
            pool.close()
    if write and not bench.smoke:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        rows = {row.what: row for row in bench.rows}
        PAGE.write_text(before + BEGIN + table(rows, spaces) + END + rest.partition(END)[2])


def played(url: str, run: str, pool: Pool, seconds: float) -> measure.Way:
    """Steps played and pushed per second."""
    agents = [Drawn(pool) for _ in range(2)]
    database = RedisDatabase(url, run)
    database.create({})
    database.report(capacity=1000)
    player = Player(agents[0], pool, STEPS)
    player.version = 0

    def way() -> float:
        uploader = Uploader(database, new_worker("play", num_envs=pool.num_envs), agents[1])
        uploader.start()

        def some() -> int:
            before = player.rate.total
            play(player, uploader, batches=2)
            return player.rate.total - before

        rate = measure.rate_of(some, seconds)
        uploader.close()
        return rate

    return way


def raw(make: Callable[[], Any], pool: Pool, seconds: float) -> measure.Way:
    """Steps of the bare environments per second, as whoever wrote them would step them."""
    first = make()
    vector = isinstance(first, (gymnasium.vector.VectorEnv, Pool))
    space = pool.action_space
    if vector:
        choices = itertools.cycle(drawn(pool))
        first.reset()
        ended = np.zeros(pool.num_envs, bool)

        def step() -> float:
            nonlocal ended
            alive = pool.num_envs - ended.sum()
            _, _, terminated, truncated, *_ = first.step(next(choices))
            ended = terminated | truncated
            return alive
    elif hasattr(first, "possible_agents"):
        choices = itertools.cycle([{agent: space.sample() for agent in first.possible_agents} for _ in range(64)])
        first.reset()

        def step() -> float:
            if not first.agents:
                first.reset()
            first.step(next(choices))
            return len(first.possible_agents)
    else:
        choices = itertools.cycle([space.sample() for _ in range(64)])
        first.reset()

        def step() -> float:
            result = first.step(next(choices))
            if result.last() if hasattr(result, "last") else result[2] or result[3]:
                first.reset()
            return 1

    return lambda: measure.rate_of(step, seconds)


def table(rows: dict[str, measure.Row], spaces: dict[str, tuple[Any, Any]]) -> str:
    lines = [f"{datetime.date.today()}, {measure.MACHINE}, {NUM_ENVS} games\n"]
    lines += ["| environment | extra | observations | actions | raw, steps/s | through `play` | ratio | run here |"]
    lines += ["|---|---|---|---|---:|---:|---:|---|"]
    for kind in KINDS:
        extra = f"`{kind.extra}`" if kind.extra else ""
        if kind.name not in rows:
            lines.append(f"| {kind.name} | {extra} | | | not here | | | {kind.ran} |")
            continue
        row, (observations, actions) = rows[kind.name], spaces[kind.name]
        limit, ours = (measure.number(row.median(way)) for way in ("limit", "ours"))
        lines.append(
            f"| {kind.name} | {extra} | {_short(observations)} | {_short(actions)} | {limit} | {ours} "
            f"| {row.ratio('limit'):.2f} | {kind.ran} |"
        )
    return "\n".join(lines) + "\n"


def _short(space: Any) -> str:
    """A space in a few characters: bounds are left out."""
    if hasattr(space, "spaces"):
        return type(space).__name__ + str(nest.of_space(space, _short)).replace("'", "")
    return f"{type(space).__name__}({getattr(space, 'n', None) or ', '.join(map(str, [*space.shape, space.dtype]))})"


if __name__ == "__main__":
    main()
