"""The readers of bytes from a network, against the committed corpus and half a minute of mutants; see tests/helpers/fuzz.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import fuzz

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(300)  # each imports torch, twice


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_the_corpus_is_read_or_refused(reader: str) -> None:
    """Each reader takes at least one of its corpus, or mutants of it would never get far."""
    assert sum(fuzz.read(reader, data) for data in fuzz.seeds(reader)) >= 1


def fuzzed(*words: str, reader: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    code = f"import sys; from tests.helpers import fuzz; {reader or 'pass'}; sys.exit(fuzz.main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.faults
def test_half_a_minute_of_mutants() -> None:
    done = fuzzed("--seconds", "30")
    assert done.returncode == 0, done.stderr
    assert "no findings" in done.stdout


def busy(seconds: float) -> None:
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


@pytest.mark.faults
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [("bytearray(1 << 28)", "MemoryError"), ("{}[data]", "KeyError"), ("test_fuzz.busy(2.1)", "2.1 s")],
)
def test_what_is_wrong_with_a_reader_is_found(tmp_path: Path, wrong: str, sentence: str) -> None:
    broken = (
        f"import shutil, pathlib; from tests.integration import test_fuzz; fuzz.CORPUS = shutil.copytree(fuzz.CORPUS, {str(tmp_path / 'corpus')!r}); "
        f"fuzz.CORPUS = pathlib.Path(fuzz.CORPUS); old = fuzz.limit_memory; "
        f"fuzz.limit_memory = lambda: (old(), fuzz.READERS.update(row=lambda data: {wrong}))"
    )
    done = fuzzed("--seconds", "5", reader=broken)
    assert done.returncode == 1 and f"row: {sentence}" in done.stderr, done.stderr
