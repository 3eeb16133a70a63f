"""R2D2: DQN with a recurrent network."""

from typing import Any

from tinyverse.agents.q_agent import QAgent
from tinyverse.algorithms.dqn import DQN


class R2D2(DQN):
    """Recurrent replay distributed DQN (Kapturowski et al. 2019): DQN over slices, with the paper's settings.

    The network's body should be an LSTM. A slice at the beginning of its session starts from the recurrent state that
    the player had; any other slice starts from zeros. In both cases the first `burn_in` rows only update the state with
    today's weights. Sessions of `burn_in + length` rows are used whole. In longer sessions every row but the first
    `burn_in` can be learned from.

    Takes the arguments of `DQN`. The paper's prioritisation is `Prioritized(alpha=0.9, beta=0.6)`.
    """

    def __init__(
        self,
        agent: QAgent,
        *,
        discount: float = 0.997,
        n: int = 5,
        target_every: int = 2500,
        squash: float | None = 1e-3,
        length: int | None = 80,
        burn_in: int = 40,
        **others: Any,
    ) -> None:
        others |= {"discount": discount, "length": length, "burn_in": burn_in}
        super().__init__(agent, n=n, target_every=target_every, squash=squash, **others)
