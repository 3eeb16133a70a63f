"""Takes away what Windows lacks, so that what needs it fails here. Python imports this by itself from PYTHONPATH.

Gone for everybody: unix sockets, fork, fcntl, resource, grp, pwd, /proc, renaming onto a file that is there; processes
are spawned. Gone for tinyverse alone, because Python's own libraries are those of this system and need it: most signals,
much of `os`, `faulthandler.register`; and to tinyverse `sys.platform` is win32.
"""

import builtins
import faulthandler
import io
import multiprocessing
import os
import signal
import socket
import sys
import types

LACKING = {
    "os": "fork forkpty register_at_fork getuid geteuid getgid getegid getpgid killpg setsid sysconf statvfs mkfifo chown nice uname "
    "setpriority getpriority getloadavg sched_getaffinity sched_setaffinity sched_yield wait3 wait4 WNOHANG",
    "signal": "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGQUIT SIGCHLD SIGALRM SIGPIPE SIGSTOP SIGCONT alarm setitimer pause",
    "faulthandler": "register unregister",
}
LACKING = {name: set(words.split()) for name, words in LACKING.items()}


def kill(pid, number):
    """As on Windows, where 0 presses Ctrl-C and whatever else ends the process."""
    assert number in (signal.SIGINT, signal.SIGTERM), f"os.kill(…, {number}) would end the process there"
    os.kill(pid, number)


OTHER = {("os", "kill"): kill, ("sys", "platform"): "win32"}


class Lacking(types.ModuleType):
    """A module that has less for tinyverse than for others."""

    def __getattribute__(self, name):
        module = super().__getattribute__("__name__")
        if (module, name) in OTHER or name in LACKING.get(module, ()):
            who = sys._getframe(1).f_globals.get("__name__", "")
            if who.startswith("tinyverse"):
                if (module, name) in OTHER:
                    return OTHER[module, name]
                raise AttributeError(f"module {module!r} has no attribute {name!r} on Windows")
        return super().__getattribute__(name)


def socketpair(family=socket.AF_INET, kind=socket.SOCK_STREAM, proto=0):
    """Two connected sockets, as Python makes them where there are no unix sockets."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        one = socket.create_connection(door.getsockname())
        return one, door.accept()[0]


def without_proc(open_file):
    def opened(file, *arguments, **options):
        if str(file).startswith("/proc"):
            raise FileNotFoundError(2, "there is no /proc on Windows", str(file))
        return open_file(file, *arguments, **options)

    return opened


def rename_carefully(rename):
    def renamed(source, target, **options):
        if os.path.isfile(target):
            raise FileExistsError(17, "Windows renames onto no file; os.replace does", str(target))
        return rename(source, target, **options)

    return renamed


socket.socketpair = socketpair
del socket.AF_UNIX, os.fork, os.forkpty
for name in ("fcntl", "resource", "grp", "pwd"):
    sys.modules[name] = None
builtins.open = io.open = without_proc(open)
os.rename = rename_carefully(os.rename)
multiprocessing.set_start_method("spawn", force=True)
for module in (os, signal, faulthandler, sys):
    module.__class__ = Lacking
