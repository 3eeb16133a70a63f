"""QAgent: an ε-greedy agent for Q-learning."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.networks import Outputs


class QAgent(TorchAgent):
    """Takes the action of the highest Q, or with probability ε a random one; every environment has its own ε.

    Any network for one Discrete action space works. Its value head is V and its policy head is A of a dueling network
    (Wang et al. 2016, eq. 9), so both heads learn:

        Q(o, a) = V(o) + A(o, a) − mean_a' A(o, a')

    As in Ape-X (Horgan et al. 2018, section 4.1), environment i of N has ε_i = ε^(1 + α i/(N−1)): some explore, others
    show what the agent has learned, and no schedule is needed. A player does not know all N environments of the run.
    Its n environments take values of i/(N−1) that are 1/n apart, starting from a random offset, so that together all
    players cover the range. ε is part of the recurrent state, so it stays the same when weights change. Sessions do not
    carry it.

    Args:
        network: see `TorchAgent`.
        action_space: of one environment.
        epsilon, alpha: ε and α.
        greedy_epsilon: ε of `act(greedy=True)`, for environments in which the greedy policy never ends an episode.
        dueling: False: the policy head alone is Q.
    Raises:
        SettingsError: the action space is not Discrete, or the network masks actions.
    """

    only_explores = True

    def __init__(
        self,
        network: Any,
        action_space: Any,
        *,
        epsilon: float = 0.4,
        alpha: float = 7.0,
        greedy_epsilon: float = 0.0,
        dueling: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        if not isinstance(action_space, spaces.Discrete):
            raise SettingsError(
                f"Q-learning compares all actions, so QAgent wants a Discrete action space; this one is {action_space}. "
                "For others take VTrace or PPO."
            )
        if getattr(network, "mask_at", None) is not None:
            raise SettingsError(
                "QAgent explores all actions and knows no masks, but the observations have available_actions. "
                "Rename that leaf, or take VTrace or PPO."
            )
        super().__init__(network, device)
        self.start = int(action_space.start)
        self.epsilon, self.alpha, self.greedy_epsilon, self.dueling = epsilon, alpha, greedy_epsilon, dueling

    def q_values(self, outputs: Outputs) -> Tensor:
        """Returns Q [T, B, A] float32 of a network's outputs."""
        (advantages,) = outputs.policy
        if not self.dueling:
            return advantages.float()
        return (outputs.values[..., None] + advantages - advantages.mean(-1, keepdim=True)).float()

    def initial_state(self, n: int) -> tuple[nest.Tree, Tensor]:
        """Returns (the network's recurrent state, [n] ε)."""
        offset = torch.rand((), generator=self.generator, device=self.device)
        places = (offset + torch.arange(n, device=self.device) / n) % 1
        return self.network.initial_state(n), self.epsilon ** (1 + self.alpha * places)

    @torch.inference_mode()
    def act(
        self, observations: nest.Tree, state: tuple[nest.Tree, Tensor], is_first: np.ndarray, greedy: bool = False
    ) -> tuple[np.ndarray, tuple[nest.Tree, Tensor], dict[str, np.ndarray]]:
        inner, epsilons = state
        rows = nest.map(lambda array: self._tensor(array)[None], observations)
        outputs, inner = self.network(rows, inner, self._tensor(is_first)[None])
        q = self.q_values(outputs)[0]
        chances = torch.rand(len(q), generator=self.generator, device=self.device)
        anything = torch.randint(q.shape[-1], (len(q),), generator=self.generator, device=self.device)
        explores = chances < (self.greedy_epsilon if greedy else epsilons)
        actions = torch.where(explores, anything, q.argmax(-1)) + self.start
        return actions.cpu().numpy(), (inner, epsilons), {}

    def state_arrays(self, state: tuple[nest.Tree, Tensor]) -> nest.Tree:
        return super().state_arrays(state[0])
