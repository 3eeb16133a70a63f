"""Rollout: T steps of B environments as they were played, and how sessions are cut from them."""

import dataclasses
import json

import numpy as np

from tinyverse.core import nest
from tinyverse.core.session import FIELDS, Session, flatten, rows_beyond


@dataclasses.dataclass
class Rollout:
    """T steps of B environments, time first. Names are those of a session's `FIELDS`."""

    observations: nest.Tree  # [T+1, B, …] per leaf
    actions: nest.Tree  # [T, B, …] per leaf; None until the first were chosen
    rewards: np.ndarray  # [T, B]
    terminated: np.ndarray  # [T, B]
    truncated: np.ndarray  # [T, B]
    valid: np.ndarray  # [T, B]
    initial_state: nest.Tree  # [B, …] per leaf
    extras: dict[str, np.ndarray]  # [T, B, …]
    episodes: list[list[tuple[float, int]]]  # per environment: (return, length) of those that ended
    version: int  # of the weights that play it
    update: int

    @property
    def num_envs(self) -> int:
        return len(self.episodes)

    def sessions(self, player: str, sequence: int, **marks: str) -> list[Session]:
        """Returns one session per environment, numbered from `sequence`; they share the rollout's memory.

        `marks` join the metadata.
        """
        leaves = flatten({name: getattr(self, name) for name in FIELDS})
        columns = {name: leaf if rows_beyond(name) is None else leaf.swapaxes(0, 1) for name, leaf in leaves.items()}
        played = {"version": str(self.version), "update": str(self.update), **marks}
        return [
            Session(
                {name: column[index] for name, column in columns.items()},
                {"player": player, "sequence": str(sequence + index), **played, **_ended(episodes)},
            )
            for index, episodes in enumerate(self.episodes)
        ]


def empty(tree: nest.Tree, length: int, num_envs: int) -> nest.Tree:
    """Returns empty arrays [length, num_envs, …] for leaves [n, …], of which a session is a part without a copy."""

    def one(leaf: np.ndarray) -> np.ndarray:
        return np.empty((num_envs, length, *np.shape(leaf)[1:]), np.asarray(leaf).dtype).swapaxes(0, 1)

    return nest.map(one, tree)


def _ended(episodes: list[tuple[float, int]]) -> dict[str, str]:
    totals, lengths = [total for total, _ in episodes], [length for _, length in episodes]
    return {"returns": json.dumps(totals), "lengths": json.dumps(lengths)}
