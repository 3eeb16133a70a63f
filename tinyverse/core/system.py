"""Machine: what to set on this computer before torch is imported, and what it can do.

Several busy processes share the cores: OpenMP threads that spin while they wait make two threads eighty times slower
than one, and an allocator that gives memory back makes a CPU update up to twice as slow.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import site
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

LOW_PRIORITY = 10  # of 19, the last in line

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def prepare() -> None:
    """Call before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep what it has mapped; does nothing on other C libraries."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def set_threads(count: int) -> None:
    """Threads of torch in this process; players want 1.

    Floats below 1e-38 become 0 from here on: gradients of a solved game fall there, and CPUs then take ten times as long.
    """
    import torch

    torch.set_num_threads(count)
    torch.set_flush_denormal(True)


def lower_priority() -> None:
    """Lets every other thread of this process have the core first, where threads have a priority of their own (Linux)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)


def use_headless_sdl() -> None:
    """To be called before pygame draws what no window is to show: without a screen, SDL beneath it would complain."""
    if sys.platform == "linux" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_gone(pid: int) -> bool:
    """Whether no process of this machine has this id; False when that cannot be known."""
    if sys.platform == "win32" or pid <= 0:  # to ask would be to press Ctrl-C there
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def python_path() -> dict[str, str]:
    """The environment in which a new process finds this package where it lies, if it is not installed."""
    home = str(Path(__file__).parents[2])
    if home in site.getsitepackages():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AMX or AVX512-BF16). By its flags: a timing would lie under load."""
    with contextlib.suppress(OSError):
        words = Path("/proc/cpuinfo").read_text().split()
        return "avx512_bf16" in words or "amx_bf16" in words
    return False


def facts() -> dict[str, Any]:
    """What this machine is, in words and numbers of json: a result says nothing without it.

    `gpus` are looked for only where torch is imported already.
    """
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
    """Versions of what a result depends on, and the git commit of the code in `folder` where there is one."""
    found = {"python": platform.python_version()}
    for name in ("tinyverse", "torch", "numpy", "gymnasium", "ale-py"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if shutil.which("git"):
        words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
            found |= {"commit": told.stdout.strip()} if told.returncode == 0 else {}
    return found
