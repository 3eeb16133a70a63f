"""Diagnosis: what a run's numbers mean, in sentences: how long a wait will last, how learning goes, who is the bottleneck."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tinyverse.core.text import counted
from tinyverse.monitoring.metrics import sparkline

PLAYS = ("play", "human")
ROLES = {"train": "trainer", "play": "player", "human": "person", "eval": "evaluator"}
IDLE = 0.2  # share of its time from which on a side counts as waiting
STAGES = {"environment": "the environment", "act": "acting"}


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts of `status.gather` as sentences; none of a run that does not exist."""
    if not facts["run_id"]:
        return []
    messages = [f"{facts['steps_per_second']:,.0f} steps/s, {facts['frames_per_second']:,.0f} frames/s"]
    if len(facts["curve"]) > 1:
        returns = [value for _, value in facts["curve"]]
        messages[0] += f"; return {sparkline(returns)} {returns[-1]:.4g}"
    unreadable = facts["counters"].get("unreadable", 0)
    left_out = [
        f"{counted(unreadable, 'row')} on the server cannot be read and {'is' if unreadable == 1 else 'are'} left out"
    ]
    return [*messages, *sorted(set(facts["waits"].values())), facts["bottleneck"], *left_out * bool(unreadable)]


def wait(worker: Mapping[str, Any], sessions_per_second: float | None) -> str:
    """What a worker waits for and how long that will take, as a sentence; "" when it does not wait.

    >>> wait({"role": "train", "waits_for": "312 of 500 sessions", "waits_seconds": 60}, 4.7)
    'trainer waits: 312 of 500 sessions, since 60 s; about 40 s more at this rate'
    """
    if not worker["waits_for"]:
        return ""
    who = ROLES.get(worker["role"], worker["role"])
    message = f"{who} waits: {worker['waits_for']}, since {worker['waits_seconds']:.0f} s"
    found = re.match(r"(?:(\d{1,15}) of )?(\d[\d,]{0,15}) (?:more )?(?:new )?session", worker["waits_for"])
    if found is None or not sessions_per_second:
        return message
    missing = int(found[2].replace(",", "")) - int(found[1] or 0)
    return f"{message}; about {missing / sessions_per_second:.0f} s more at this rate"


def bottleneck(facts: Mapping[str, Any]) -> str:
    """One sentence on who holds the others up, and what would help."""
    if not facts["run_id"]:
        return "no trainer has created the run; start one"
    trainers = [worker for worker in facts["workers"] if worker["role"] == "train"]
    players = [worker for worker in facts["workers"] if worker["role"] in PLAYS]
    if not trainers:
        return "no trainer is at work; start one"
    if not players:
        waits = "no player is at work yet; start one, or wait for one that is starting"
        return waits if trainers[0]["waits_for"] else "the trainer learns alone; nobody plays"
    lost = [worker for worker in trainers + players if worker["waits_for"] == "the database"]
    if lost:
        return f"database: {lost[0]['role']} on {lost[0]['host']} waits for it; is the network or the server slow?"
    shares = {name[5:]: share for name, share in facts["metrics"].items() if name.startswith("time/")}
    trainer_idle = max(0.0, 1 - sum(shares.values())) if shares else float(bool(trainers[0]["waits_for"]))
    player_idle = sum(map(_idle, players)) / len(players)
    if max(trainer_idle, player_idle) < IDLE:
        return "nobody waits long; more of everything would be faster"
    if player_idle > trainer_idle:
        update = f"an update takes {shares['update']:.0%} of its time; " if "update" in shares else ""
        return f"trainer: {update}give it more threads, a GPU or bf16, or a smaller reuse"
    stages = sum((Counter(worker["stages"]) for worker in players), Counter[str]())
    if not stages:
        return "players: the trainer waits for them; add players"
    name, share = stages.most_common(1)[0]
    more = ", or play --cores 2" if name == "act" else ""
    return f"players: {STAGES.get(name, name)} takes {share / stages.total():.0%} of a step; add players{more}"


def _idle(worker: Mapping[str, Any]) -> float:
    """The share of its time in which a player does nothing."""
    if not worker["stages"]:
        return float(bool(worker["waits_for"]))
    return max(0.0, 1 - sum(worker["stages"].values()))
