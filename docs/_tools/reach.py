"""Prints how many lines one reads with a module, and the lines of each package: python docs/_tools/reach.py [MODULE …]

A module is read with all that it imports inside the package. Each row imports its modules in a process of its own and adds
up the lines of the files of tinyverse that are then in `sys.modules`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "Experiment": ["experiment.experiment"],
    "Trainer": ["trainer.trainer"],
    "Player": ["player.player"],
}
FLOW = ["core/session", "agents/agent", "algorithms/learner", "player/player", "trainer/trainer"]
PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"tinyverse.{name}")
names = [name for name in sys.modules if name.partition(".")[0] == "tinyverse"]
print("\\n".join(sorted({file for name in names if (file := sys.modules[name].__file__)})))
"""


def imported(modules: list[str]) -> list[Path]:
    """The files of the package that are read where `modules` are imported, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(line) for line in done.stdout.split()]


def lines(files: list[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main(modules: list[str]) -> None:
    print("lines   files   read with all it imports inside the package")
    for name, wanted in {module: [module] for module in modules}.items() or CLASSES.items():
        files = imported(wanted)
        print(f"{lines(files):6,} {len(files):6}   {name}")
    if modules:
        return
    files = [ROOT / "tinyverse" / f"{name}.py" for name in FLOW]
    print(f"{lines(files):6,} {len(files):6}   {', '.join(FLOW)} (these files alone)")
    for folder in ("tinyverse", "tests"):
        print(f"\nlines   files   of {folder}/")
        entries = [ROOT / folder, *sorted(path for path in (ROOT / folder).iterdir() if path.is_dir())]
        rows = {path: list(path.glob("*.py") if path == ROOT / folder else path.rglob("*.py")) for path in entries}
        for path, files in rows.items():
            if files:
                print(f"{lines(files):6,} {len(files):6}   {path.relative_to(ROOT)}")
        everything = sum(rows.values(), [])
        print(f"{lines(everything):6,} {len(everything):6}   in all")


if __name__ == "__main__":
    main(sys.argv[1:])
