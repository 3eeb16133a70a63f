"""Recurrent bodies: LSTM and GRU. They carry a state from row to row and reset it where an episode begins."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from tinyverse.core import nest
from tinyverse.networks.bodies import Stage, in_full_precision
from tinyverse.networks.trunks import Identity, orthogonal

State = dict[str, Tensor]  # [B, size] each


class Recurrent(Stage):
    """A recurrence over rows. A subclass defines `build` and `rows`, and names its layers and the parts of its state."""

    layers: str  # the attribute that `build` sets
    parts: tuple[str, ...]

    def __init__(self, size: int = 256) -> None:
        super().__init__()
        self.size = size

    def rows(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns outputs of consecutive rows x [T, B, D] and the state after them, from the state before them."""
        raise NotImplementedError(f"{type(self).__name__} must define rows()")

    def initial_state(self, n: int, device: torch.device) -> nest.Tree:
        return {name: torch.zeros(n, self.size, device=device) for name in self.parts}

    def forward(self, x: Tensor, state: nest.Tree, is_first: Tensor) -> tuple[Tensor, nest.Tree]:
        dtype, x, outputs = getattr(self, self.layers).weight_ih_l0.dtype, x.flatten(2), []
        kept, state = (~is_first).to(dtype)[..., None], {name: part.to(dtype) for name, part in state.items()}
        with in_full_precision(x.device):
            for start, stop in itertools.pairwise(_pieces(is_first)):
                begun = {name: part * kept[start] for name, part in state.items()}
                output, state = self.rows(x[start:stop].to(dtype), begun)
                outputs.append(output)
        features = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return features, {name: part.float() for name, part in state.items()}


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997); its state is {"h", "c"}, each [B, size] float32.

    Biases begin at 0, that of the forget gate at 1 (Jozefowicz et al. 2015, section 2.2). After ten rows an input then
    still makes up a twentieth of the cell instead of a thousandth, so that gradients reach it.

    Args:
        size: of the state, and number of features.
        layer_norm: normalise gates and cell (Ba et al. 2016, eq. 20-22). This runs row by row, so learning is slower.
    """

    layers, parts = "lstm", ("h", "c")

    def __init__(self, size: int = 256, *, layer_norm: bool = False) -> None:
        super().__init__(size)
        self.layer_norm = layer_norm

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        inputs = Identity().build(shape)
        self.lstm: Any = NormalizedLSTM(inputs, self.size) if self.layer_norm else nn.LSTM(inputs, self.size)
        orthogonal(self.lstm, gain=1.0)
        biases = dict(self.lstm.named_parameters())["norm_ih.bias" if self.layer_norm else "bias_ih_l0"]
        nn.init.ones_(biases[self.size : 2 * self.size])  # input, forget, cell, output
        return self.size

    def rows(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state["h"], state["c"]
        if self.layer_norm:
            outputs, h, c = self.lstm(x, h, c)
        elif len(x) == 1:  # three times as fast as nn.LSTM for one row
            h, c = torch.lstm_cell(x[0], (h, c), *self.lstm.all_weights[0])
            outputs = h[None]
        else:
            outputs, (h, c) = self.lstm(x, (h[None], c[None]))
            h, c = h[0], c[0]
        return outputs, {"h": h, "c": c}


class GRU(Recurrent):
    """Gated recurrent units (Cho et al. 2014): three quarters of an LSTM's arithmetic. The state is {"h"}, [B, size] float32."""

    layers, parts = "gru", ("h",)

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        self.gru: Any = orthogonal(nn.GRU(Identity().build(shape), self.size), gain=1.0)
        return self.size

    def rows(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if len(x) == 1:
            h = torch.gru_cell(x[0], state["h"], *self.gru.all_weights[0])
            return h[None], {"h": h}
        outputs, h = self.gru(x, state["h"][None])
        return outputs, {"h": h[0]}


class NormalizedLSTM(nn.Module):
    """An LSTM with layer-normalised gates and cell (Ba et al. 2016, eq. 20-22).

        i, f, g, o = LN(W h) + LN(U x)
        c' = σ(f) c + σ(i) tanh(g),    h' = σ(o) tanh(LN(c'))

    The weights have the names and the order of `nn.LSTM`; the biases are those of the normalisations.
    """

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * size, inputs))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * size, size))
        self.norm_ih, self.norm_hh, self.norm_c = nn.LayerNorm(4 * size), nn.LayerNorm(4 * size), nn.LayerNorm(size)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns outputs [T, B, size] for x [T, B, D], and the state after the last row."""
        outputs = []
        for row in self.norm_ih(x @ self.weight_ih_l0.t()):
            i, f, g, o = (row + self.norm_hh(h @ self.weight_hh_l0.t())).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * self.norm_c(c).tanh()
            outputs.append(h)
        return torch.stack(outputs), h, c


def _pieces(is_first: Tensor) -> list[int]:
    """Returns the rows where some environment starts an episode, with 0 and T; a fused kernel runs from one to the next."""
    if len(is_first) == 1:
        return [0, 1]
    restarts = is_first[1:].any(1).nonzero().flatten() + 1
    return [0, *restarts.tolist(), len(is_first)]  # CPU–GPU sync
