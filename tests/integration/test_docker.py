"""The files of docker/: linted, of one mind with the code, and their commands really run, though not in a container."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
import yaml

from tests.database.test_server import free_port
from tinyverse import __version__
from tinyverse.cli import main as cli
from tinyverse.cli import words as cli_words
from tinyverse.database import server_config
from tinyverse.database.redis import RedisDatabase
from tinyverse.monitoring.status import gather

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
VALKEY = yaml.safe_load((DOCKER / "kubernetes" / "helm" / "valkey.yaml").read_text())
PODS = [
    document
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
WORKLOADS = {document["kind"]: document for document in PODS if document["kind"] in ("Deployment", "StatefulSet")}
DOCKERFILES = {path.suffix[1:]: path.read_text() for path in sorted(DOCKER.glob("Dockerfile.*"))}
SCRIPTS = [DOCKER / "with-password", DOCKER / "serve-valkey", *sorted(DOCKER.glob("slurm/*.sbatch"))]
UNITS = sorted(DOCKER.glob("systemd/*.service"))
USER = 10001  # in every image and manifest
PATH = f"{DOCKER}:{Path(sys.executable).parent}:{os.environ['PATH']}"
PATIENCE = 90.0  # seconds; a busy machine imports torch for many of them
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not re.match("TINYVERSE|REDIS_URL|VALKEY|EXPERIMENT|RUN$|DEVICE$", name)
}


def lint(*words: Any) -> str:
    """What a linter says; fails if it finds something."""
    done = subprocess.run(
        [*map(str, words)], env={**os.environ, "PATH": PATH}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def filled(text: str, **given: str) -> str:
    """A text with `${NAME:-default}`, `${NAME}` and `$(NAME)` put in, as compose, a shell, systemd and Kubernetes do."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda hit: given.get(hit[1], hit[2]), text)
    return re.sub(r"\$[{(](\w+)[})]", lambda hit: given[hit[1]], text)


def commands() -> dict[str, list[str]]:
    """Every command of docker/ and of its manual, without the word tinyverse."""
    found = {}
    for name in ("player", "trainer", "trainer-cpu"):
        found[f"compose {name}"] = [filled(word) for word in COMPOSE["services"][name]["command"]]
    for name, text in DOCKERFILES.items():
        found[f"image {name}"] = json.loads(re.findall(r"^CMD (.*)", text, re.M)[0])
    config = next(document["data"] for document in PODS if document["kind"] == "ConfigMap")
    for kind, workload in WORKLOADS.items():
        found[kind] = [filled(word, **config) for word in container(workload)["args"]]
    for path in DOCKER.glob("slurm/*.sbatch"):
        (line,) = re.findall(r"^(?:exec )?docker/with-password tinyverse (.*?)(?: &)?$", path.read_text(), re.M)
        found[path.name] = shlex.split(filled(line))
    environment = dict(re.findall(r"^(\w+)=(.*)", (DOCKER / "systemd" / "tinyverse.env").read_text(), re.M))
    for path in UNITS:
        for line in re.findall(r"^ExecStart=.*/tinyverse (.*)", path.read_text(), re.M):
            found[path.name] = shlex.split(filled(line, **environment))
    manual = (ROOT / "docs" / "deployment.md").read_text()
    for line in re.findall(
        r"^(?:\S+=\S+ |.* with-password )*tinyverse (.*)", "".join(re.findall(r"```(.*?)```", manual, re.S)), re.M
    ):
        found[f"manual: {line}"] = shlex.split(filled(line, HOST="10.0.0.5"), comments=True)
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]["containers"][0]


def in_bytes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([a-zA-Z]+)", text).groups()
    return int(number) * {"gb": 2**30, "gi": 2**30, "g": 2**30}[unit.lower()]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    lint("hadolint", DOCKER / f"Dockerfile.{name}")


def test_shellcheck_finds_nothing() -> None:
    lint("shellcheck", *SCRIPTS)
    assert all(os.access(path, os.X_OK) for path in SCRIPTS[:2])


def test_the_compose_file_fits_its_schema() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")


def test_the_manifests_fit_kubernetes_schemas() -> None:
    lint("kubernetes-validate", "--strict", "-k", "1.34.0", *sorted((DOCKER / "kubernetes").glob("*.yaml")))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_verifies_its_units(tmp_path: Path) -> None:
    for name in ("with-password", "serve-valkey", "tinyverse"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    for path in UNITS:
        name = path.name.replace("@.", "@1.")
        (tmp_path / name).write_text(path.read_text().replace("/opt/tinyverse/bin", str(tmp_path)))
    said = lint("systemd-analyze", "verify", "--man=no", *sorted(tmp_path.glob("*.service")))
    assert str(tmp_path) not in said  # it only warns of words it does not know


@pytest.mark.parametrize(("where", "words"), commands().items())
def test_tinyverse_understands_every_command(where: str, words: list[str]) -> None:
    experiment, words = cli_words.sort_out(list(words))
    command: click.Command = cli.verbs
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    command.make_context(where, words, help_option_names=["-h", "--help"])
    assert "$" not in "".join([experiment, *words])


def test_commands_of_every_kind_were_found() -> None:
    verbs = [words[1] for words in commands().values()]
    assert verbs.count("play") >= 5 and verbs.count("train") >= 6


def test_valkey_is_told_the_same_everywhere() -> None:
    """The local server's limits and its user's rights, in the container and in the chart too."""
    ours = server_config._configuration(Path("/s"), (9, 1, 2), "secret", "secret", None, 1)
    own = ("port", "bind", "protected-mode", "unixsocket", "dir", "maxmemory ", "user ")
    limits = {line for line in ours if not line.startswith(own)}
    script = (DOCKER / "serve-valkey").read_text()
    assert limits and limits <= set(script.splitlines()) and limits <= set(VALKEY["valkeyConfig"].splitlines())
    (rights,) = [line.partition(" #")[2].partition(" ")[2] for line in ours if line.startswith("user tv ")]
    assert script.splitlines()[-2] == f"user tv reset on #$hash {rights}"
    assert VALKEY["auth"]["aclUsers"]["tv"]["permissions"] == rights
    assert "user default reset" in script and VALKEY["auth"]["aclConfig"] == "user default reset\n"


def test_valkey_is_full_before_its_container_is() -> None:
    service = COMPOSE["services"]["valkey"]
    unit = (DOCKER / "systemd" / "tinyverse-valkey.service").read_text()
    environment = (DOCKER / "systemd" / "tinyverse.env").read_text()
    pairs = [
        (service["environment"]["VALKEY_MAX_MEMORY"], service["deploy"]["resources"]["limits"]["memory"]),
        (re.findall(r"maxmemory (\S+)", VALKEY["valkeyConfig"])[0], VALKEY["resources"]["limits"]["memory"]),
        (re.findall(r"VALKEY_MAX_MEMORY=(\S+)", environment)[0], re.findall(r"MemoryMax=(\S+)", unit)[0]),
    ]
    for least, most in pairs:
        assert 1.4 * in_bytes(least) < in_bytes(most)
    assert service["image"].endswith(":" + VALKEY["image"]["tag"])


def test_nobody_is_root_and_every_image_has_a_version() -> None:
    for text in DOCKERFILES.values():
        assert re.findall(r"^USER (.*)", text, re.M) == [f"{USER}:{USER}"] and f"--uid {USER}" in text
        assert re.findall(r"^FROM (\S+)", text, re.M) == ["${PYTHON}", "${PYTHON}"]
        assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-", text, re.M)
    for workload in WORKLOADS.values():
        security = workload["spec"]["template"]["spec"]["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == security["fsGroup"] == USER
        assert container(workload)["securityContext"]["readOnlyRootFilesystem"]
    images = [service["image"] for service in COMPOSE["services"].values()]
    for image in [*images, *(container(workload)["image"] for workload in WORKLOADS.values())]:
        assert re.search(r":\d+\.\d+\.\d+", image), image
        assert "/tinyverse-" not in f"/{image}" or image.endswith(f":{__version__}")
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"] and service["read_only"], name
    assert COMPOSE["services"]["valkey"]["user"] == f"{USER}:{USER}"
    assert all("DynamicUser=yes" in unit.read_text() for unit in UNITS)


def test_the_password_comes_from_a_file_alone() -> None:
    texts = [path.read_text() for path in DOCKER.rglob("*") if path.is_file() and path.parent.name != "secrets"]
    assert not [text for text in texts if "--password" in text or re.search(r"redis://\w*:\S*@", text)]
    for service in COMPOSE["services"].values():
        assert "TINYVERSE_PASSWORD" not in service.get("environment", {})


def test_every_probe_asks_the_same() -> None:
    probes = [COMPOSE["services"][name]["healthcheck"]["test"][1:] for name in ("player", "trainer", "trainer-cpu")]
    probes += [json.loads(re.findall(r"HEALTHCHECK .*\n +CMD (.*)", text)[0]) for text in DOCKERFILES.values()]
    for workload in WORKLOADS.values():
        startup, liveness = (container(workload)[kind]["exec"]["command"] for kind in ("startupProbe", "livenessProbe"))
        assert startup == liveness and startup[:2] == ["sh", "-c"]
        probes.append(shlex.split(startup[2])[1:])
    asked = [(*words[:3], words[4]) for words in probes]
    assert set(asked) == {
        ("with-password", "python", "/opt/tinyverse/bin/healthy.py", role) for role in ("play", "train")
    }
    assert {filled(words[3]) for words in probes} == {"atari", "$RUN"}


def test_players_may_be_preempted_and_scaled() -> None:
    deployment, scaler = WORKLOADS["Deployment"], next(d for d in PODS if d["kind"] == "HorizontalPodAutoscaler")
    priority = next(document for document in PODS if document["kind"] == "PriorityClass")
    assert "replicas" not in deployment["spec"] and scaler["spec"]["scaleTargetRef"]["name"] == "tinyverse-player"
    assert priority["value"] < 0
    assert deployment["spec"]["template"]["spec"]["priorityClassName"] == priority["metadata"]["name"]


# -- the entry points themselves ------------------------------------------------------------------------------------


def with_password(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**CLEAN, "PATH": PATH, "TINYVERSE_PASSWORD_FILE": str(file)}
    return subprocess.run(
        ["with-password", *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_with_password_reads_it_and_runs_the_command(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret 'word'\n")
    done = with_password(tmp_path / "password", "sh", "-c", 'echo "<$TINYVERSE_PASSWORD>"; exit 7')
    assert (done.stdout, done.returncode) == ("<s3cret 'word'>\n", 7)


@pytest.mark.parametrize("there", [False, True])
def test_with_password_says_what_is_wrong(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "password").write_text("\n")
    done = with_password(tmp_path / "password", "echo", "hello")
    assert done.returncode == 2 and done.stdout == ""
    assert f"{tmp_path}/password is empty or user {os.getuid()} may not read it" in done.stderr


def test_valkey_does_not_start_without_a_password() -> None:
    done = subprocess.run(
        [str(DOCKER / "serve-valkey")], env=CLEAN, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "there is no password" in done.stderr


@pytest.mark.parametrize(
    ("words", "url", "code", "said"),
    [
        ([], "", 2, "got nothing, wanted: healthy.py RUN play|train"),
        (["r", "eval"], "", 2, "got r eval, wanted"),
        (["r", "play"], "", 1, "No server is named"),
        (["r", "play"], "redis://127.0.0.1:1/0", 0, "no fault of this worker"),
        (["r", "play"], "ours", 1, "play of run r on"),
    ],
)
def test_healthy_says_why(words: list[str], url: str, code: int, said: str, redis_url: str, tmp_path: Path) -> None:
    place = {"TINYVERSE_SERVER_DIR": str(tmp_path / "s"), "PYTHONPATH": str(ROOT)}
    if url:
        place["TINYVERSE_REDIS_URL"] = redis_url if url == "ours" else url
    done = subprocess.run(
        [sys.executable, str(DOCKER / "healthy.py"), *words], env={**CLEAN, **place},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code and said in done.stdout + done.stderr


# -- a whole run, with the commands of the containers ---------------------------------------------------------------


class Host:
    """A folder as a container sees its own: nothing in it may be written but runs/. Root runs all in it as USER."""

    def __init__(self, path: Path, sayings: Path) -> None:
        self.path, self.sayings, self.processes = path, sayings, list[subprocess.Popen[str]]()
        needed = [ROOT, Path(sys.prefix), Path(sys.executable).resolve()]
        readable = all(part.stat().st_mode & 1 for file in needed for part in (file, *file.parents))
        self.user = USER if os.getuid() == 0 and readable else None
        (path / "bin").mkdir()
        (path / "bin" / "valkey-server").symlink_to(server_config.find_binary()[0])
        (path / "runs").mkdir()
        (path / "password").write_text("correct horse\n")
        (path / "password").chmod(0o400)
        if self.user:
            os.chown(path / "runs", USER, USER)
            os.chown(path / "password", USER, USER)
        path.chmod(0o555)
        self.env = {**CLEAN, "PATH": f"{path}/bin:{PATH}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def popen(self, words: list[str], **env: str) -> subprocess.Popen[str]:
        """Starts a command with what it says in a file of its own."""
        with (self.sayings / str(len(self.processes))).open("w") as file:
            process = subprocess.Popen(
                words, cwd=self.path, env={**self.env, **env}, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                text=True, start_new_session=True, user=self.user, group=self.user, extra_groups=self.user and [],
            )  # fmt: skip
        self.processes.append(process)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        return (self.sayings / str(self.processes.index(process))).read_text()

    def says(self, process: subprocess.Popen[str], pattern: str) -> None:
        """Waits until it does."""
        ends = time.monotonic() + PATIENCE
        while not re.search(pattern, said := self.said(process)):
            assert time.monotonic() < ends and process.poll() is None, f"not {pattern!r} but {said}"
            time.sleep(0.2)

    def end(self, process: subprocess.Popen[str], number: int, seconds: float) -> None:
        """Asks a process to end and sees that it does within its grace period, all being well."""
        process.send_signal(number)
        process.wait(seconds)
        assert process.returncode == 0, self.said(process)

    def updates(self) -> list[int]:
        return sorted(int(file.stem.split("-")[1]) for file in self.path.glob("runs/*/checkpoints/update-*.pt"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    here = Host(Path(tempfile.mkdtemp(prefix="tvd", dir="/tmp")), tmp_path)
    try:
        yield here
    finally:
        for process in here.processes:
            for child in children(process):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            process.kill()
            process.wait()
        here.path.chmod(0o755)
        shutil.rmtree(here.path)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Polls until `true()` is, and returns it."""
    ends = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < ends, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
    return found


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_the_containers_commands_play_and_train(host: Host) -> None:
    services, port = COMPOSE["services"], str(free_port())
    host.env |= {
        "TINYVERSE_PASSWORD_FILE": str(host.path / "password"),
        "TINYVERSE_REDIS_URL": services["player"]["environment"]["TINYVERSE_REDIS_URL"].replace(
            "valkey:6379", f"127.0.0.1:{port}"
        ),
    }

    def start(name: str) -> subprocess.Popen[str]:
        entry = json.loads(re.findall(r"^ENTRYPOINT (.*)", DOCKERFILES["player"], re.M)[0])
        words = [filled(word, EXPERIMENT="catch", RUN="boxed") for word in services[name]["command"]]
        return host.popen([*entry[entry.index("--") + 1 :], *words])

    def health(name: str) -> int:
        words = [filled(word, RUN="boxed") for word in services[name]["healthcheck"]["test"][1:]]
        process = host.popen([word.replace("/opt/tinyverse/bin", str(DOCKER)) for word in words])
        return process.wait(PATIENCE)

    def grace(name: str) -> float:
        return float(services[name]["stop_grace_period"].removesuffix("s"))

    words = [word.replace("/docker", str(DOCKER)) for word in services["valkey"]["command"]]
    valkey = host.popen(words, VALKEY_LISTEN_PORT=port, VALKEY_BIND="127.0.0.1", VALKEY_MAX_MEMORY="64mb")
    host.says(valkey, "Ready to accept connections")
    trainer, player = start("trainer-cpu"), start("player")
    host.says(trainer, "training run")
    until(lambda: health("trainer-cpu") == 0, "the trainer's heartbeat")
    host.says(player, "playing")
    until(lambda: health("player") == 0, "the player's heartbeat")
    host.says(trainer, "train: update [1-9]")
    for process in (valkey, trainer, player):
        assert "correct" not in " ".join(psutil.Process(process.pid).cmdline())
        assert host.user is None or psutil.Process(process.pid).uids().real == host.user

    host.end(trainer, signal.SIGTERM, grace("trainer-cpu"))
    (saved,) = host.updates()
    assert saved > 0 and health("trainer-cpu") == 1
    again = start("trainer-cpu")
    host.says(again, f"training run boxed from update {saved:,}")
    host.end(player, signal.SIGTERM, grace("player"))
    assert health("player") == 1
    host.end(again, signal.SIGTERM, grace("trainer-cpu"))
    host.end(valkey, signal.SIGTERM, 10)
    assert health("player") == 0  # nobody can tell, so nobody is restarted
    assert sorted(entry.name for entry in host.path.iterdir()) == ["bin", "password", "runs"]


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_slurms_trainer_saves_and_is_queued_again(host: Host, redis_url: str) -> None:
    host.user = None  # the server's socket is this user's
    host.path.chmod(0o755)
    (host.path / "docker").symlink_to(DOCKER)
    (host.path / ".venv").symlink_to(sys.prefix)
    scontrol = host.path / "bin" / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" >> asked\n')
    scontrol.chmod(0o755)
    host.env |= {"TINYVERSE_REDIS_URL": redis_url, "EXPERIMENT": "catch", "RUN": "queued", "DEVICE": "cpu"}

    def submit(name: str) -> subprocess.Popen[str]:
        return host.popen(["bash", str(DOCKER / "slurm" / name)], SLURM_JOB_ID="77")

    def update() -> int:
        with contextlib.closing(RedisDatabase(redis_url, "queued")) as database:
            return gather(database, "queued")["update"]

    trainer, player = submit("trainer.sbatch"), submit("player.sbatch")
    until(lambda: update() > 3, "updates")
    host.end(trainer, signal.SIGUSR1, 120)
    (saved,) = host.updates()
    assert (host.path / "asked").read_text() == "requeue 77\n"
    again = submit("trainer.sbatch")
    host.says(again, f"training run queued from update {saved:,}")
    until(lambda: update() > saved, "more updates")
    host.end(again, signal.SIGTERM, 60)
    host.end(player, signal.SIGTERM, 30)
    assert (host.path / "asked").read_text() == "requeue 77\n" and host.updates()[-1] > saved
