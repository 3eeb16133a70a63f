"""A report: a run as one page to pass on: what came out, with what, on what, and how to repeat it.

report.html is one file with curve and film inside; report.md, for a repository, names the files beside it.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyverse.core.errors import SettingsError
from tinyverse.core.files import atomic_write
from tinyverse.core.text import counted
from tinyverse.monitoring import metrics
from tinyverse.monitoring.plot import curve, plot_curves
from tinyverse.monitoring.reference_scores import published
from tinyverse.trainer.run_folder import RunFolder

LARGEST_FILM = 32_000_000  # bytes; a larger one is named, not put inside
Table = list[list[str]]  # the first row is the head


@dataclasses.dataclass
class Report:
    """What both pages say."""

    title: str
    sentence: str
    curve: Path | None
    film: Path | None
    note: str  # where there is no film
    sections: dict[str, Table]
    commands: list[str]


def write_report(folders: Sequence[RunFolder], *, title: str, experiment: str, films: Path) -> tuple[Path, Path]:
    """Writes report.html and report.md into the first of the folders and returns their paths.

    Args:
        folders: runs with the same settings but other seeds: each has a row and is in the curve.
        title: the experiment's name.
        experiment: how a command line names it.
        films: the folder with the films that `eval` makes.
    """
    report = _report(folders, title, experiment, films)
    page, text = folders[0].path / "report.html", folders[0].path / "report.md"
    atomic_write(page, _html(report).encode())
    atomic_write(text, _markdown(report, text.parent).encode())
    return page, text


def _report(folders: Sequence[RunFolder], title: str, experiment: str, place: Path) -> Report:
    run = folders[0].path.name
    settings = folders[0].settings().get("settings", {})
    starts = [start for folder in folders for start in folder.rows("starts")]
    known = published(settings)
    results = [_result(folder) for folder in folders]
    picture = folders[0].path / "report.png"
    has_curve = [folder.path for folder in folders if _has_curve(folder.path)]
    films = sorted(place.glob(f"{run}-v*.webm"), key=lambda film: film.stat().st_mtime)
    sections = {
        "Results": [list(results[0]), *(list(result.values()) for result in results)],
        "Published": [["who", "return"], *([who, f"{score:g}"] for who, score in known.scores.items())],
        "Settings": [["setting", "value"], *([name, json.dumps(value)] for name, value in settings.items())],
        "Machine": [["of the trainer", ""], *_machine(starts)],
        "Versions": [["package", "version"], *([n, v] for n, v in (starts[-1]["versions"] if starts else {}).items())],
    }
    if known.source:
        sections["Published"].append(["source", known.source])
    return Report(
        title=f"{run} ({title})",
        sentence=_sentence(results[0]),
        curve=plot_curves({run: has_curve}, picture, levels=known.scores) if has_curve else None,
        film=films[-1] if films else None,
        note=f"There is no film yet: tinyverse {shlex.quote(experiment)} eval makes one.",
        sections={name: table for name, table in sections.items() if len(table) > 1},
        commands=[command for folder in folders for command in _commands(folder)],
    )


def _sentence(result: dict[str, str]) -> str:
    """The first row in words."""
    none = result["return"] == "–"
    mean = "No episode has ended" if none else f"Mean return {result['return']} over the last 100 training episodes"
    return f"{mean} after {result['steps']} steps ({result['frames']} frames) in {result['wall time']}."


def _result(folder: RunFolder) -> dict[str, str]:
    """A run's numbers in words; frames per second are those of all its players."""
    rows, _ = metrics.split(folder.rows())
    best = _best(folder)
    last = rows[-1] if rows else {}
    seconds, starts = last.get("seconds"), folder.rows("starts")
    cores = starts[-1]["machine"]["cores"] if starts else None
    rate = last.get("frames", 0) / seconds if seconds else None
    returns = [row["play/return"] for row in rows if row.get("play/return") is not None]
    error = "" if best is None or best.get("eval/standard_error") is None else f" ± {best['eval/standard_error']:.2f}"
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
        "best evaluation": "–, by eval"
        if best is None
        else f"{best['eval/return']:.2f}{error}, {counted(best['eval/episodes'], 'episode')}",
    }


def _best(folder: RunFolder) -> dict[str, Any] | None:
    """The evaluation of the highest mean return. One by itself counts if none had more episodes: a few are easily lucky."""
    (_, series), single = metrics.split(folder.rows()), folder.rows("evaluations")
    most = max((row["eval/episodes"] for row in [*series, *single]), default=0)
    judged = [*series, *(row for row in single if row["eval/episodes"] >= most)]
    return max(judged, key=lambda row: row["eval/return"], default=None)


def _has_curve(folder: Path) -> bool:
    try:
        curve(folder)
    except SettingsError:  # no episode has ended yet
        return False
    return True


def _machine(starts: Sequence[dict[str, Any]]) -> Table:
    """What trained the runs; one row of each kind for every machine that differs."""
    seen: dict[str, list[str]] = {}
    for start in starts:
        there = start["machine"]
        words = {
            "processor": f"{there['cpu']}, {counted(there['cores'], 'core')}", "memory": metrics.size(there["memory"]),
            "GPU": ", ".join(there["gpus"]) or "none", "learned on": start["device"], "system": there["system"],
        }  # fmt: skip
        for name, word in words.items():
            if word not in seen.setdefault(name, []):
                seen[name].append(word)
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


_STYLE = """
:root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
th { border-bottom: 1px solid; font-weight: 600 } img, video { max-width: 100%; background: white } pre { overflow-x: auto }
"""


def _html(report: Report) -> str:
    """One file: it asks nothing of a network."""
    say = html.escape
    parts = [f"<h1>{say(report.title)}</h1><p>{say(report.sentence)}</p>"]
    if report.curve is not None:
        parts.append(f'<p><img alt="learning curve" src="{_inside(report.curve, "image/png")}"></p>')
    if report.film is not None and report.film.stat().st_size <= LARGEST_FILM:
        parts.append(f'<p><video controls loop src="{_inside(report.film, "video/webm")}"></video></p>')
    else:
        parts.append(
            f"<p>{say(report.note if report.film is None else f'The film is too large to be put here: {report.film}')}</p>"
        )
    for name, (head, *rows) in report.sections.items():
        cells = "".join(f"<th>{say(word)}</th>" for word in head)
        body = "".join("<tr>" + "".join(f"<td>{say(word)}</td>" for word in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{say(name)}</h2><table><tr>{cells}</tr>{body}</table>")
    if report.commands:
        parts.append(f"<h2>Again</h2><pre>{say(chr(10).join(report.commands))}</pre>")
    about = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{say(report.title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{about}</head><body>{"".join(parts)}</body></html>\n'


def _inside(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _markdown(report: Report, folder: Path) -> str:
    def say(word: str) -> str:
        return html.escape(word, quote=False).replace("|", "\\|").replace("\n", " ")

    parts = [f"# {say(report.title)}", say(report.sentence)]
    parts += [f"![learning curve]({report.curve.name})"] if report.curve is not None else []
    parts += [f"[Film]({os.path.relpath(report.film, folder)})"] if report.film else [report.note]
    for name, (head, *rows) in report.sections.items():
        lines = [head, ["---"] * len(head), *([say(word) for word in row] for row in rows)]
        parts.append(f"## {name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    if report.commands:
        parts.append("## Again\n\n```\n" + "\n".join(report.commands) + "\n```")
    return "\n\n".join(parts) + "\n"
