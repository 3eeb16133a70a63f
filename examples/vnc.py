"""A browser game from pixels, with keys, in real time: Chromium under a VNC server plays examples/falling.html.

    apt-get install chromium tigervnc-standalone-server
    pip install -e '.[browser]'
    tinyverse vnc.py run --players 1 --minutes 4
    tinyverse vnc.py eval -n 5 --greedy

The game does not wait. It runs at 30 frames per second, and the agent observes and acts 20 times a second. What comes too
late is missed. An episode is ten blocks, each worth 1 or −1. Random actions get −4. A test checks that the return is above 0
after four minutes. Other programs work the same way, with another command, other chords and another `score`.
"""

import os
from pathlib import Path

import numpy as np
from torch import nn

from tinyverse import Experiment
from tinyverse.agents import QAgent
from tinyverse.algorithms import DQN
from tinyverse.envs.vnc import Desktop, VncEnv, VncPool
from tinyverse.networks import Identity, ModularNetwork

PAGE = Path(__file__).with_name("falling.html")
SIDE, STRIP, CELL = 160, 8, 8  # pixels: the field, and above it the row of cells with the score

CHROMIUM = [
    "chromium", "--kiosk", f"--app=file://{PAGE}", f"--window-size={SIDE},{SIDE + STRIP}", "--window-position=0,0",
    "--user-data-dir={folder}", "--no-first-run", "--disable-gpu", "--disable-sync", "--disable-component-update",
    "--disable-background-networking", "--disable-extensions", "--force-device-scale-factor=1",
]  # fmt: skip


def start():
    """Starts a new browser on its own screen."""
    root = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's sandbox refuses to run as root
    return Desktop(CHROMIUM + root, SIDE, SIDE + STRIP)


def read(screen):
    """Returns (over, caught, missed) from the cells above the field, None if there are none."""
    bits = (screen[CELL // 2, CELL // 2 : SIDE : CELL, 0] > 127).astype(int)
    if bits[:3].tolist() != [1, 0, 1]:
        return None
    caught, missed = np.packbits(bits[4:].astype(np.uint8)).tolist()
    return bool(bits[3]), caught, missed


def score(screen):
    cells = read(screen)
    return None if cells is None else cells[1] - cells[2]


def over(screen):
    cells = read(screen)
    return cells is None or cells[0]


def make_experiment(rate=20.0, num_envs=4, learning_rate=1e-3, epsilon=0.3, reuse=16.0):
    def make_env(evaluation=False, render_mode=None):
        return VncEnv(
            start, ["", "left", "right"], score=score, over=over, start="space", rate=rate,
            size=(20, 20), region=(0, STRIP, SIDE, SIDE), render_mode=render_mode,
        )  # fmt: skip

    def make_pool(num_envs):
        return VncPool([make_env() for _ in range(num_envs)])

    def make_agent(observation_space, action_space):
        trunk = nn.Sequential(Identity(), nn.Linear(400, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        network = ModularNetwork(observation_space, action_space, trunk=trunk)
        return QAgent(network, action_space, epsilon=epsilon, alpha=3.0)

    def make_learner(agent):
        return DQN(agent, learning_rate=learning_rate, discount=0.95, n=5, target_every=100)

    return Experiment(
        make_env=make_env, make_pool=make_pool, make_agent=make_agent, make_learner=make_learner,
        unroll_length=10, num_envs=num_envs, batch_size=16, sampler="prioritized", reuse=reuse, buffer_size=5000,
        min_sessions=50, publish_every=10, realtime=True,
    )  # fmt: skip
