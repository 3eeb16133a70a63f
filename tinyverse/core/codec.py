"""Codec: encodes named arrays as safetensors: 8 bytes of header length, a JSON header, raw little-endian buffers.

It cannot carry code, and the reader checks every size against `max_bytes` and the true length before it allocates. The
library copies every buffer (59 µs to encode an Atari session and 52 to decode it; here 10 and 8).
"""

import functools
import json
import math
import struct
import threading
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import zstandard

from tinyverse.core.errors import CodecError

MAX_HEADER = 64 * 1024
MAX_ARRAYS = 256
MAX_DIMENSIONS = 8
MAX_BYTES = 1 << 30
SAMPLE_BYTES = 4096  # bytes that `compress` tries first of a large blob
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_DTYPES = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "BF16": np.dtype("<u2"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items() if name != "BF16"}
_local = threading.local()  # zstd contexts are not safe to share between threads


def encode(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, *, bfloat16: Collection[str] = ()
) -> bytes:
    """Encodes arrays and string metadata as one safetensors blob.

    Args:
        arrays: arrays of any shape by name.
        bfloat16: names of float32 arrays to round to bfloat16 (to nearest even): half the bytes, 8 bits of precision.
    Raises:
        CodecError: `decode` would refuse the result, as for dtypes that the format lacks or metadata that is not strings.
    """
    given = {name: np.asarray(array) for name, array in arrays.items()}
    order, layout = _layout(tuple((name, array.dtype, array.shape, name in bfloat16) for name, array in given.items()))
    opening = _FIRST + _ENCODER.encode(_strings(dict(metadata))) + "," * bool(order) if metadata else "{"
    head = (opening + layout).encode()
    head += b" " * (-len(head) % 8)  # aligns the first buffer; wider items come first, so the others are aligned too
    if len(head) > MAX_HEADER:
        raise CodecError(f"{len(order)} arrays make a header of {len(head)} bytes; at most {MAX_HEADER} are allowed.")
    buffers: list[Any] = [
        _to_bfloat16(given[name]) if kind == "BF16" else np.ascontiguousarray(given[name], _DTYPES[kind])
        for name, kind in order
    ]
    return b"".join([struct.pack("<Q", len(head)), head, *buffers])


def decode(blob: bytes, *, max_bytes: int = MAX_BYTES) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Decodes a blob. Inverse of `encode`.

    Args:
        max_bytes: the largest total size of the arrays to accept.
    Returns:
        Arrays by name, read-only views into `blob` (bfloat16 widened to float32), and the metadata.
    Raises:
        CodecError: the blob breaks any rule of the format, or is larger than `max_bytes`.
    """
    if not 8 <= len(blob) <= max_bytes + MAX_HEADER + 8:
        raise CodecError(f"a blob has {len(blob)} bytes; 8 to {max_bytes + MAX_HEADER + 8} are allowed here.")
    (length,) = struct.unpack_from("<Q", blob)
    if length > MAX_HEADER or length > len(blob) - 8:
        raise CodecError(f"the header claims {length} bytes; {min(MAX_HEADER, len(blob) - 8)} are possible.")
    start = 8 + length
    try:
        metadata, layout = _split(bytes(blob[8:start]))
        entries, size = _parse_layout(layout, max_bytes)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"the header is not JSON: {str(error)[:80]}") from None
    if size != len(blob) - start:
        raise CodecError(f"the arrays take {size} bytes, but {len(blob) - start} follow the header.")
    arrays = {}
    for name, kind, shape, begin, end in entries:
        if kind == "BOOL" and bytes(blob[start + begin : start + end]).strip(b"\0\1"):
            raise CodecError(f"{name} holds booleans that are neither 0 nor 1.")
        array = np.ndarray(shape, _DTYPES[kind], blob, start + begin)
        arrays[name] = _from_bfloat16(array) if kind == "BF16" else array
    return arrays, metadata


def whole_number(metadata: Mapping[str, str], name: str) -> int:
    """Returns a number of the metadata, 0 or more and within int64. Raises CodecError where it is missing or malformed."""
    text = metadata.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise CodecError(f"the metadata has {name} {text[:40]!r}; wanted a whole number.")
    return int(text)


def compress(blob: bytes) -> bytes:
    """Returns `blob` in one zstd frame if that saves a quarter (of a large one: of its middle), else `blob` itself."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=1)
    compress, middle = _local.compressor.compress, len(blob) // 2
    if len(blob) > 8 * SAMPLE_BYTES and len(compress(blob[middle : middle + SAMPLE_BYTES])) > 0.9 * SAMPLE_BYTES:
        return blob
    packed = compress(blob)
    return packed if len(packed) < 0.75 * len(blob) else blob


def decompress(blob: bytes, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Inverse of `compress`. It checks the declared size first, because zstd would allocate whatever a frame declares.

    Raises:
        CodecError: the frame is damaged, more bytes follow it, or its content size is unknown, 0 or above `max_bytes`.
    """
    if bytes(blob[:4]) != ZSTD_MAGIC:
        return blob
    try:
        size = zstandard.get_frame_parameters(blob).content_size
        if not 0 < size <= max_bytes + MAX_HEADER + 8:  # zstd returns a huge number for an unknown size
            raise CodecError(f"a zstd frame claims {size} bytes; 1 to {max_bytes} are allowed here.")
        if not hasattr(_local, "decompressor"):
            _local.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        return _local.decompressor.decompress(blob, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"a damaged zstd frame: {error}") from None


@functools.lru_cache(16)
def _layout(given: tuple[tuple[str, np.dtype, tuple[int, ...], bool], ...]) -> tuple[list[tuple[str, str]], str]:
    """Returns ([(name, kind)] in the order of the buffers, the header after its metadata), which a run's sessions share."""
    header: dict[str, Any] = {}
    order, offset = [], 0
    for name, dtype, shape, narrow in sorted(given, key=lambda item: -item[1].itemsize):
        if (little := dtype.newbyteorder("<")) not in _NAMES:
            raise CodecError(f"{name} has dtype {dtype}; only booleans, integers and floats can be encoded.")
        kind = "BF16" if narrow else _NAMES[little]
        end = offset + math.prod(shape) * _DTYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (offset, end)}
        order.append((name, kind))
        offset = end
    layout = _ENCODER.encode(header)
    _parse_layout(layout, 1 << 62)  # refuses what `decode` would refuse
    return order, layout[1:]


def _split(head: bytes) -> tuple[dict[str, str], str]:
    """Returns (metadata, the header without metadata). All sessions of a run share the latter, so its parse is cached."""
    text = head.decode()
    if text.startswith(_FIRST):
        metadata, end = _DECODER.raw_decode(text, len(_FIRST))
        if text.startswith(',"', end):
            return _strings(metadata), "{" + text[end + 1 :]
    header = _DECODER.decode(text)
    if not isinstance(header, dict):
        raise CodecError("the header is no JSON object.")
    return _strings(header.pop("__metadata__", {})), json.dumps(header)


def _strings(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not {*map(type, metadata), *map(type, metadata.values())} <= {str}:
        raise CodecError("__metadata__ must hold strings only.")
    return metadata


@functools.lru_cache(16)
def _parse_layout(text: str, max_bytes: int) -> tuple[list[tuple[str, str, tuple[int, ...], int, int]], int]:
    """Returns ((name, kind, shape, begin, end) of each array in the order of the buffers, total bytes)."""
    header = _DECODER.decode(text)
    if "__metadata__" in header:
        raise CodecError("__metadata__ stands twice in the header, or is the name of an array.")
    if len(header) > MAX_ARRAYS:
        raise CodecError(f"{len(header)} arrays; at most {MAX_ARRAYS}.")
    entries = [_parse_entry(name, entry, max_bytes) for name, entry in header.items()]
    entries.sort(key=lambda entry: entry[3:])
    offset = 0
    for name, kind, shape, *place in entries:
        wanted = [offset, offset + math.prod(shape) * _DTYPES[kind].itemsize]
        if place != wanted:
            raise CodecError(f"{name} of shape {shape} has data_offsets {place}; buffers that touch have {wanted}.")
        offset = wanted[1]
    return entries, offset


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise CodecError("a name stands twice in the header.")
    return dict(pairs)


_FIRST = '{"__metadata__":'
_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def _parse_entry(name: str, entry: Any, max_bytes: int) -> tuple[str, str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CodecError(f"{name} must have exactly dtype, shape and data_offsets.")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise CodecError(f"{name} has dtype {str(kind)[:40]!r}; known are {', '.join(_DTYPES)}.")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise CodecError(f"{name} has shape {str(shape)[:80]}; wanted at most {MAX_DIMENSIONS} whole numbers.")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise CodecError(f"{name} has data_offsets {str(offsets)[:80]}; wanted two whole numbers.")
    if math.prod(max(number, 1) for number in shape) * _DTYPES[kind].itemsize > max_bytes:
        raise CodecError(f"{name} has shape {str(shape)[:80]}: more than the {max_bytes} bytes allowed here.")
    return name, kind, tuple(shape), offsets[0], offsets[1]


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 62 for number in value)


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2")


def _from_bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.astype(np.uint32) << 16).view(np.float32)
