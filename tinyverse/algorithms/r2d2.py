"""R2D2: DQN with a recurrent network (Kapturowski et al. 2019, Recurrent Experience Replay in Distributed RL)."""

from __future__ import annotations

from typing import Any

from tinyverse.agents.q_agent import QAgent
from tinyverse.algorithms.dqn import DQN


class R2D2(DQN):
    """Recurrent replay distributed DQN (Kapturowski et al. 2019): DQN over slices, with the paper's settings.

    Its network has an LSTM for a body. A slice that begins with its session has the LSTM's state as it was in play,
    any other starts from zero; in either case `burn_in` rows only bring it up to date with today's weights. Sessions of
    `burn_in + length` rows are taken whole; the rows of longer ones are all learned from, but for the first `burn_in`.

    Takes what `DQN` takes. The paper's prioritisation is `Prioritized(alpha=0.9, beta=0.6)`.
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
        super().__init__(
            agent,
            discount=discount,
            n=n,
            target_every=target_every,
            squash=squash,
            length=length,
            burn_in=burn_in,
            **others,
        )
