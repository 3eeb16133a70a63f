"""A report: a run as one page to pass on: what came out, with what, on what, and how to repeat it.

report.html is one file with curve and video inside; report.md, for a repository, names the files beside it.
"""

import base64
import contextlib
import html
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyverse.core.files import atomic_write
from tinyverse.core.text import counted
from tinyverse.monitoring import metrics
from tinyverse.monitoring.plot import plot_curves
from tinyverse.monitoring.reference_scores import published
from tinyverse.trainer.run_folder import RunFolder

LARGEST_VIDEO = 32_000_000  # bytes; a larger one is named, not put inside
Table = list[list[str]]  # the first row is the head

_STYLE = """
:root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
th { border-bottom: 1px solid; font-weight: 600 } img, video { max-width: 100%; background: white } pre { overflow-x: auto }
"""


def write_report(folders: Sequence[RunFolder], *, title: str, command: str, videos: Path) -> tuple[Path, Path]:
    """Writes report.html and report.md into the first of the folders and returns their paths.

    Args:
        folders: runs with the same settings but other seeds: each has a row and is in the curve.
        title: the experiment's name.
        command: that makes a video.
        videos: the folder with the videos that `eval` makes.
    """
    home, results = folders[0].path, [_result(folder) for folder in folders]
    title, first = f"{home.name} ({title})", results[0]
    mean = f"Mean return {first['return']} over the last 100 training episodes"
    mean = "No episode has ended" if first["return"] == "–" else mean
    sentence = f"{mean} after {first['steps']} steps ({first['frames']} frames) in {first['wall time']}."
    say, note = html.escape, f"There is no video yet: {command} makes one."
    page, text = [f"<h1>{say(title)}</h1><p>{say(sentence)}</p>"], [f"# {_words(title)}", _words(sentence)]

    known = published(folders[0].settings().get("settings", {}))
    drawn = [folder.path for folder in folders if any(row.get("play/return") is not None for row in folder.rows())]
    if drawn:
        curve = plot_curves({home.name: drawn}, home / "report.png", levels=known.scores)
        page.append(f'<p><img alt="learning curve" src="{_inside(curve, "image/png")}"></p>')
        text.append(f"![learning curve]({curve.name})")
    if found := newest_video(home.name, videos):
        video = videos / found["name"]
        text.append(f"[Video]({os.path.relpath(video, home)})")
        if video.stat().st_size <= LARGEST_VIDEO:
            page.append(f'<p><video controls loop src="{_inside(video, "video/webm")}"></video></p>')
        else:
            page.append(f"<p>{say(f'The video is too large to be put here: {video}')}</p>")
    else:
        page.append(f"<p>{say(note)}</p>")
        text.append(note)
    for name, (head, *rows) in _tables(folders, results).items():
        cells = "".join(f"<th>{say(word)}</th>" for word in head)
        body = "".join("<tr>" + "".join(f"<td>{say(word)}</td>" for word in row) + "</tr>" for row in rows)
        page.append(f"<h2>{say(name)}</h2><table><tr>{cells}</tr>{body}</table>")
        lines = [head, ["---"] * len(head), *([_words(word) for word in row] for row in rows)]
        text.append(f"## {name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    if commands := "\n".join(command for folder in folders for command in _commands(folder)):
        page.append(f"<h2>Again</h2><pre>{say(commands)}</pre>")
        text.append(f"## Again\n\n```\n{commands}\n```")

    about = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{say(title)}</title><style>{_STYLE}</style>'
    whole = f'<!doctype html><html lang="en"><head>{about}</head><body>{"".join(page)}</body></html>\n'
    atomic_write(home / "report.html", whole.encode())
    atomic_write(home / "report.md", ("\n\n".join(text) + "\n").encode())
    return home / "report.html", home / "report.md"


def newest_video(run: str, videos: Path) -> dict[str, Any] | None:
    """{"seconds": when it was written, "version", "name"} of the newest video of an evaluation; None if there is none."""
    found = []
    for path in videos.glob(f"{run}-v*.webm"):
        version = path.stem.removeprefix(f"{run}-v")
        with contextlib.suppress(OSError):  # somebody has removed it
            if version.isdecimal() and is_video(path):
                found.append((path.stat().st_mtime, int(version), path.name))
    return dict(zip(("seconds", "version", "name"), max(found), strict=True)) if found else None


def is_video(path: Path) -> bool:
    """Whether it is a file itself: a link in the folder may lead to anything."""
    return path.is_file() and not path.is_symlink()


def _tables(folders: Sequence[RunFolder], results: Sequence[dict[str, str]]) -> dict[str, Table]:
    """The tables by their titles, less those without a row."""
    settings = folders[0].settings().get("settings", {})
    starts = [start for folder in folders for start in folder.rows("starts")]
    known = published(settings)
    scores = [[who, f"{score:g}"] for who, score in known.scores.items()]
    tables = {
        "Results": [list(results[0]), *(list(result.values()) for result in results)],
        "Published": [["who", "return"], *scores, *([["source", known.source]] if known.source else [])],
        "Settings": [["setting", "value"], *([name, json.dumps(value)] for name, value in settings.items())],
        "Machine": [["of the trainer", ""], *_machine(starts)],
        "Versions": [["package", "version"], *map(list, starts[-1]["versions"].items() if starts else ())],
    }
    return {name: table for name, table in tables.items() if len(table) > 1}


def _result(folder: RunFolder) -> dict[str, str]:
    """A run's numbers in words; frames per second are those of all its players."""
    (rows, series), single = metrics.split(folder.rows()), folder.rows("evaluations")
    last = rows[-1] if rows else {}
    seconds, starts = last.get("seconds"), folder.rows("starts")
    cores = starts[-1].get("machine", {}).get("cores") if starts else None
    rate = last.get("frames", 0) / seconds if seconds else None
    returns = [row["play/return"] for row in rows if row.get("play/return") is not None]
    modes = [row.get("eval/greedy", 0) for row in [*series, *single]]
    series, single = ([row for row in kind if row.get("eval/greedy", 0) == modes[-1]] for kind in (series, single))
    most, evaluation = max((row["eval/episodes"] for row in [*series, *single]), default=0), "–, by eval"
    # an evaluation by itself counts if none had more episodes: a few are easily lucky
    counting = [*series, *(row for row in single if row["eval/episodes"] >= most)]
    if best := max(counting, key=lambda row: row["eval/return"], default={}):
        error = "" if best.get("eval/standard_error") is None else f" ± {best['eval/standard_error']:.2f}"
        evaluation = f"{best['eval/return']:.2f}{error}, {counted(best['eval/episodes'], 'episode')}"
        evaluation += ", greedy" if best.get("eval/greedy") else ""
    return {
        "run": folder.path.name,
        "seed": str(folder.settings().get("seed", "–")),
        "steps": f"{last.get('step', 0):,}",
        "frames": f"{last.get('frames', 0):,}",
        "updates": f"{last.get('update', 0):,}",
        "wall time": metrics.duration(seconds or 0),
        "frames/s": "–" if rate is None else f"{rate:,.0f}",
        "frames/s per core of the trainer's machine": "–" if rate is None or not cores else f"{rate / cores:,.0f}",
        "return": f"{returns[-1]:.2f}" if returns else "–",
        "best return": f"{max(returns):.2f}" if returns else "–",
        "best evaluation": evaluation,
    }


def _machine(starts: Sequence[dict[str, Any]]) -> Table:
    """What trained the runs; one row of each kind for every machine that differs."""
    seen: dict[str, dict[str, None]] = {}
    for start in starts:
        there = start["machine"]
        words = {
            "processor": f"{there['cpu']}, {counted(there['cores'], 'core')}", "memory": metrics.size(there["memory"]),
            "GPU": ", ".join(there["gpus"]) or "none", "learned on": start["device"], "system": there["system"],
        }  # fmt: skip
        for name, word in words.items():
            seen.setdefault(name, {})[word] = None
    return [[name, "; then ".join(words)] for name, words in seen.items()]


def _commands(folder: RunFolder) -> list[str]:
    """The commands that trained a run, the first with its seed, so that it draws the same numbers again."""
    commands = []
    for number, start in enumerate(start for start in folder.rows("starts") if start["argv"]):
        words = ["tinyverse", *start["argv"]]
        if number == 0 and not any(word.split("=")[0] == "--seed" for word in words):
            words += ["--seed", str(start["seed"])]
        commands.append(shlex.join(words))
    return commands


def _inside(file: Path, kind: str) -> str:
    """The file as an address, so that the page asks nothing of a network."""
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _words(text: str) -> str:
    """Text that Markdown takes as words."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
