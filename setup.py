"""What pyproject.toml cannot say: the packages, and that the folder `examples` is installed as `tinyverse_examples`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tinyverse", "tinyverse.*"]), "tinyverse_examples"],
    package_dir={"tinyverse_examples": "examples"},
)
