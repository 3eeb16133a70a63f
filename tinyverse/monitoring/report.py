"""Reporting: the verb `report`. A run as one page to pass on: what came out, with what, on what, and how to repeat it.

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

from tinyverse.cli.context import RECORDS, Asked
from tinyverse.cli.plot import folder_of
from tinyverse.core.errors import SettingsError
from tinyverse.core.files import atomic_write
from tinyverse.core.run_config import check_can_join
from tinyverse.core.text import counted
from tinyverse.monitoring import metrics
from tinyverse.monitoring.plot import curve, plot_curves
from tinyverse.monitoring.reference_scores import published
from tinyverse.trainer.run_folder import RunFolder

LARGEST_FILM = 32_000_000  # bytes; a larger one is named, not put inside
Table = list[list[str]]  # the first row is the head


@dataclasses.dataclass
class Card:
    """What both pages say."""

    title: str
    sentence: str
    curve: Path | None
    film: Path | None
    note: str  # where there is no film
    sections: dict[str, Table]
    commands: list[str]


def do_report(asked: Asked, others: Sequence[str] = ()) -> tuple[Path, Path]:
    """Writes report.html and report.md into the run's folder and returns their paths.

    Args:
        others: further runs with the same settings, by name or folder: other seeds, with a row each and in the curve.
    Raises:
        SettingsError: a run is not there.
        RunConflict: it is of another experiment, or was made with other settings than those of the first.
    """
    folders = [RunFolder(folder_of(name)) for name in dict.fromkeys([asked.run, *others])]
    first = folders[0].settings()
    for folder in folders:
        check_can_join(
            folder.path.name, folder.settings(), asked.title, {**first.get("settings", {}), **asked.settings}
        )
    with asked.bar("drawing the report"):
        card = _card(asked, folders)
    page, text = folders[0].path / "report.html", folders[0].path / "report.md"
    atomic_write(page, _html(card).encode())
    atomic_write(text, _markdown(card, text.parent).encode())
    return page, text


def _card(asked: Asked, folders: Sequence[RunFolder]) -> Card:
    settings = folders[0].settings().get("settings", {})
    starts = [start for folder in folders for start in folder.starts()]
    known = published(settings)
    results = [_result(folder) for folder in folders]
    picture = folders[0].path / "report.png"
    has_curve = [folder.path for folder in folders if _has_curve(folder.path)]
    films = sorted(RECORDS.glob(f"{asked.run}-v*.webm"), key=lambda film: film.stat().st_mtime)
    sections = {
        "Results": [list(results[0]), *(list(result.values()) for result in results)],
        "Published": [["who", "return"], *([who, f"{score:g}"] for who, score in known.scores.items())],
        "Settings": [["setting", "value"], *([name, json.dumps(value)] for name, value in settings.items())],
        "Machine": [["of the trainer", ""], *_machine(starts)],
        "Versions": [["package", "version"], *([n, v] for n, v in (starts[-1]["versions"] if starts else {}).items())],
    }
    if known.source:
        sections["Published"].append(["source", known.source])
    return Card(
        title=f"{asked.run} ({asked.title})",
        sentence=_sentence(results[0]),
        curve=plot_curves({asked.run: has_curve}, picture, levels=known.scores) if has_curve else None,
        film=films[-1] if films else None,
        note=f"There is no film yet: tinyverse {shlex.quote(asked.experiment)} eval makes one.",
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
    rows, _ = metrics.split(folder.metrics())
    best = _best(folder)
    last = rows[-1] if rows else {}
    seconds, starts = last.get("seconds"), folder.starts()
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
        else f"{best['eval/return']:.2f}{error}, {counted(best['eval/games'], 'game')}",
    }


def _best(folder: RunFolder) -> dict[str, Any] | None:
    """The evaluation of the highest mean return. One by itself counts if none had more games: a few are easily lucky."""
    (_, series), single = metrics.split(folder.metrics()), folder.evaluations()
    most = max((row["eval/games"] for row in [*series, *single]), default=0)
    judged = [*series, *(row for row in single if row["eval/games"] >= most)]
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
    for number, start in enumerate(start for start in folder.starts() if start["argv"]):
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


def _html(card: Card) -> str:
    """One file: it asks nothing of a network."""
    say = html.escape
    parts = [f"<h1>{say(card.title)}</h1><p>{say(card.sentence)}</p>"]
    if card.curve is not None:
        parts.append(f'<p><img alt="learning curve" src="{_inside(card.curve, "image/png")}"></p>')
    if card.film is not None and card.film.stat().st_size <= LARGEST_FILM:
        parts.append(f'<p><video controls loop src="{_inside(card.film, "video/webm")}"></video></p>')
    else:
        parts.append(
            f"<p>{say(card.note if card.film is None else f'The film is too large to be put here: {card.film}')}</p>"
        )
    for name, (head, *rows) in card.sections.items():
        cells = "".join(f"<th>{say(word)}</th>" for word in head)
        body = "".join("<tr>" + "".join(f"<td>{say(word)}</td>" for word in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{say(name)}</h2><table><tr>{cells}</tr>{body}</table>")
    if card.commands:
        parts.append(f"<h2>Again</h2><pre>{say(chr(10).join(card.commands))}</pre>")
    about = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{say(card.title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{about}</head><body>{"".join(parts)}</body></html>\n'


def _inside(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _markdown(card: Card, folder: Path) -> str:
    def say(word: str) -> str:
        return html.escape(word, quote=False).replace("|", "\\|").replace("\n", " ")

    parts = [f"# {say(card.title)}", say(card.sentence)]
    parts += [f"![learning curve]({card.curve.name})"] if card.curve is not None else []
    parts += [f"[Film]({os.path.relpath(card.film, folder)})"] if card.film else [card.note]
    for name, (head, *rows) in card.sections.items():
        lines = [head, ["---"] * len(head), *([say(word) for word in row] for row in rows)]
        parts.append(f"## {name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    if card.commands:
        parts.append("## Again\n\n```\n" + "\n".join(card.commands) + "\n```")
    return "\n\n".join(parts) + "\n"
