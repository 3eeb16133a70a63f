"""Factory: makes a pool of whatever `make_env` or `make_pool` returns, or refuses it in one sentence."""

from collections.abc import Callable
from typing import Any

from gymnasium.vector import VectorEnv

from tinyverse.core.errors import ExperimentError
from tinyverse.core.text import article, counted
from tinyverse.envs.pool import Pool, SerialPool, VectorPool
from tinyverse.envs.restarting_pool import RestartingPool


def pool_of(
    thing: Any,
    num_envs: int,
    *,
    realtime: bool = False,
    restart: bool = False,
    remake: Callable[[], Any] | None = None,
) -> Pool:
    """Makes a pool of a Pool, a VectorEnv, or a function that makes one of these or a single environment.

    Args:
        num_envs: number of environments in the pool.
        realtime: see `Pool`.
        restart: restart what fails instead of raising.
        remake: makes another VectorEnv or Pool in place of a failed one; None: `thing` does, if it is a function.
    Raises:
        ExperimentError: `thing` is none of these, or has another number of environments.
    """
    made = thing() if callable(thing) else thing
    remake = remake or (thing if callable(thing) else None)
    if isinstance(made, (VectorEnv, Pool)):
        pool = _whole(made, num_envs, realtime)
        return RestartingPool(pool, lambda: _whole(remake(), num_envs, realtime)) if restart and remake else pool
    if not callable(thing):
        raise ExperimentError(
            f"got {article(thing)}, wanted a function that makes an environment, or a Gymnasium VectorEnv."
        )
    first = [made]

    def make() -> Any:
        return first.pop() if first else thing()

    return SerialPool(make, num_envs, realtime=realtime, restart=restart)


def _whole(made: VectorEnv | Pool, num_envs: int, realtime: bool) -> Pool:
    pool = VectorPool(made) if isinstance(made, VectorEnv) else made
    pool.realtime = pool.realtime or realtime
    if pool.num_envs != num_envs:
        raise ExperimentError(
            f"got {counted(pool.num_envs, 'environment')}, wanted {num_envs}: build the vector environment with num_envs={num_envs}."
        )
    return pool
