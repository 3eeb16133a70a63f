"""ProcessPool: environments stepped in worker processes, because stepping is heavy Python or because a step may hang.

Only killing its process ends a hung step, so `step_timeout` needs workers. A worker that dies, is killed, hangs or
grows too large is replaced, and the episodes of all its environments are truncated. An environment that raises inside a
worker is restarted there.

Observations, actions, rewards and flags are in shared memory; a pipe carries only commands and answers. A new process
gets a module-level function and its arguments, so any start method works. It is "spawn", because torch and emulators
have threads, which "fork" does not copy.
"""

import contextlib
import dataclasses
import faulthandler
import itertools
import math
import multiprocessing
import os
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import IO, Any, NamedTuple

import numpy as np

from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError
from tinyverse.core.text import counted
from tinyverse.envs.pool import Pool, SplitPool, Step, as_int
from tinyverse.envs.restarts import RestartPolicy
from tinyverse.envs.spaces import ActionAdapter, Array, spec_of

START_SECONDS = 120.0  # for a worker to import the experiment and make its environments
CHECK_MEMORY_EVERY = 256  # steps between two checks of a worker's memory
COMMAND = struct.Struct("<Bq")  # index of the buffer; seed of a reset, or -1 for a step


class ProcessPool(SplitPool):
    """B environments divided among K worker processes.

    Args:
        make: makes a pool of the given number of environments. Each worker calls it, so it must be a module-level
            function or a functools.partial of one.
        spaces: observation and action space of one environment.
        step_timeout: seconds that a worker may take for a step or reset; None: no limit.
        memory: bytes that a worker may use; None: no limit.
    Raises:
        ExperimentError: a worker could not make its environments.
    """

    def __init__(
        self, make: Callable[[int], Pool], num_envs: int, workers: int, spaces: tuple[Any, Any], *,
        step_timeout: float | None = None, memory: int | None = None, realtime: bool = False,
    ) -> None:  # fmt: skip
        self.num_envs, self.realtime = num_envs, realtime
        self.observation_space, self.action_space = spaces
        workers = min(workers, num_envs)
        context = multiprocessing.get_context("spawn")
        observations, actions = (spec_of(space, (num_envs,)) for space in spaces)
        rewards, flags = (Array((num_envs,), np.dtype(kind)) for kind in (np.float32, bool))
        spec = (observations, observations), actions, (rewards, flags, flags)
        # unnamed files, removed with the last process that maps them
        shared = nest.map(lambda leaf: context.RawArray("B", max(1, leaf.dtype.itemsize * math.prod(leaf.shape))), spec)
        self._action_adapter = ActionAdapter(self.action_space, num_envs)
        self._timeout, self._turn = step_timeout, 0
        self._restarts = RestartPolicy(workers, "worker")
        self._seeds = np.random.SeedSequence().spawn(workers)
        edges = np.linspace(0, num_envs, workers + 1).astype(int).tolist()
        tasks = [_Task(make, slice(*envs), spec, shared, memory) for envs in itertools.pairwise(edges)]
        self._views, self._workers = tasks[0].views(), [_Worker(context, task) for task in tasks]
        self._needs_reset = [True] * workers
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.await_ready(START_SECONDS)
            stack.pop_all()

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._seeds = np.random.SeedSequence(seed).spawn(len(self._workers))
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for worker, sequence in zip(self._workers, self._seeds, strict=True):
                if not worker.ready:
                    worker.start()
                    worker.await_ready(START_SECONDS)
                worker.send(self._turn, as_int(sequence))
            for worker in self._workers:
                worker.answer(START_SECONDS)
            stack.pop_all()
        self._needs_reset = [False] * len(self._workers)
        return self._views.observations[self._turn]

    def send(self, actions: nest.Tree) -> None:
        nest.assign(self._views.actions, ..., self._action_adapter.arrays(actions))
        self._restarts.steps += 1
        self._turn ^= 1  # two buffers in turn: a failed worker repeats its rows of the step before
        self._restart_failed()
        self._stepping = [index for index, worker in enumerate(self._workers) if worker.ready]
        for index in self._stepping:
            seed = as_int(self._seeds[index].spawn(1)[0]) if self._needs_reset[index] else None
            self._workers[index].send(self._turn, seed)

    def receive(self) -> Step:
        until = None if self._timeout is None else time.monotonic() + self._timeout
        for index, worker in enumerate(self._workers):
            if index not in self._stepping:
                self._repeat(worker)
                continue
            try:
                news = worker.answer(None if until is None else max(0.0, until - time.monotonic()))
                self._needs_reset[index] = False
                if news:
                    self.faults, self.fault = self.faults + 1, news
            except ExperimentError as error:
                self._fail(index, error)
        return Step(self._views.observations[self._turn], *map(np.array, self._views.results))

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _restart_failed(self) -> None:
        """Starts workers that are due and accepts those that are ready; waits if no worker is ready to step."""
        while True:
            for index, worker in enumerate(self._workers):
                if not worker.alive and not self._restarts.delay(index):
                    worker.start()
                elif worker.alive and not worker.ready:
                    try:
                        if worker.await_ready(0.0):
                            self._restarts.restarted(index)
                    except ExperimentError as error:
                        self._fail(index, error)
            if any(worker.ready for worker in self._workers):
                return
            starting = [worker.connection for worker in self._workers if worker.alive]
            wait(starting, 0.5) if starting else time.sleep(0.01)

    def _fail(self, index: int, error: ExperimentError) -> None:
        worker = self._workers[index]
        worker.kill()
        self._needs_reset[index] = True
        self._repeat(worker)
        self._restarts.failed(index, error, final=worker.gave_up)
        self.faults, self.fault = self.faults + 1, self._restarts.fault

    def _repeat(self, worker: "_Worker") -> None:
        """Fills the rows of an absent worker with its last observations, and truncates them."""
        envs, observations = worker.task.envs, self._views.observations
        before = nest.map(lambda leaf: leaf[envs], observations[1 - self._turn])
        nest.assign((observations[self._turn], self._views.results), envs, (before, (0.0, False, True)))


class _Views(NamedTuple):
    """Arrays in shared memory."""

    observations: tuple[nest.Tree, nest.Tree]  # [B, …] per leaf, used in turn
    actions: nest.Tree  # [B, …] per leaf
    results: tuple[np.ndarray, np.ndarray, np.ndarray]  # rewards, terminated, truncated: [B]


@dataclasses.dataclass
class _Task:
    """What a worker process is given."""

    make: Callable[[int], Pool]
    envs: slice
    spec: nest.Tree
    shared: nest.Tree
    memory: int | None

    def views(self) -> _Views:
        def view(leaf: Array, memory: Any) -> np.ndarray:
            return np.frombuffer(memory, leaf.dtype, math.prod(leaf.shape)).reshape(leaf.shape)

        return _Views(*nest.map(view, self.spec, self.shared))


class _Worker:
    """The player's handle of a worker process."""

    def __init__(self, context: Any, task: _Task) -> None:
        self.task = task
        self.alive = self.ready = self.gave_up = False
        self._context = context
        self._process: Any = None
        self.connection: Connection
        self._began = 0.0
        self._crash_log = tempfile.TemporaryFile("a+b")  # noqa: SIM115  # without a name, so that no kill leaves it behind
        weakref.finalize(self, self._crash_log.close)

    def start(self) -> None:
        self.connection, theirs = self._context.Pipe()
        self._crash_log.truncate(0)
        crash_log = _sendable(self._crash_log)
        self._process = self._context.Process(target=_run_worker, args=(self.task, theirs, crash_log), daemon=True)
        try:
            self._process.start()
        except Exception as error:
            raise ExperimentError(
                f"a worker process cannot be started: {error}. What makes its environments must be a module's own function."
            ) from error
        theirs.close()
        crash_log.close()
        self.alive, self.ready, self.gave_up, self._began = True, False, False, time.monotonic()

    def await_ready(self, seconds: float) -> bool:
        """Waits at most `seconds` for the environments to be made; tells whether they are."""
        if not self.connection.poll(seconds):
            if time.monotonic() - self._began < START_SECONDS:
                return False
            raise ExperimentError(f"{self} has not built its environments in {START_SECONDS:.0f} s.")
        self._receive()
        self.ready = True
        return True

    def send(self, buffer: int, seed: int | None) -> None:
        """Begins a step, or with a seed a reset; the observations go to this buffer."""
        with contextlib.suppress(OSError):  # a dead worker is noticed when `answer` waits for it
            self.connection.send_bytes(COMMAND.pack(buffer, -1 if seed is None else seed))

    def answer(self, seconds: float | None) -> str:
        """Waits until a command is carried out; returns the traceback of an environment that failed, or ""."""
        if not self.connection.poll(seconds):
            raise ExperimentError(f"{self} has not answered in time and is killed (--step-timeout).{self._stack()}")
        return self._receive()

    def _receive(self) -> str:
        try:
            text = self.connection.recv_bytes().decode()
        except (EOFError, OSError):
            self._process.join(5.0)
            code = self._process.exitcode
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
            raise ExperimentError(f"{self} {how}.{self._crash_text()}") from None
        if text.startswith("!"):
            self.gave_up = text.startswith("!!")
            raise ExperimentError(f"{self}:\n{text.lstrip('!')}")
        return text

    def _stack(self) -> str:
        """Returns where the worker hangs. Its faulthandler writes that even while C code runs, but not on Windows."""
        if hasattr(faulthandler, "register"):
            with contextlib.suppress(OSError):
                os.kill(self._process.pid, signal.SIGUSR2)
                time.sleep(0.1)
        return self._crash_text()

    def _crash_text(self) -> str:
        self._crash_log.seek(0)
        text = self._crash_log.read().decode(errors="replace").strip()
        return "\n" + text if text else ""

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(5.0)
            self.connection.close()
        self.alive = self.ready = False

    def close(self) -> None:
        """Lets the worker close its environments; kills it after 2 seconds."""
        if self.alive:
            self.connection.close()
            self._process.join(2.0)
            self.kill()
        self._crash_log.close()

    def __str__(self) -> str:
        envs = self.task.envs
        names = f" {envs.start}" if envs.stop - envs.start == 1 else f"s {envs.start} to {envs.stop - 1}"
        return f"the worker of environment{names} (pid {self._process.pid})"


def _sendable(file: IO[bytes]) -> Connection:
    """Returns a connection to the open file, because a process that starts can be given connections but not files."""
    if sys.platform == "win32":
        import msvcrt
        from multiprocessing.connection import PipeConnection

        return PipeConnection(msvcrt.get_osfhandle(os.dup(file.fileno())))
    return Connection(os.dup(file.fileno()))


def _run_worker(task: _Task, connection: Connection, crash_log: Connection) -> None:
    """Runs a worker process from beginning to end."""
    # Ctrl-C reaches the whole process group, but the player ends its workers itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = crash_log.fileno()
    if sys.platform == "win32":
        import msvcrt

        file = msvcrt.open_osfhandle(file, os.O_APPEND)
    faulthandler.enable(file)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR2, file)
    pool, mark, num_envs = None, "!", task.envs.stop - task.envs.start
    try:
        pool = task.make(num_envs)
        if pool.num_envs != num_envs:
            raise ExperimentError(
                f"a worker has {counted(num_envs, 'environment')}, its pool has {pool.num_envs}. Choose -b and --workers so that they fit."
            )
        connection.send_bytes(b"")
        mark = "!!"  # of failures from here on: the pool's own restarts did not help
        _serve(task, pool, connection)
    except Exception:
        with contextlib.suppress(OSError):
            connection.send_bytes(f"{mark}{traceback.format_exc().rstrip()}".encode())
    if pool is not None:
        pool.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _serve(task: _Task, pool: Pool, connection: Connection) -> None:
    envs, views, faults, count = task.envs, task.views(), 0, 0
    results: tuple[Any, ...]
    while True:
        try:
            buffer, seed = COMMAND.unpack(connection.recv_bytes())
        except (EOFError, OSError):  # the pool is closed
            return
        if seed >= 0:
            observations, results = pool.reset(seed), (0.0, False, False)
        else:
            # copies, because an environment may keep its actions
            observations, *rest = pool.step(nest.map(lambda leaf: np.array(leaf[envs]), views.actions))
            results = tuple(rest[:3])
        nest.assign((views.observations[buffer], views.results), envs, (observations, results))
        count += 1
        if task.memory is not None and count % CHECK_MEMORY_EVERY == 0 and (size := resident_memory()) > task.memory:
            words = f"it has grown to {size >> 20} MiB, and may have {task.memory >> 20} (--worker-memory)."
            connection.send_bytes(f"!{words}".encode())
            return
        connection.send_bytes(pool.fault.encode() if pool.faults > faults else b"")
        faults = pool.faults


def resident_memory() -> int:
    """Returns the resident memory of this process in bytes; 0 where it cannot be measured, as without Linux's /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
