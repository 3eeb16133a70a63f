"""Distributed training: several trainer processes, the ranks, learn as one. All of torch.distributed is in this file.

Every rank has the same weights and takes the same steps, each from its own share of the sessions. A process that no
launcher started is alone. Every function here is then the identity and costs nothing.

    launch(words, 4)         starts this command four times here, and again from the checkpoint when one of them dies
    with joined("cuda"):     in each of them (also under `torchrun`, on several machines)
        exchange(ready, …)   once a turn: all ranks step, or all wait

Control numbers travel over gloo and host memory, so they wait for no GPU. Gradients on GPUs travel over NCCL. Only the
training thread calls collectives, in the same order on all ranks.
"""

import atexit
import contextlib
import io
import os
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn

from tinyverse.core.errors import RankLost, SettingsError, TinyverseError

RESTARTS = 20  # of all ranks, before `launch` gives up


def launched() -> bool:
    """Whether a launcher (`launch`, `torchrun`) started this process as a rank."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def restarted() -> bool:
    """Whether the ranks have been started before by the same launcher, and one of them died."""
    return launched() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def rank() -> int:
    """Which of the ranks this process is, from 0."""
    return dist.get_rank() if _together() else 0


def size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _together() else 1


def neighbours() -> int:
    """How many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _together() else 1


def is_rank_zero() -> bool:
    """Whether this is rank 0, which alone publishes and writes files."""
    return rank() == 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Makes this process one of the ranks that its launcher started, if one did; yields the device to learn on.

    Of "cuda" each rank of a machine takes another. Raises SettingsError where all are to take a certain GPU.
    """
    if not launched():
        yield device
        return
    if ":" in device:
        raise SettingsError(f"--device {device} for several ranks: write --device cuda, and each takes one of its own.")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    with _among_peers():
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Rank 0 passes through the block before the others enter it."""
    if not is_rank_zero():
        any_rank(False)
    yield
    if is_rank_zero():
        any_rank(False)


def exchange(*numbers: float) -> list[tuple[float, ...]]:
    """The numbers (as float64) of every rank, by rank. At least one number: no rank waits for an empty message."""
    if not _together():
        return [numbers]
    mine = torch.tensor(numbers, dtype=torch.float64)
    all_ranks = [torch.empty_like(mine) for _ in range(size())]
    with _among_peers():
        dist.all_gather(all_ranks, mine)
    return [tuple(row.tolist()) for row in all_ranks]


def any_rank(true: bool) -> bool:
    """Whether it is true on any rank."""
    return any(value for (value,) in exchange(true))


def broadcast(contents: Any, source: int = 0) -> Any:
    """What the rank `source` gave: dicts and lists of tensors, numbers and strings. Nothing else is read."""
    if not _together():
        return contents
    mine = io.BytesIO()
    if rank() == source:
        torch.save(contents, mine)
    length = int(exchange(mine.tell())[source][0])
    buffer = torch.frombuffer(bytearray(mine.getvalue() or length), dtype=torch.uint8)
    with _among_peers():
        dist.broadcast(buffer, source)
    return torch.load(io.BytesIO(buffer.numpy().tobytes()), map_location="cpu", weights_only=True)


def total(numbers: Tensor) -> Tensor:
    """The sum over all ranks, element by element; a constant, through which no gradient flows."""
    if not _together():
        return numbers
    numbers = numbers.detach().clone()
    with _among_peers():
        dist.all_reduce(numbers)
    return numbers


def mean(numbers: Tensor) -> Tensor:
    """The mean over all ranks, as `total`."""
    return total(numbers) / size()


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over all ranks.

    With the mean a term that every rank has alike (a regulariser, SAC's target entropy) keeps its size. `losses.count`,
    by which sums over rows are divided, is the mean number of rows of a rank.
    """
    if not _together():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    averaged = mean(nn.utils.parameters_to_vector(gradients))  # one message
    for gradient, part in zip(gradients, averaged.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def is_mine(player: str, sequence: int) -> bool:
    """Whether a session falls into this rank's share: a player's sessions go round the ranks, from a hash of its name on.

    A session that was pushed twice thus reaches the same rank twice, which then knows it.
    """
    return (xxhash.xxh3_64_intdigest(player.encode(errors="surrogatepass")) + sequence) % size() == rank()


def launch(words: Iterable[str], ranks: int) -> None:
    """Runs `tinyverse WORDS` in so many processes of this machine under `torchrun`, until they are done.

    When one dies, torchrun starts all again, and they go on from the checkpoint. It passes a signal on to all.

    Raises:
        TinyverseError: a rank ended with an error for a person, or they died too often.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)  # a machine's own name need not be one that it can look up
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    # else ranks that start again find the addresses of those before them in the launcher's store, and wait for the dead
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ["TINYVERSE_PARENT"] = str(os.getpid())  # the ranks end when this process is gone
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun warns otherwise; a trainer sets its threads itself
    with tempfile.TemporaryDirectory(prefix="tinyverse-") as logs:
        options = [
            f"--nproc-per-node={ranks}", f"--max-restarts={RESTARTS}", f"--log-dir={logs}",
            "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
        ]  # fmt: skip
        try:
            run.run(run.parse_args([*options, "-m", "tinyverse", *words]))
        except SignalException as end:
            if end.sigval == signal.SIGQUIT:
                raise TinyverseError(f"the {ranks} ranks have ended; a message of one of them says why.") from None
        except ChildFailedError:
            raise TinyverseError(
                f"one of the {ranks} ranks has died {RESTARTS + 1} times; see above for why. The checkpoint is kept."
            ) from None


def give_up() -> None:
    """Tells `launch`, when this process ends, not to start the ranks again: the error will not go away by that."""
    launcher = os.getppid()

    def notify() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGQUIT)

    if launched() and os.environ.get("TINYVERSE_PARENT") == str(launcher):
        atexit.register(notify)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def _among_peers() -> Iterator[None]:
    """Raises RankLost where torch says that a peer is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0][:200]
        sentence = f"another rank of this trainer is gone ({reason}). All begin again from the checkpoint."
        raise RankLost(sentence) from error
