"""Archive: sessions as files, to be kept, passed on, and pushed into another run: shards of safetensors and a JSON index.

    demos.json                    what they are: experiment, settings, spec; each shard's checksum, its sessions' metadata
    demos-00000.safetensors       every field of N sessions as one array [N, …]; .safetensors.zst where that saves a quarter

    demos.h5                      the same as one HDF5 file for other tools, which is not read again

Any tool opens the shards (after `zstd -d`): safetensors.numpy.load_file("demos-00000.safetensors")["rewards"]. Reading
trusts nothing: every size, name and checksum is checked, and nothing that can execute is in there.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tinyverse.core import codec
from tinyverse.core.errors import CodecError, SettingsError, SpecError
from tinyverse.core.files import atomic_path, atomic_write
from tinyverse.core.session import Session, SessionSpec

FORMAT = "tinyverse sessions 1"
SHARD_BYTES = 64 << 20  # of a shard's arrays, at most (a single session may be larger)
SHARD_SESSIONS = 1000  # at most


@dataclasses.dataclass(frozen=True)
class Archive:
    """An index that was read and found sound; iterate over it for (id, Session), shard by shard."""

    path: Path
    about: dict[str, Any]  # run, experiment, settings
    spec: SessionSpec
    shards: list[dict[str, Any]]  # {"file", "xxh3", "sessions": [{"id", "metadata"}]}

    @classmethod
    def open(cls, path: Path) -> "Archive":
        """Reads the index.

        Raises:
            SettingsError: there is no such file.
            CodecError: it is no index of sessions.
            SpecError: its spec is garbled.
        """
        try:
            index = json.loads(path.read_text())
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}. Name the .json file of an export.") from None
        except (ValueError, RecursionError):
            raise CodecError(f"{path} is no JSON, so no index of exported sessions.") from None
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise CodecError(f"{path} is no index of exported sessions: its format is not {FORMAT!r}.")
        shards, about = index.get("shards"), {name: index.get(name) for name in ("run", "experiment", "settings")}
        if not isinstance(shards, list) or not all(map(_is_shard, shards)):
            raise CodecError(f"the shards in {path} are garbled.")
        return cls(path, about, SessionSpec.from_json(json.dumps(index.get("spec"))), shards)

    def __len__(self) -> int:
        return sum(len(shard["sessions"]) for shard in self.shards)

    def __iter__(self) -> Iterator[tuple[str, Session]]:
        """Every session. Raises CodecError where a shard is missing, damaged, or not what the index says."""
        for shard in self.shards:
            arrays = self._arrays(shard["file"], shard["xxh3"], len(shard["sessions"]))
            for row, about in enumerate(shard["sessions"]):
                one = {name: array[row] for name, array in arrays.items()}
                yield about["id"], Session(one, about["metadata"])

    def _arrays(self, name: str, checksum: str, count: int) -> dict[str, np.ndarray]:
        file, limit = self.path.with_name(name), max(SHARD_BYTES, self.spec.nbytes)
        try:
            too_large = file.stat().st_size > limit + 2 * codec.MAX_HEADER
            blob = b"" if too_large else file.read_bytes()
        except OSError as error:
            raise CodecError(f"shard {file} cannot be read: {error.strerror}. Keep it beside its index.") from None
        if too_large or xxhash.xxh3_64_hexdigest(blob) != checksum:
            raise CodecError(f"shard {file} is not the one that was written: its checksum differs.")
        arrays, _ = codec.decode(codec.decompress(blob, max_bytes=limit), max_bytes=limit)
        wrong = self.spec.difference({name: (array.shape[1:], array.dtype) for name, array in arrays.items()})
        if wrong or any(array.shape[:1] != (count,) for array in arrays.values()):
            raise CodecError(f"shard {file} is not what its index says: {wrong or f'it has not {count} sessions.'}")
        return arrays


def write(path: Path, sessions: Iterable[tuple[str, Session]], spec: SessionSpec, about: Mapping[str, Any]) -> Archive:
    """Writes (id, Session) pairs; the index comes last, so that half an export is none.

    Raises:
        SettingsError: `path` is no .json, exists, or cannot be written.
    """
    if path.suffix != ".json":
        raise SettingsError(
            f"an export's index is a .json file, not {path.name!r}: call it {path.with_suffix('.json')}."
        )
    if path.exists():
        raise SettingsError(f"{path} is there already; choose another name, or remove it and its shards.")
    shards: list[dict[str, Any]] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        entries, count = iter(sessions), max(1, min(SHARD_SESSIONS, SHARD_BYTES // spec.nbytes))
        while part := list(itertools.islice(entries, count)):
            shards.append(_write_shard(path, len(shards), part))
        index = {"format": FORMAT, **about, "spec": json.loads(spec.to_json()), "shards": shards}
        atomic_write(path, json.dumps(index, indent=1).encode())
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}.") from None
    return Archive(path, dict(about), spec, shards)


def write_hdf5(path: Path, sessions: Iterable[tuple[str, Session]], spec: SessionSpec, about: Mapping[str, Any]) -> int:
    """Writes (id, Session) pairs as one HDF5 file; returns how many.

    Every field is a dataset [N, …], "id" and "metadata" (JSON) are strings [N]; what they are of is in the attributes.

    Raises:
        SettingsError: h5py is not installed, or `path` exists or cannot be written.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise SettingsError(f"{path} wants h5py: pip install 'tinyverse[hdf5]', or export a .json.") from None
    if path.exists():
        raise SettingsError(f"{path} is there already; choose another name, or remove it.")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update({"format": FORMAT, **{name: json.dumps(value) for name, value in about.items()}})
            columns = {name: ((), h5py.string_dtype()) for name in ("id", "metadata")} | spec.fields
            for name, (shape, dtype) in columns.items():
                chunks, maxshape = (1, *(max(1, size) for size in shape)), (None, *shape)
                file.create_dataset(name, (0, *shape), dtype, chunks=chunks, maxshape=maxshape, compression="gzip")
            for key, session in sessions:
                row = {"id": key, "metadata": json.dumps(session.metadata), **session.arrays}
                for name, value in row.items():
                    file[name].resize(count + 1, axis=0)
                    file[name][count] = value
                count += 1
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror or error}.") from None
    return count


def _write_shard(path: Path, number: int, part: list[tuple[str, Session]]) -> dict[str, Any]:
    rows = [session.arrays for _, session in part]
    raw = codec.encode({name: np.stack([arrays[name] for arrays in rows]) for name in rows[0]})
    blob = codec.compress(raw)
    file = path.with_name(f"{path.stem}-{number:05}.safetensors" + ("" if blob is raw else ".zst"))
    file.write_bytes(blob)
    about = [{"id": key, "metadata": session.metadata} for key, session in part]
    return {"file": file.name, "xxh3": xxhash.xxh3_64_hexdigest(blob), "sessions": about}


def check(archive: Archive, spec: SessionSpec, run: str, on_session: Callable[[], None] = lambda: None) -> None:
    """Whether every session of the archive could have been played in the run. `on_session` is called after each.

    Raises:
        SpecError: the first difference, in one sentence.
        CodecError: a shard is damaged, or a session's metadata.
    """
    wrong = spec.difference(archive.spec.fields)
    if wrong:
        raise SpecError(f"{archive.path} does not fit run {run}: {wrong} Nothing was imported.")
    for key, session in archive:
        try:
            spec.decode(session.encode())
        except (CodecError, SpecError) as error:
            raise type(error)(f"session {key} of {archive.path} cannot be imported: {error} Nothing was.") from None
        on_session()


def _is_shard(shard: Any) -> bool:
    """Whether an entry of an index is one; its file is a name, not a way to somewhere else."""
    try:
        name, entries = shard["file"], shard["sessions"]
        strings = [name, shard["xxh3"], *(entry["id"] for entry in entries)]
        strings += [text for entry in entries for pair in entry["metadata"].items() for text in pair]
    except (TypeError, LookupError, AttributeError):
        return False
    return {*map(type, strings)} == {str} and Path(name).name == name and name not in ("", "..") and bool(entries)
