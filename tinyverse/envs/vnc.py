"""VNC: any program with a screen as an environment, in real time: pixels in, keys and mouse out.

    keys held   a0 ───────▶ a1 ───────▶ a2 ───────▶       until the next action; the program never stops
    ticks       |           |           |           |     `rate` times a second, shared by all environments
    frames     o0          o1          o2          o3     the newest screen at the tick

An agent that is later than the next tick has missed it: the step ends at the newest tick, and the program has gone on
meanwhile. `Clock.missed` counts missed ticks.
"""

import contextlib
import importlib.util
import itertools
import logging
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from tinyverse.core.errors import ExperimentError
from tinyverse.envs.pool import SplitPool, Step

SECONDS = 20.0  # for a server to answer, and for a program to begin an episode
IDLE_SECONDS = 30  # without a connection, after which a server ends, so that none outlives a killed player


class Clock:
    """Ticks at multiples of 1/rate of the machine's monotonic clock, so that all clocks of one rate tick together.

    Attributes:
        missed: ticks that passed without a `wait`.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.missed = rate, 0
        self._tick = math.floor(time.monotonic() * rate)

    def wait(self) -> None:
        """Sleeps until the next tick. If that has passed long ago, takes the newest tick and counts the missed ones."""
        newest = math.floor(time.monotonic() * self.rate)
        wanted = max(self._tick + 1, newest)
        self.missed += wanted - self._tick - 1
        self._tick = wanted
        time.sleep(max(0.0, wanted / self.rate - time.monotonic()))


class Desktop:
    """A program on a virtual screen: TigerVNC's server on a private socket, without a window manager.

    Args:
        command: the program; "{folder}" in a word becomes a private folder that is removed with the desktop.
        width, height: of the screen, in pixels.
    Raises:
        ExperimentError: Xtigervnc or the program is not installed, or the server did not start.
    """

    def __init__(self, command: Sequence[str], width: int, height: int) -> None:
        for program, package in [("Xtigervnc", "tigervnc-standalone-server"), (command[0], command[0])]:
            if not shutil.which(program):
                raise ExperimentError(f"{program} is not installed; on Debian: apt-get install {package}")
        with contextlib.ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="tv", dir="/tmp", ignore_cleanup_errors=True)
            self.folder, self._stack = stack.enter_context(folder), stack
            self.address = f"{self.folder}/vnc"
            # a player that is killed closes this pipe; the server then ends after IDLE_SECONDS, and the program with it
            remove = 'trap "" INT HUP; read _; sleep "$1"; rm -rf "$0"'
            words = ["sh", "-c", remove, self.folder, str(2 * IDLE_SECONDS)]
            self._start(words, "remove", stdin=subprocess.PIPE)
            display = self._server(width, height)
            words = [word.replace("{folder}", self.folder) for word in command]
            # a minimal environment, because ours may hold passwords
            env = {"DISPLAY": f":{display}", "HOME": self.folder, "PATH": os.environ["PATH"]}
            self._start(words, "program", env=env)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Ends the program and its screen."""
        self._stack.close()

    def _server(self, width: int, height: int) -> str:
        options = ["-rfbunixpath", self.address, "-rfbport", "-1", "-SecurityTypes", "None", "-nolisten", "tcp"]
        options += ["-geometry", f"{width}x{height}", "-depth", "24", "-MaxDisconnectionTime", str(IDLE_SECONDS)]
        server = self._start(["Xtigervnc", "-displayfd", "1", *options], "server", stdout=subprocess.PIPE)
        display = server.stdout.readline().decode().strip()  # chosen by the server
        if not display:
            log = Path(self.folder, "server.log").read_text(errors="replace").strip().splitlines()
            raise ExperimentError(f"Xtigervnc did not start: {log[-1] if log else 'it says nothing'}")
        return display

    def _start(self, words: Sequence[str], name: str, **options: Any) -> Any:
        with Path(self.folder, f"{name}.log").open("wb") as log:
            process = subprocess.Popen(words, **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **options})
        self._stack.callback(_end, process)
        return process


class VncEnv(gymnasium.Env):
    """One program behind a VNC server. The first reset connects to it.

    An action is a chord: the words that are held until the next action. Words are keys ("left", "up", "space", "a",
    with vncdotool's names), mouse buttons ("button1" … "button3") and at most one position of the pointer ("@120,80").
    "" releases everything, "left up" holds two keys, and "@120,80 button1" presses the button there.

    The reward is the increase of `score` since the last frame. It is a running total, because an event that shows only
    between two frames would be lost. `score` may read the frame, or another source such as a file or socket.

    Args:
        where: a server's address, "host::port", "host:display" or the path of a socket; or a function that starts a
            program and returns an object with `address` and `close()`, such as a `Desktop`.
        chords: the discrete actions.
        score: maps the whole screen, [H, W, 3] uint8 RGB, to the total so far; None if it cannot tell.
        over: maps the screen to whether no episode is running: the program is not ready, or the game has ended.
        start: the chord that begins an episode, pressed once per tick until `over` is False.
        rate: frames per second.
        size: (height, width) of observations, [height, width] uint8 grey, averaged over areas.
        region: the observed part of the screen, (x, y, width, height) in pixels; None: all of it.
        password: of the server.
        render_mode: "rgb_array": `render()` gives the whole screen.
    Raises:
        ExperimentError: vncdotool is not installed, a chord has an unknown word, no server answers at the address, or
            no episode began within 20 s.
    """

    def __init__(
        self,
        where: str | Callable[[], Any],
        chords: Sequence[str],
        *,
        score: Callable[[np.ndarray], float | None],
        over: Callable[[np.ndarray], bool] = lambda screen: False,
        start: str = "",
        rate: float = 20.0,
        size: tuple[int, int] = (84, 84),
        region: tuple[int, int, int, int] | None = None,
        password: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        if importlib.util.find_spec("vncdotool") is None:
            raise ExperimentError('VNC needs vncdotool, which is not installed: pip install "tinyverse[browser]"')
        self._where, self._password, self._score, self._over = where, password, score, over
        self._chords, self._start = [_chord(words) for words in chords], _chord(start)
        self.clock, self.render_mode = Clock(rate), render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(rate)}
        self._size, self._region = size, region
        self.observation_space = spaces.Box(0, 255, size, np.uint8)
        self.action_space = spaces.Discrete(len(chords))
        self._connection: _Connection | None = None
        self._total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode. The program's own randomness cannot be seeded."""
        super().reset(seed=seed)
        return self.begin(self.clock), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.press(action)
        self.clock.wait()
        return *self.see(), False, {"missed": self.clock.missed}

    def render(self) -> np.ndarray:
        return self._screen

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # the parts of a step, which VncPool calls for several environments on one clock

    def begin(self, clock: Clock) -> np.ndarray:
        """Presses `start` until an episode runs, and returns its first observation."""
        if self._connection is None:
            self._connection = _Connection(self._where, self._password)
        gives_up = time.monotonic() + SECONDS
        while True:
            self._connection.hold(self._start)
            clock.wait()
            self._connection.hold(())
            self._screen = self._connection.screen()
            if not self._over(self._screen):
                self._total = self._score(self._screen) or 0.0
                return self._observation()
            if time.monotonic() > gives_up:
                raise ExperimentError(
                    f"no episode began within {SECONDS:.0f} s: `over` is True of every screen. Does the program run, "
                    f"and does it begin with {' '.join(self._start) or 'nothing pressed'!r}?"
                )

    def press(self, action: int) -> None:
        """Holds the chord of `action` from now on."""
        assert self._connection is not None, "reset() comes before step()"
        self._connection.hold(self._chords[int(action)])

    def see(self) -> tuple[np.ndarray, float, bool]:
        """Returns observation, reward and whether the episode is over, from the newest screen."""
        assert self._connection is not None, "reset() comes before step()"
        self._screen = self._connection.screen()
        total = self._score(self._screen)
        total = self._total if total is None else float(total)
        reward, self._total = total - self._total, total
        return self._observation(), reward, bool(self._over(self._screen))

    def _observation(self) -> np.ndarray:
        x, y, width, height = self._region or (0, 0, *self._screen.shape[1::-1])
        grey = cv2.cvtColor(self._screen[y : y + height, x : x + width], cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, self._size[::-1], interpolation=cv2.INTER_AREA)


class VncPool(SplitPool):
    """B programs on one clock: all actions are sent at once, and all frames are of the same tick."""

    realtime = True

    def __init__(self, envs: Sequence[VncEnv]) -> None:
        self._envs, self.num_envs = list(envs), len(envs)
        self.observation_space, self.action_space = envs[0].observation_space, envs[0].action_space
        self.clock = envs[0].clock
        self._observations = np.zeros((len(envs), *self.observation_space.shape), np.uint8)
        self._ended = [True] * len(envs)

    def reset(self, seed: int | None = None) -> np.ndarray:
        self._ended = [True] * self.num_envs
        return self.receive().observations

    def send(self, actions: np.ndarray) -> None:
        for env, action, ended in zip(self._envs, actions, self._ended, strict=True):
            if not ended:
                env.press(action)

    def receive(self) -> Step:
        if not all(self._ended):
            self.clock.wait()
        rewards, ends = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        for game, (env, ended) in enumerate(zip(self._envs, self._ended, strict=True)):
            if ended:
                self._observations[game] = env.begin(self.clock)
            else:
                self._observations[game], rewards[game], ends[game] = env.see()
        self._ended = ends.tolist()
        return Step(self._observations, rewards, ends, np.zeros(self.num_envs, bool))

    def close(self) -> None:
        for env in self._envs:
            env.close()


class _Connection:
    """A VNC connection: the held keys and the newest screen. Vncdotool serves all connections in one thread."""

    def __init__(self, where: str | Callable[[], Any], password: str | None) -> None:
        from twisted.internet import reactor, threads
        from vncdotool import api, client

        class Screen(client.VNCDoToolClient):
            """Requests the next update as soon as one has arrived, so that the screen is always the newest."""

            def commitUpdate(self, rectangles: Any = None) -> None:  # noqa: N802
                super().commitUpdate(rectangles)
                self.framebufferUpdateRequest(incremental=True)

        class Factory(client.VNCDoToolFactory):
            protocol, lost = Screen, False

            def clientConnectionLost(self, connector: Any, reason: Any) -> None:  # noqa: N802
                super().clientConnectionLost(connector, reason)
                self.lost = True

        logging.getLogger("twisted").setLevel(logging.WARNING)  # at INFO it logs every rectangle
        self._desktop = where() if callable(where) else None
        self.address = self._desktop.address if self._desktop is not None else str(where)
        self._held: tuple[str, ...] = ()
        self._client = api.connect(self.address, password, Factory, timeout=SECONDS)
        self._call = lambda function: threads.blockingCallFromThread(reactor, function)
        try:
            self._client.refreshScreen()  # returns with the first screen
        except Exception as error:
            # twisted should not log this again; `disconnect` would wait for a connection
            reactor.callFromThread(self._client.factory.deferred.addErrback, lambda failure: None)
            if self._desktop is not None:
                self._desktop.close()
            raise ExperimentError(
                f"no VNC server can be used at {self.address}: {str(error).rstrip('.') or type(error).__name__}. Start one there, or "
                'give another address, as "host::5900".'
            ) from None

    def hold(self, words: tuple[str, ...]) -> None:
        """Releases held words that are not in `words`, then presses the new ones."""
        held, self._held = self._held, words

        def act() -> None:
            protocol = self._client.protocol
            for place in filter(None, map(_position, words)):
                protocol.mouseMove(*place)
            changes = [(word, False) for word in held if word not in words]
            changes += [(word, True) for word in words if word not in held]
            for word, down in changes:
                if word.startswith("button"):
                    (protocol.mouseDown if down else protocol.mouseUp)(int(word[6:]))
                elif not _position(word):
                    (protocol.keyDown if down else protocol.keyUp)(word)

        self._check()
        if words != held:
            self._call(act)

    def screen(self) -> np.ndarray:
        """Returns the newest screen, [H, W, 3] uint8 RGB."""
        self._check()
        return self._call(lambda: np.array(self._client.protocol.screen))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.disconnect()
        if self._desktop is not None:
            self._desktop.close()

    def _check(self) -> None:
        if self._client.factory.lost:
            raise ExperimentError(f"the VNC server at {self.address} has gone. Start it again.")


def _chord(words: str) -> tuple[str, ...]:
    """Returns the words of a chord, and refuses a word that is no key, button or position."""
    from vncdotool.keys import KEYMAP

    for word in words.split():
        known = len(word) == 1 or word in KEYMAP or word in ("button1", "button2", "button3")
        if not (known or _position(word)):
            raise ExperimentError(
                f"{word!r} in the chord {words!r} is no key, button or position. Keys are single letters and "
                f'{", ".join(itertools.islice(KEYMAP, 8))} …; buttons are "button1" to "button3"; positions "@120,80".'
            )
    return tuple(words.split())


def _position(word: str) -> tuple[int, ...]:
    """Returns (x, y) for "@120,80", and () for any other word."""
    found = re.fullmatch(r"@(\d+),(\d+)", word)
    return tuple(map(int, found.groups())) if found else ()


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:  # waits at the end, and closes the pipes
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
