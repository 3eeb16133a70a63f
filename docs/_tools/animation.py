"""Animation: a game played with the weights of several moments of one run, beside the curve up to each moment, as a GIF.

    python docs/_tools/animation.py runs/pong CHECKPOINT.pt … docs/images/pong.gif --start 120

The weights (checkpoints, or files that `export` or `eval` wrote) and the curve must be of the same run. Where it stands in
docs/images, docs/results says which run that was.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image

from tinyverse.core.weights import WeightsFile
from tinyverse.experiment import loader
from tinyverse.monitoring.plot import curve

matplotlib.use("Agg")
from matplotlib import pyplot

FRAMES = 90  # of each moment
MILLISECONDS = 60  # a frame; an Atari game whose frames are skipped by 4 makes 15 a second
HEIGHT = 264  # pixels
SCREEN = HEIGHT * 4 // 3  # pixels; an Atari's picture was 4:3
CURVE = 400  # pixels
COLORS = 48


def play(file: WeightsFile, experiment: str, *, start: int, seed: int) -> list[np.ndarray]:
    """FRAMES pictures [H, W, 3] of a game from its step `start` on, played with these weights; actions are sampled."""
    module = loader.load_module(experiment)
    made = loader.build(module, loader.resolve(module, file.run_config["settings"]))
    agent, env = made.agent(), made.env(evaluation=True, render_mode="rgb_array")
    agent.set_weights(file.weights)
    agent.seed(seed)
    observation, _ = env.reset(seed=seed)
    state, is_first, frames = agent.initial_state(1), np.ones(1, bool), []
    while len(frames) < start + FRAMES:
        actions, state, _ = agent.act(np.asarray(observation)[None], state, is_first)
        observation, _, terminated, truncated, _ = env.step(actions[0])
        is_first = np.array([terminated or truncated])
        if is_first[0]:
            observation, _ = env.reset()
        frames.append(env.render())
    env.close()
    return frames[start:]


def draw(steps: np.ndarray, returns: np.ndarray, until: float, title: str) -> np.ndarray:
    """The curve up to the step `until`, [HEIGHT, CURVE, 3]; axes are those of the whole of it."""
    figure, axes = pyplot.subplots(figsize=(CURVE / 100, HEIGHT / 100), dpi=100, layout="constrained")
    axes.axhline(21, color="#999999", linewidth=0.8, linestyle=":")
    axes.text(steps[-1] / 1e3, 20.4, "best possible", ha="right", va="top", fontsize=7, color="#777777")
    seen = steps <= until
    axes.plot(steps[seen] / 1e3, returns[seen], color="#1f6fb4", linewidth=1.8)
    if seen.any():
        axes.plot(steps[seen][-1] / 1e3, returns[seen][-1], "o", color="#d1495b", markersize=5)
    axes.set_xlim(0, steps[-1] / 1e3)
    axes.set_ylim(-22, 22)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("thousand steps", fontsize=8)
    axes.set_ylabel("mean return of 100 episodes", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return np.asarray(Image.open(buffer).convert("RGB"))


def animation(run: Path, weights: list[Path], experiment: str, *, start: int, seed: int) -> list[Image.Image]:
    steps, returns = curve(run)
    pictures, shown, side = [], 0.0, np.zeros(0)
    for file in sorted(map(WeightsFile.read, weights), key=lambda each: each.step):
        before = steps <= file.step
        words = f"{file.step:,} steps" + (f": mean return {returns[before][-1]:.1f}" if before.any() else ": untrained")
        for number, screen in enumerate(play(file, experiment, start=start, seed=seed)):
            grown = shown + (file.step - shown) * min(1.0, number / (FRAMES * 0.4))
            side = draw(steps, returns, grown, words) if number <= FRAMES * 0.4 + 1 else side
            picture = cv2.resize(screen, (SCREEN, HEIGHT), interpolation=cv2.INTER_AREA)
            pictures.append(Image.fromarray(np.hstack([picture, side])))
        shown = file.step
    return pictures


def write(pictures: list[Image.Image], path: Path) -> None:
    """A GIF of one palette for all frames, so that what stays the same costs nothing."""
    sample = Image.fromarray(np.vstack([np.asarray(picture) for picture in pictures[:: len(pictures) // 8]]))
    palette = sample.quantize(COLORS, dither=Image.Dither.NONE)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0, optimize=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder with metrics.jsonl")
    parser.add_argument("weights", type=Path, nargs="+", help="checkpoints or files of weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--experiment", default="atari")
    parser.add_argument("--start", type=int, default=60, help="steps of a game that are played before the first frame")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    write(animation(asked.run, asked.weights, asked.experiment, start=asked.start, seed=asked.seed), asked.out)
    print(f"{asked.out}: {asked.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
