"""System: settings of the process that must precede the import of torch, and facts about the machine.

Several busy processes share the cores. OpenMP threads that spin while they wait make two threads eighty times slower
than one. An allocator that returns memory to the system makes an update on a CPU up to twice as slow.
"""

import contextlib
import ctypes
import functools
import os
import platform
import secrets
import site
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

LOW_PRIORITY = 10  # nice value; 19 is the lowest priority
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def prepare() -> None:
    """Sets OpenMP, and glibc's malloc to keep freed memory; must run before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def set_threads(count: int) -> None:
    """Sets the number of torch's threads in this process; players use 1.

    From here on floats below 1e-38 become 0: CPUs take ten times as long with the tiny gradients of a solved task.
    """
    import torch

    torch.set_num_threads(count)
    torch.set_flush_denormal(True)


def lower_priority() -> None:
    """Lets all other threads of this process run before the calling thread. Only Linux has priorities of threads."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)


def use_headless_sdl() -> None:
    """Selects SDL's dummy video driver on a machine without a screen; must run before pygame renders off-screen."""
    if sys.platform == "linux" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def this_machine() -> str:
    """Returns a name for all processes whose numbers mean the same: of one boot, in one namespace of process numbers.

    Two containers on one host, or two machines with one host name, have different ones.
    """
    with contextlib.suppress(OSError):  # only Linux tells
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return f"{socket.gethostname()}/{secrets.token_hex(4)}"


def boot_time() -> float:
    """Returns seconds on a clock that goes on while the machine is suspended, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def is_gone(pid: int) -> bool:
    """Tells whether no process of this machine has this id; False if that cannot be known."""
    if sys.platform == "win32" or pid <= 0:  # os.kill(pid, 0) sends Ctrl-C there
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def python_path() -> dict[str, str]:
    """Returns environment variables with which a new process finds this package if it is not installed."""
    home = str(Path(__file__).parents[2])
    if home in site.getsitepackages():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}


def has_bfloat16() -> bool:
    """Tells whether this CPU multiplies bfloat16 in hardware, by its flags: a timing would be wrong on a busy machine."""
    with contextlib.suppress(OSError):
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    return False


def facts() -> dict[str, Any]:
    """Describes this machine for a result's JSON file. It lists GPUs only if torch is imported already."""
    cpu, memory, gpus = platform.processor() or platform.machine(), 0, []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": cpu, "cores": cores(), "memory": memory, "gpus": gpus, "system": platform.platform(terse=True)}


def versions(folder: Path) -> dict[str, str]:
    """Returns the versions of packages that a result depends on, and the git commit of `folder` if it has one."""
    found = {"python": platform.python_version()}
    for name in ("tinyverse", "torch", "numpy", "gymnasium", "ale-py"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or no repository
        words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
        described = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
        found["commit"] = described.stdout.strip()
    return found
