"""Attention body: its recurrent state is the newest embeddings, which it attends to."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.networks.bodies import Stage, in_full_precision
from tinyverse.networks.trunks import Identity, orthogonal


class Attention(Stage):
    """One gated transformer block over the newest embeddings of the episode (Parisotto et al. 2020, GTrXL, section 3).

        e = W x,    y = gate(e, ReLU(attention(LN(e), LN(the last `memory` and e)))),    gate(y, ReLU(MLP(LN(y))))

    A learned number for each head and distance is added to the scores (Raffel et al. 2020, T5, section 2.1). The
    recurrent state is {"embeddings" [B, memory, size] float32, oldest first, "valid" [B, memory] bool}. It takes 4 ·
    memory · size bytes of every session. Embeddings in it come from older weights and get no gradient.

    Args:
        size: of embeddings and features; a multiple of `heads`.
        heads: of the attention; each has `size` / `heads` numbers.
        memory: how many rows before the present one are seen.
    Raises:
        SettingsError: `size` is no multiple of `heads`, or `memory` is below 1.
    """

    def __init__(self, size: int = 128, heads: int = 4, memory: int = 32) -> None:
        super().__init__()
        if size % heads or memory < 1:
            raise SettingsError(
                f"Attention(size={size}, heads={heads}, memory={memory}) cannot be: "
                "size must be a multiple of heads, and memory 1 or more."
            )
        self.size, self.heads, self.memory = size, heads, memory

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        size = self.size
        self.embed = orthogonal(nn.Linear(Identity().build(shape), size), 1.0)
        self.norm, self.norm_mlp = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.mix = (orthogonal(nn.Linear(size, size), 1.0) for _ in range(2))
        self.key_value = orthogonal(nn.Linear(size, 2 * size), 1.0)
        self.nearness = nn.Parameter(torch.zeros(self.heads, self.memory + 1))  # by distance; 0 is the row itself
        wide = orthogonal(nn.Linear(size, 4 * size))
        self.mlp = nn.Sequential(wide, nn.ReLU(), orthogonal(nn.Linear(4 * size, size)))
        self.gate, self.gate_mlp = Gate(size), Gate(size)
        return size

    def initial_state(self, n: int, device: torch.device) -> nest.Tree:
        return {
            "embeddings": torch.zeros(n, self.memory, self.size, device=device),
            "valid": torch.zeros(n, self.memory, dtype=torch.bool, device=device),
        }

    def forward(self, x: Tensor, state: nest.Tree, is_first: Tensor) -> tuple[Tensor, nest.Tree]:
        weight = self.embed.weight
        with in_full_precision(x.device):
            e = self.embed(x.flatten(2).to(weight.dtype))
            history = torch.cat([state["embeddings"].transpose(0, 1).to(weight.dtype), e])  # row t at memory + t
            seen, valid = visible(state["valid"], is_first)
            y = self.gate(e, functional.relu(self._attend(history, seen)))
            y = self.gate_mlp(y, functional.relu(self.mlp(self.norm_mlp(y))))
        newest = history[-self.memory :].transpose(0, 1).float() * valid[..., None]
        return y, {"embeddings": newest, "valid": valid}

    def _attend(self, history: Tensor, seen: Tensor) -> Tensor:
        """Returns [T, B, size] of `history` [memory + T, B, size], of which row t sees `seen` [B, T, memory + T]."""
        normed, steps = self.norm(history), seen.shape[1]
        queries = self._apart(self.query(normed[-steps:]))
        keys, values = (self._apart(part) for part in self.key_value(normed).chunk(2, -1))
        places, rows = (torch.arange(n, device=seen.device) for n in (len(history), steps))
        distance = (rows[:, None] + self.memory - places).clamp(0, self.memory)
        scores = self.nearness[:, distance].masked_fill(~seen[:, None], float("-inf"))  # [B, heads, T, memory + T]
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=scores)
        return self.mix(found.permute(2, 0, 1, 3).flatten(2))

    def _apart(self, x: Tensor) -> Tensor:
        """[rows, B, size] to [B, heads, rows, size / heads]."""
        return x.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)


class Gate(nn.Module):
    """A GRU's gate in place of a residual sum (Parisotto et al. 2020, section 3.2); initially it passes mostly x.

    r = σ(W_r y + U_r x),  z = σ(W_z y + U_z x − 2),  h = tanh(W_h y + U_h (r ⊙ x)),  (1 − z) ⊙ x + z ⊙ h
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.y, self.x = orthogonal(nn.Linear(size, 3 * size), 1.0), orthogonal(nn.Linear(size, 2 * size, False), 1.0)
        self.rx = orthogonal(nn.Linear(size, size, bias=False), 1.0)
        nn.init.constant_(self.y.bias[size : 2 * size], -2.0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        (r_y, z_y, h_y), (r_x, z_x) = self.y(y).chunk(3, -1), self.x(x).chunk(2, -1)
        r, z = (r_y + r_x).sigmoid(), (z_y + z_x).sigmoid()
        return (1 - z) * x + z * (h_y + self.rx(r * x)).tanh()


def visible(valid: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which places of the history each row may attend to: itself and the M before it, within its episode.

    Args:
        valid: [B, M] bool: which places of the recurrent state hold an embedding; row t is at place M + t.
        is_first: [T, B] bool: an episode begins at this row.
    Returns:
        [B, T, M + T] bool, and the `valid` [B, M] of the newest M places after the last row.
    """
    past, (steps, num_envs) = valid.shape[1], is_first.shape
    places = torch.arange(past + steps, device=is_first.device)
    rows = places[:steps, None]
    oldest = torch.where(is_first, rows + past, 0).cummax(0).values.t()[..., None]  # [B, T, 1]
    held = torch.cat([valid, valid.new_ones(num_envs, steps)], 1)
    near = (places >= rows) & (places <= rows + past)
    seen = near & held[:, None] & (places >= oldest)
    return seen, (held & (places >= oldest[:, -1]))[:, -past:]
