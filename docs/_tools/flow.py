"""Prints every call between `Env.step` and the gradient, and back to the player's weights: python docs/_tools/flow.py

A player and a trainer of `tinyverse catch` run with a server of their own, each in a process where `sys.setprofile` notes who calls whom
inside the package. Calls that are made for each session or each update are drawn as trees, each function once, in the order of their
first calls. Functions inside functions count as the function around them; what only measures, waits or logs is left out.
docs/architecture.md is written from this.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tinyverse.database.server import private_server

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 40
OFTEN = 8  # calls; what is called less often is set-up
ROOTS = {  # where each part of the way begins: title -> the process and its functions
    "player": ("play", ["player/player.Player.play"]),
    "uploader": ("play", ["player/uploader.Uploader._turn"]),
    "feeder": ("train", ["trainer/trainer.Trainer.feed"]),
    "trainer": ("train", ["trainer/trainer.Trainer.step"]),
    "publisher": ("train", ["trainer/trainer.Trainer.snapshot", "trainer/publisher.Publisher.step"]),
    "player, new weights": ("play", ["player/uploader.Uploader.swap"]),
}
ASIDE = re.compile(
    r"core/(timing|threads|signals|text|system|lazy)\.|monitoring/|\.(__len__|__iter__|__init__|__repr__|__eq__|__hash__|_check\w*)$"
    r"|heartbeat|Heartbeat|waiting|Waiting|\.beat$|\.report$"
)

PROGRAM = """
import atexit, json, sys, threading
package, out = sys.argv[1:3]
calls = {}

def name(code):
    function = code.co_qualname.split(".<locals>")[0]
    return f"{code.co_filename[len(package):].removesuffix('.py')}.{function}"

def note(frame, event, arg):
    if event != "call" or not frame.f_code.co_filename.startswith(package):
        return
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(package):
        caller = caller.f_back
    if caller is not None:
        edge = name(caller.f_code), name(frame.f_code)
        calls[edge] = calls.get(edge, 0) + 1

threading.setprofile(note)
sys.setprofile(note)
from tinyverse.cli.main import main
try:
    main(sys.argv[3:])
finally:
    sys.setprofile(None)
    with open(out, "w") as file:
        json.dump([[*edge, count] for edge, count in list(calls.items())], file)
"""


def traced() -> dict[str, dict[str, list[str]]]:
    """Caller -> callees in the order of their first calls, for `play` and `train`."""
    with tempfile.TemporaryDirectory() as folder, private_server() as server:
        environment = os.environ | {"TINYVERSE_REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}

        def start(command: str, *words: str) -> subprocess.Popen[bytes]:
            program = [sys.executable, "-c", PROGRAM, f"{ROOT / 'tinyverse'}/", f"{folder}/{command}.json"]
            return subprocess.Popen([*program, "catch", command, *words], cwd=folder, env=environment)

        train = start("train", "-n", str(UPDATES))
        play = start("play")
        train.wait(300)
        play.terminate()
        play.wait(60)
        return {
            command: graph(json.loads(Path(folder, f"{command}.json").read_text())) for command in ("play", "train")
        }


def graph(edges: list[list]) -> dict[str, list[str]]:
    calls: dict[str, list[str]] = {}
    for caller, callee, count in edges:
        if count >= OFTEN and caller != callee and not ASIDE.search(callee) and "<" not in callee.rpartition(".")[2]:
            calls.setdefault(caller, []).append(callee)
    return calls


def tree(calls: dict[str, list[str]], function: str, seen: set[str], depth: int = 0) -> Iterator[tuple[int, str]]:
    """The functions that are called from `function`, depth first, each once."""
    if function in seen:
        return
    seen.add(function)
    yield depth, function
    for callee in calls.get(function, []):
        yield from tree(calls, callee, seen, depth + 1)


def main() -> None:
    calls = traced()
    functions: list[str] = []
    for title, (process, roots) in ROOTS.items():
        print(f"\n{title}")
        seen: set[str] = set()
        for root in roots:
            if root not in calls[process] and not any(root in callees for callees in calls[process].values()):
                print(f"    {root} was not called: name the function of today in ROOTS")
            for depth, function in tree(calls[process], root, seen):
                functions.append(function)
                print(f"    {'    ' * depth}{function}")
    files = {function.partition(".")[0] for function in functions}
    print(f"\n{len(functions)} calls in {len(files)} files")


if __name__ == "__main__":
    main()
