"""Bytes from a network against everything that reads them: no exception but the two that say no, bounded memory and time.

    python tests/helpers/fuzz.py --inputs 1000000             mutants of the corpus, by the rules below
    python tests/helpers/fuzz.py --seconds 30                 as long as CI waits
    python tests/helpers/fuzz.py --atheris session -runs=100000    guided by coverage (pip install atheris)

Runs under RLIMIT_AS, a little above what the process needs before the first input: an allocation on an input's word is
a MemoryError, and so a finding. A finding is written to tests/corpus/<reader>/ to be committed with its mending.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

from tests.helpers.people import a_spec
from tinyverse.core import codec
from tinyverse.core.errors import CodecError, SpecError
from tinyverse.core.session import SessionSpec
from tinyverse.core.weights import decode_weights
from tinyverse.database.schema import decode_heartbeat, decode_row

CORPUS = Path(__file__).parent / "corpus"
ROOM = 64 << 20  # bytes that reading may take; the largest session here has 16 kB
SLOWEST = 2.0  # seconds of processor time for one input, so that a busy machine is no finding
SMALL = 1 << 20
READERS: dict[str, Callable[[bytes], object]] = {
    "session": a_spec().decode,
    "nested": a_spec(nested=True).decode,
    "compressed": a_spec(length=200).decode,
    "weights": decode_weights,
    "zstd": lambda data: codec.decompress(data, max_bytes=SMALL),
    "spec": lambda data: SessionSpec.from_json(data.decode(errors="replace")),
    "heartbeat": lambda data: decode_heartbeat(data, 0.0),
    "row": decode_row,
}
EDGES = [0, 1, 7, 8, 127, 128, 255, 256, 65535, 65536, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
WORDS = [b"0", b"-1", b"9" * 18, b"1e400", b"NaN", b"[]", b"{}", b"null", b'"F64"', b'"BOOL"', b"[" * 500, b"\\u0000"]


def read(reader: str, data: bytes) -> bool:
    """Whether it was taken; raises what must not be raised."""
    try:
        READERS[reader](data)
    except (CodecError, SpecError):
        return False
    return True


def seeds(reader: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / reader).iterdir())]


def mutant(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with one to four things wrong."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + size] = chance.randbytes(size)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            del data[at : at + size]
        elif kind == 5:
            place = at if chance.random() < 0.5 else 0  # at the beginning: a header's length
            data[place : place + 8] = struct.pack("<Q", chance.choice(EDGES))
        elif kind == 6:
            data[at : at + size] = chance.choice(WORDS)
        else:
            other = chance.choice(corpus)
            data[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)


def run(inputs: int | None, seconds: float, seed: int) -> int:
    """Reads mutants; prints how many, how many were taken, and the longest time. The number of findings."""
    chance, corpora = random.Random(seed), {reader: seeds(reader) for reader in READERS}
    counts, taken, slowest, began = dict.fromkeys(READERS, 0), 0, 0.0, time.monotonic()
    while (sum(counts.values()) < inputs) if inputs else (time.monotonic() - began < seconds):
        for reader, corpus in corpora.items():
            data, before = mutant(chance, corpus), time.process_time()
            try:
                taken += read(reader, data)
            except BaseException as error:
                return _found(reader, data, repr(error))
            took = time.process_time() - before
            slowest, counts[reader] = max(slowest, took), counts[reader] + 1
            if took > SLOWEST:
                return _found(reader, data, f"{took:.1f} s")
    total, passed = sum(counts.values()), time.monotonic() - began
    print(
        f"{total:,} inputs in {passed:.0f} s, {taken:,} of them taken; the slowest {1000 * slowest:.1f} ms; no findings"
    )
    return 0


def _found(reader: str, data: bytes, what: str) -> int:
    path = CORPUS / reader / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    print(f"{reader}: {what[:500]}\n  on {path}", file=sys.stderr)
    return 1


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def guided(reader: str, options: list[str]) -> None:
    import atheris

    for thing in gc.get_objects():  # not atheris.instrument_all: it would instrument torch too
        if isinstance(thing, FunctionType) and (thing.__module__ or "").startswith("tinyverse."):
            atheris.instrument_func(thing)

    def one(data: bytes) -> None:
        read(reader, data)

    limit_memory()
    with tempfile.TemporaryDirectory() as found:  # inputs that reach further; the committed corpus stays as it is
        atheris.Setup([sys.argv[0], found, str(CORPUS / reader), *options], one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", choices=READERS)
    given, rest = parser.parse_known_args()
    for reader in READERS:  # whatever is made once is made now
        for data in seeds(reader):
            read(reader, data)
    if given.atheris:
        guided(given.atheris, rest)
    limit_memory()
    return run(given.inputs, given.seconds, given.seed)


if __name__ == "__main__":
    sys.exit(main())
