# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both need Python 3.11 or newer, no more.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all test-servers test-starcraft test-gym lint package docs bench bench-report peers clean

help:
	@echo "make demo      play and train Pong here, then a video in records/ and a curve"
	@echo "make test      the tests that fit into a few minutes, on all cores"
	@echo "make test-all  all of them"
	@echo "make test-servers  all of them on each server that is installed, or on SERVERS=\"PATH …\"; hours"
	@echo "make test-starcraft  pysc2's mock of StarCraft II, in .venv-starcraft"
	@echo "make test-gym  gym 0.21 in .venv-gym (Python 3.11)"
	@echo "make lint      ruff, mypy, and the contract on imports"
	@echo "make package   sdist and wheel in dist/, checked, and tried in a fresh environment"
	@echo "make docs      these pages and the reference as a site, in build/docs"
	@echo "make bench     the benchmarks, printed; bench-report writes them into docs/performance.md"
	@echo "make peers     environments of the libraries that the benchmarks compare with (3 GB)"

# pip says what it fetches on a terminal, and nothing in a log
PIP := $(BIN)/pip --disable-pip-version-check $(shell test -t 2 || echo --quiet)

# torch comes first and by its exact version, so that the small CPU build is taken where there is one
.venv/ready: setup.py pyproject.toml constraints.txt
	@echo "==> setting up .venv (once; 400 MB are fetched, or 3 GB with PyTorch's build for CUDA, which is Linux's default)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "tinyverse needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1)
	@$(PYTHON) -m venv .venv
	@echo "==> 1/2 PyTorch" && $(PIP) install -c constraints.txt torch
	@echo "==> 2/2 tinyverse and the rest" && $(PIP) install -c constraints.txt -e '.[all]'
	@touch .venv/ready

demo: .venv/ready
	@$(BIN)/python examples/demo.py

test: .venv/ready
	$(BIN)/python -m pytest -q -n auto --dist loadgroup

test-all: .venv/ready
	$(BIN)/python -m pytest -q -m 'not gpu' --hypothesis-profile=default
	@if $(BIN)/python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then $(BIN)/python -m pytest -q -m gpu; else echo "no GPU here: gpu tests not run"; fi

test-servers: .venv/ready
	$(BIN)/python tests/helpers/servers.py run $(TESTS)

# pysc2 wants the protobuf of 2022: its packages lie before those of .venv
.venv-starcraft/ready: .venv/ready docs/starcraft.txt
	@$(BIN)/python -m venv .venv-starcraft
	@.venv-starcraft/bin/pip install --quiet --disable-pip-version-check --no-deps -r docs/starcraft.txt
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-starcraft/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	@touch .venv-starcraft/ready

test-starcraft: .venv-starcraft/ready
	PYTHONPATH=. .venv-starcraft/bin/python -m pytest -q tests/envs/test_starcraft.py

# gym 0.21 is built by tools of its time and runs with numpy 1: its packages lie before those of .venv
.venv-gym/ready: .venv/ready
	@$(BIN)/python -m venv .venv-gym
	@.venv-gym/bin/pip install --quiet --disable-pip-version-check 'pip<24.1' 'setuptools<66' 'wheel<0.38'
	@.venv-gym/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation gym==0.21.0 numpy==1.26.4
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(.venv-gym/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	@touch .venv-gym/ready

test-gym: .venv-gym/ready
	PYTHONPATH=. .venv-gym/bin/python -m pytest -q tests/envs/test_gym.py tests/envs/test_adapters.py tests/envs/test_pool.py tests/integration/test_loop.py -k "gym and not gymnasium"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

package: .venv/ready
	.ci/package

docs: .venv/ready
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -E docs build/docs
	@echo "open build/docs/index.html"

BENCHMARKS := $(filter-out benchmarks/measure.py benchmarks/report.py benchmarks/soak.py,$(wildcard benchmarks/*.py))

bench: .venv/ready
	@for script in $(BENCHMARKS); do echo "==> $$script"; $(BIN)/python $$script || exit 1; done

bench-report: .venv/ready
	$(BIN)/python benchmarks/report.py

peers:
	benchmarks/peers.sh

clean:
	rm -rf .venv .venv-starcraft .venv-gym build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
