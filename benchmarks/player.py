"""A player of Pong: 32 environments, the network of 2015 on 4 frames, pushing to a real server on the other core.

    python benchmarks/player.py [--json] [--smoke] [--repeats N]

ours     `Player` and `Uploader` as `tinyverse play` runs them, on one core; and on two, stepping while acting, with 64
         environments in each of the two pools: with fewer, threads interrupt each other more than they step
limit    1/(1/env + 1/net): ale-py's vector environment alone, and a bare network on stacked frames alone, on that core;
         for two cores twice that, with as many environments as a pool has
naive    the loop of the first tinyverse: Gymnasium's Atari wrappers stepped one by one in Python, a plain network, and
         each session of 20 steps through joblib with a heartbeat, a push and a trim; with 1 environment, its default, and 32
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Callable

import measure

from tinyverse.core import system

system.prepare()

import gymnasium  # noqa: E402
import joblib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from tinyverse import TorchAgent  # noqa: E402
from tinyverse.database.base import new_worker  # noqa: E402
from tinyverse.database.connection import connect  # noqa: E402
from tinyverse.database.redis import RedisDatabase  # noqa: E402
from tinyverse.database.server import private_server  # noqa: E402
from tinyverse.envs.atari import atari_pool  # noqa: E402
from tinyverse.networks import ModularNetwork, NatureConv, Window  # noqa: E402
from tinyverse.player.loop import play  # noqa: E402
from tinyverse.player.player import Player  # noqa: E402
from tinyverse.player.uploader import Uploader  # noqa: E402

STEPS = 20
# by cores, in a pool; an emulator takes 170 ms to start
NUM_ENVS = {1: 4, 2: 4} if "--smoke" in sys.argv else {1: 32, 2: 64}
PRECISIONS = {"fp32": torch.float32, **({"bf16": torch.bfloat16} if system.has_bfloat16() else {})}


def main() -> None:
    with measure.session("player", __doc__) as bench:
        torch.manual_seed(0)
        system.set_threads(1)
        with contextlib.ExitStack() as stack:
            with measure.on_core(1):
                server = stack.enter_context(private_server())
            for precision, dtype in PRECISIONS.items():
                with measure.on_core(0):
                    ways = {
                        "ours": ours(server.url, dtype, 1, bench.seconds(8.0)),
                        "limit": limit_of(dtype, NUM_ENVS[1], bench.seconds(4.0)),
                    }
                    wanted = {"limit": 0.88}
                    if precision == "fp32":
                        ways["naive, 1 environment"] = naive(server.admin_url, 1, bench.seconds(4.0))
                        ways["naive, 32 environments"] = naive(server.admin_url, NUM_ENVS[1], bench.seconds(4.0))
                        wanted |= {"naive, 1 environment": 3.0, "naive, 32 environments": 1.4}
                    bench.compare(f"one core, {precision}", ways, at_least=wanted)
                if system.cores() > 1:
                    ways = {
                        "ours": ours(server.url, dtype, 2, bench.seconds(8.0)),
                        "limit": twice(limit_of(dtype, NUM_ENVS[2], bench.seconds(4.0))),
                    }
                    bench.compare(f"two cores, {precision}", ways, at_least={"limit": 0.85})


def ours(url: str, dtype: torch.dtype, cores: int, seconds: float) -> measure.Way:
    """Steps played and pushed per second."""
    pools = [atari_pool("pong", NUM_ENVS[cores], num_threads=cores) for _ in range(cores)]
    parts = pools[0].observation_space, pools[0].action_space
    agents = [TorchAgent(ModularNetwork(*parts, trunk=Window(4, NatureConv()))).to(dtype=dtype) for _ in range(2)]
    database = RedisDatabase(url, f"player-{cores}-{dtype}".replace("torch.", ""))
    database.create({})
    database.report(capacity=5000)
    player = Player(agents[0], pools, STEPS)
    player.version = 0

    def way() -> float:
        uploader = Uploader(database, new_worker("play", num_envs=player.num_envs), agents[1])
        uploader.start()

        def work() -> float:
            return play(player, uploader, batches=2) * player.num_envs * STEPS

        rate = measure.rate_of(work, seconds)
        uploader.close()
        return rate

    return way


def limit_of(dtype: torch.dtype, num_envs: int, seconds: float) -> measure.Way:
    """1 / (1/env + 1/net), each measured alone on the first core."""
    env, act = bare_env(num_envs), bare_net(dtype, num_envs)

    def way() -> float:
        with measure.on_core(0):
            return 1 / sum(1 / measure.rate_of(part, seconds / 2) for part in (env, act))

    return way


def twice(way: measure.Way) -> measure.Way:
    return lambda: 2 * way()


def bare_env(num_envs: int) -> Callable[[], float]:
    with measure.on_core(0):  # its thread stays there
        pool = atari_pool("pong", num_envs)
        pool.reset(0)
    actions = np.random.default_rng(0).integers(0, 6, (1024, num_envs))
    choices = itertools.cycle(actions)

    def step() -> float:
        pool.step(next(choices))
        return num_envs

    return step


def bare_net(dtype: torch.dtype, num_envs: int) -> Callable[[], float]:
    """A forward pass over frames that lie stacked already, as its layers like them, and a draw."""
    network = plain_network().to(dtype=dtype, memory_format=torch.channels_last)
    frames = torch.randint(0, 255, (num_envs, 4, 84, 84), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )

    @torch.inference_mode()
    def act() -> float:
        outputs = network(frames.to(dtype)).float()
        outputs[:, :6].softmax(-1).multinomial(1).numpy()
        return num_envs

    return act


def plain_network() -> nn.Module:
    """Six logits and a value (Mnih et al. 2015), without the division by 255, which a first layer can have in it."""
    parts: list[nn.Module] = []
    for ends in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        parts += [nn.Conv2d(*ends), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 7))


def naive(url: str, num_envs: int, seconds: float) -> measure.Way:
    """The first tinyverse's loop."""
    import ale_py

    gymnasium.register_envs(ale_py)
    client, network = connect(url, name="naive", timeout=5.0), plain_network()
    envs = [gymnasium.wrappers.FrameStackObservation(_preprocessed(), 4) for _ in range(num_envs)]
    observations = [env.reset(seed=at)[0] for at, env in enumerate(envs)]

    def work() -> float:
        sessions: list[list[tuple[np.ndarray, int, float, bool]]] = [[] for _ in envs]
        for _ in range(STEPS):
            with torch.no_grad():
                outputs = network(torch.from_numpy(np.stack(observations)).float() / 255)
            actions = outputs[:, :6].softmax(-1).multinomial(1)[:, 0].tolist()
            for at, env in enumerate(envs):
                after, reward, terminated, truncated, _ = env.step(actions[at])
                sessions[at].append((observations[at], actions[at], float(reward), terminated))
                observations[at] = env.reset()[0] if terminated or truncated else after
        for session in sessions:
            _record(client, session)
        return STEPS * num_envs

    return lambda: measure.rate_of(work, seconds)


def _preprocessed() -> gymnasium.Env:
    env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    return gymnasium.wrappers.AtariPreprocessing(env)


def _record(client: object, session: list[tuple[np.ndarray, int, float, bool]]) -> None:
    buffer = io.BytesIO()
    joblib.dump([np.stack(column) for column in zip(*session, strict=True)], buffer)
    client.set("{naive}:beat", 1)
    client.expire("{naive}:beat", 60)
    client.lpush("{naive}:sessions", buffer.getvalue())
    client.ltrim("{naive}:sessions", 0, 499)


if __name__ == "__main__":
    main()
