"""Ring: where sessions lie on a device, each one row of bytes, so that a session is one copy however many fields it has.

On a CUDA device a row is filled in pinned memory first and copied beside the computation, on a stream of its own:
learning waits for a copy only if it wants what is still being copied, and a copy waits only while its slot is read.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tinyverse.core.session import SessionSpec

ALIGNED = 16  # bytes; every field begins at a multiple of it
STAGED = 64  # sessions that may be on their way to a CUDA device


class Ring:
    """`size` slots of one session each.

    Attributes:
        fields: [size, …] by dotted name, views of `bytes`.
        bytes: [size, width] uint8.
    """

    def __init__(self, spec: SessionSpec, size: int, device: str | torch.device = "cpu", *, pinned: bool = False):
        self._spec, self._offsets, width = spec, dict[str, int](), 0  # where each field begins in a row; bytes
        for name, (shape, dtype) in spec.fields.items():
            self._offsets[name] = width
            width += -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED
        self.device = torch.device(device)
        self.bytes = torch.empty((size, width), dtype=torch.uint8, device=self.device, pin_memory=pinned)
        self.fields = self._fields(self.bytes)
        self._cuda = _Stream(spec, self.device) if self.device.type == "cuda" else None
        self._views = {name: field.numpy() for name, field in self.fields.items()} if self._cuda is None else {}

    def write(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        """Puts a session into a slot."""
        if self._cuda is not None:
            self._cuda.write(self.bytes[slot], arrays)
            return
        for name, array in arrays.items():
            self._views[name][slot] = array

    def take(self, slots: Tensor) -> dict[str, Tensor]:
        """Copies of the sessions in these slots [B]: [B, …] by dotted name. Rows are copied ten times as fast as parts."""
        with self.reading():
            return self._fields(self.bytes.index_select(0, slots))

    def rows(self, slots: Tensor) -> Tensor:
        """[n, width] bytes of the sessions in slots [n], a copy on the host. CPU–GPU sync."""
        with self.reading():
            return self.bytes.index_select(0, slots.to(self.device)).cpu()

    def put_rows(self, slots: Tensor, rows: Tensor) -> None:
        """Puts sessions back into slots [n] as `rows` gave them."""
        with self.reading():  # whatever is written after this waits for it
            self.bytes.index_copy_(0, slots.to(self.device), rows.to(self.device))

    def _fields(self, rows: Tensor) -> dict[str, Tensor]:
        """[n, …] by dotted name, views of columns of rows [n, width]."""
        fields = {}
        for name, (shape, dtype) in self._spec.fields.items():
            typed = rows.view(torch.from_numpy(np.empty(0, dtype)).dtype)
            columns = typed.narrow(1, self._offsets[name] // dtype.itemsize, math.prod(shape))
            fields[name] = columns.view(len(rows), *shape)
        return fields

    @contextlib.contextmanager
    def reading(self) -> Iterator[dict[str, Tensor]]:
        """The fields, for indexing inside the block; nothing is written over meanwhile."""
        if self._cuda is None:
            yield self.fields
            return
        stream = torch.cuda.current_stream(self.device)
        stream.wait_stream(self._cuda.stream)
        yield self.fields
        self._cuda.read.record(stream)


class _Stream:
    """The way to a CUDA device: pinned rows, used in turn, and a stream that copies them."""

    def __init__(self, spec: SessionSpec, device: torch.device) -> None:
        self.stream, self.read = torch.cuda.Stream(device), torch.cuda.Event()
        self._staged = Ring(spec, STAGED, pinned=True)
        self._copied = [torch.cuda.Event() for _ in range(STAGED)]
        self._turn = 0

    def write(self, row: Tensor, arrays: dict[str, np.ndarray]) -> None:
        turn, self._turn = self._turn, (self._turn + 1) % STAGED
        self._copied[turn].synchronize()
        self._staged.write(turn, arrays)
        self.stream.wait_event(self.read)
        with torch.cuda.stream(self.stream):
            row.copy_(self._staged.bytes[turn], non_blocking=True)
        self._copied[turn].record(self.stream)
