"""The command `doctor`: is everything here as it should be? A line for each thing, and what to do where it is not.

It builds the experiment if one is named, and pushes a few megabytes into a run of its own, which it removes again.
"""

import contextlib
import json
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import redis

from tinyverse.cli.context import RUNS, RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core import codec, system
from tinyverse.core.errors import DatabaseError, ServerError, TinyverseError
from tinyverse.core.text import counted
from tinyverse.database import schema, server, server_config
from tinyverse.database.connection import connect, errors
from tinyverse.database.redis import RedisDatabase
from tinyverse.experiment import loader
from tinyverse.monitoring import metrics

MENDED = ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 1, 4), (8, 2, 2))  # the first release of each series
HOLES = "CVE-2025-49844, 46817, 46818 and 46819: whoever may run scripts can take the server over"
SLOW = 20.0  # MB/s to the server below which pushing holds players up
SKEW = 5.0  # seconds between the clocks
MEMORY = 2 << 30  # bytes free for a trainer or player to begin with
DISK = 1 << 30  # bytes free for checkpoints


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    message: str
    advice: str = ""  # what to do; "" where all is well

    @property
    def ok(self) -> bool:
        return not self.advice

    def __str__(self) -> str:
        advice = f". {self.advice}" if self.advice else ""
        return f"{'ok     ' if self.ok else 'warning'}  {self.what:<12}  {self.message}{advice}"


@click.command(cls=RunCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def doctor(context: RunContext, as_json: bool) -> int:
    """Looks at Python, torch, this machine, the server and, if one is named, the experiment. Exits 1 after a warning."""
    findings = []
    for finding in examine(context):
        findings.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        facts = [
            {"what": each.what, "ok": each.ok, "message": each.message, "advice": each.advice} for each in findings
        ]
        print(json.dumps(facts))
    return 0 if all(finding.ok for finding in findings) else 1


def examine(context: RunContext) -> Iterator[Finding]:
    """Looks at one thing after the other; what fails in a way that nobody foresaw is a finding too."""
    for check in (_processor, _memory, _codec, _server, _experiment):
        try:
            yield from check(context)
        except (TinyverseError, redis.RedisError, OSError, RuntimeError) as error:
            yield Finding(check.__name__[1:], str(error) or type(error).__name__, "It could not be looked at.")


def _processor(_: RunContext) -> Iterator[Finding]:
    import torch

    yield Finding("python", f"{platform.python_version()}, {sys.executable}")
    yield Finding("torch", torch.__version__)
    spins = os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE" and os.environ.get("GOMP_SPINCOUNT") != "0"
    advice = "Set OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait take the cores from each other."
    cores, threads = counted(system.cores(), "core"), counted(torch.get_num_threads(), "thread")
    yield Finding("threads", f"{cores} for this process, torch takes {threads}", advice if spins else "")
    capability = torch.backends.cpu.get_cpu_capability()
    has = "multiplies bfloat16 itself" if system.has_bfloat16() else "has no bfloat16; --precision auto stays fp32"
    plain = capability == "DEFAULT" and platform.machine() in ("x86_64", "AMD64")
    advice = "This processor has no AVX2; expect a tenth of the speed."
    yield Finding("cpu", f"{capability}, {has}", advice if plain else "")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding("gpu", f"{', '.join(names)}; learn there with train --device cuda")
    elif Path("/dev/nvidia0").exists():
        advice = "Install torch with CUDA, by the line of its get-started page, and a driver as new."
        yield Finding("gpu", "there is one that this torch cannot use", advice)
    else:
        yield Finding("gpu", "none; learning is on the CPU")


def _memory(_: RunContext) -> Iterator[Finding]:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not every system says
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        text = Path("/proc/meminfo").read_text().split() if Path("/proc/meminfo").exists() else []
        if "MemAvailable:" in text:
            free = 1024 * int(text[text.index("MemAvailable:") + 1])
        advice = "End something, or lower --buffer-size and --num-envs." if free < MEMORY else ""
        yield Finding("memory", f"{metrics.size(free)} available", advice)
    place = next(path.absolute() for path in (RUNS, *RUNS.absolute().parents) if path.exists())
    disk = shutil.disk_usage(place).free
    if os.access(place, os.W_OK):
        advice = "Make room: checkpoints go to ./runs." if disk < DISK else ""
        yield Finding("disk", f"{metrics.size(disk)} free at {place}", advice)
    else:
        yield Finding("disk", f"{place} cannot be written", "Train in a folder of yours: checkpoints go to ./runs.")


def _codec(_: RunContext) -> Iterator[Finding]:
    image, number = np.zeros((65, 84, 84), np.uint8), np.linspace(0, 1, 1000, dtype=np.float32)
    arrays: dict[str, np.ndarray] = {"image": image, "number": number}
    began = time.perf_counter()
    blob = codec.compress(codec.encode(arrays, {"who": "doctor"}))
    back, metadata = codec.decode(codec.decompress(blob))
    milliseconds = 1000 * (time.perf_counter() - began)
    same = metadata == {"who": "doctor"} and all(np.array_equal(back[name], array) for name, array in arrays.items())
    advice = "" if same else "Something is wrong with NumPy or zstandard here: install them anew."
    message = f"a session there and back in {milliseconds:.1f} ms, {'the same' if same else 'NOT the same'}"
    yield Finding("codec", message, advice)


def _server(context: RunContext) -> Iterator[Finding]:
    try:
        address = context.address(start=False)
    except ServerError as error:
        if context.names_server:
            yield Finding("server", str(error), "Is it the right URL, and does the server run?")
            return
        path, numbers = server_config.find_binary()
        version = ".".join(map(str, numbers))
        yield Finding("server", f"none runs yet; the first command that needs one starts {path}, version {version}")
        yield from _holes(version, path)
        with server.private_server() as trial:
            yield _speed(trial.url)
        return
    with errors(address.url), connect(address.url) as client:
        local = server.status() if address.source == "running" else None
        version = str(local["version"]) if local else ""
        with contextlib.suppress(redis.exceptions.NoPermissionError):
            info: Any = client.info("server")
            version = str(info.get("valkey_version") or info["redis_version"])
        yield Finding("server", f"{address} ({address.source}), version {version or 'hidden from us'}")
        yield from _holes(version)
        here = any(word in str(address) for word in ("localhost", "127.0.0.1", "[::1]"))
        if address.url.startswith("redis://") and not here:
            advice = "Use it in a network you trust, through a tunnel (ssh, WireGuard), or with TLS (rediss://)."
            yield Finding("encryption", "none between here and the server", advice)
        yield _rights(client)
        yield _clock(client)
        if local is not None:
            full = local["memory"] > 0.9 * local["max_memory"] > 0
            used = f"{metrics.size(local['memory'])} of {metrics.size(local['max_memory'])} used"
            advice = "Clear old runs (tinyverse RUN clear), or start it with more --max-memory." if full else ""
            yield Finding("room", used, advice)
    yield _speed(address.url)


def _holes(version: str, path: str = "") -> Iterator[Finding]:
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if len(numbers) < 3:
        return
    mended = next((release for release in MENDED if release[:2] == numbers[:2]), ())
    if numbers < server_config.OLDEST:
        yield Finding("holes", f"{version} is older than 6.2", "Install a newer server.")
    elif numbers < mended:
        packaged = path.startswith(("/usr/bin/", "/usr/sbin/"))
        advice = "A distribution may have mended it all the same; else install" if packaged else "Install"
        advice += f" {'.'.join(map(str, mended))} or newer; our own user may run no scripts."
        yield Finding("holes", f"{version} has {HOLES}", advice)


def _rights(client: redis.Redis) -> Finding:
    """Whether we are the restricted user; asks for something harmless that it may not do."""
    try:
        client.config_get("maxmemory")
    except redis.exceptions.NoPermissionError:
        return Finding("rights", "only what tinyverse needs, as it should be")
    except redis.ResponseError:
        return Finding("rights", "the server has no CONFIG; its provider looks after it")
    advice = f"Make a user for tinyverse: ~{schema.PREFIX}* -@all and +{' +'.join(schema.COMMANDS[:3])} …"
    return Finding("rights", "our user may do everything, and so may whoever reads our URL", advice)


def _clock(client: redis.Redis) -> Finding:
    began = time.time()
    seconds, microseconds = client.time()
    now = time.time()
    skew = seconds + 1e-6 * microseconds - (began + now) / 2
    advice = "Nothing in a run depends on it, but dates in logs differ: set both by NTP." if abs(skew) > SKEW else ""
    message = f"{abs(skew):.2f} s from the server's; an answer takes {1000 * (now - began):.1f} ms"
    return Finding("clock", message, advice)


def _speed(url: str) -> Finding:
    database = RedisDatabase(url, f"doctor-{secrets.token_hex(4)}")
    blobs = [secrets.token_bytes(64 << 10) for _ in range(64)]
    try:
        began = time.perf_counter()
        database.append(blobs)
        pushed = time.perf_counter()
        same = [blob for _, blob in database.read("0-0", len(blobs))[0]] == blobs
        fetched = time.perf_counter()
    except DatabaseError as error:
        return Finding("speed", str(error), "Without pushing and fetching nothing will work.")
    finally:
        with contextlib.suppress(DatabaseError):
            database.clear()
            database.close()
    megabytes = sum(map(len, blobs)) / 1e6
    push, fetch = megabytes / (pushed - began), megabytes / (fetched - pushed)
    advice = "The network is slow: play and train nearer to the server." if min(push, fetch) < SLOW else ""
    message = f"push {push:,.0f} MB/s, fetch {fetch:,.0f} MB/s" + ("" if same else ", and what came back differs")
    return Finding("speed", message, advice if same else "Sessions get damaged on the way: look at the server's log.")


def _experiment(context: RunContext) -> Iterator[Finding]:
    if not context.experiment:
        return
    from tinyverse.player.player import Player

    try:
        experiment = loader.build(context.module, context.resolved({}))
        player = Player(experiment.agent(), experiment.pool(experiment.num_envs), experiment.unroll_length)
        began = time.perf_counter()
        rollout = player.play()
        seconds = time.perf_counter() - began
        player.close()
        experiment.spec(player.agent).decode(rollout.sessions("doctor", 0, version="0", update="0")[0].encode())
        steps = rollout.valid.size
        message = f"{context.experiment}: {steps} steps at {steps / seconds:,.0f} steps/s, a session that fits"
        yield Finding("experiment", message)
    except TinyverseError as error:
        advice = f"tinyverse {context.experiment} check shows more."
        yield Finding("experiment", f"{context.experiment}: {error}", advice)
