"""Weights on the wire: whole, with their version inside, and readable by the library."""

import numpy as np
import pytest
import safetensors.numpy

from tinyverse.core import codec
from tinyverse.core.errors import CodecError
from tinyverse.core.weights import decode_weights, encode_weights

WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((30, 40)).astype("f4"),
    "steps": np.array(7),
    "none": np.zeros((0, 3), "f4"),
}
NUMBERS = {"version": 3, "update": 20, "step": 10**15}


def test_round_trip():
    arrays, numbers = decode_weights(encode_weights(WEIGHTS, **NUMBERS))
    assert numbers == NUMBERS and arrays.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_the_library_reads_them_and_they_are_never_compressed():
    blob = encode_weights({"w": np.zeros(100_000, "f4")}, **NUMBERS)
    assert len(blob) > 400_000
    np.testing.assert_array_equal(safetensors.numpy.load(blob)["w"], np.zeros(100_000, "f4"))


def test_bfloat16_halves_floats_and_leaves_the_rest():
    whole, half = (encode_weights(WEIGHTS, **NUMBERS, bfloat16=narrow) for narrow in (False, True))
    assert len(half) < 0.6 * len(whole)
    arrays, _ = decode_weights(half)
    assert arrays["w"].dtype == np.float32 and arrays["steps"] == 7
    np.testing.assert_allclose(arrays["w"], WEIGHTS["w"], rtol=2**-8)
    assert not np.array_equal(arrays["w"], WEIGHTS["w"])


@pytest.mark.parametrize("name", ["version", "update", "step"])
@pytest.mark.parametrize("text", [None, "", "x", "1.5", "-1", "9" * 400])
def test_without_whole_numbers_they_are_no_weights(name, text):
    metadata = {key: str(number) for key, number in NUMBERS.items() if key != name}
    if text is not None:
        metadata[name] = text
    with pytest.raises(CodecError, match=name):
        decode_weights(codec.encode(WEIGHTS, metadata))


def test_damage_is_refused():
    blob = encode_weights(WEIGHTS, **NUMBERS)
    for wrong in (b"", blob[:-1], blob + b"\0", blob[1:], codec.compress(bytes(10_000))):
        with pytest.raises(CodecError):
            decode_weights(wrong)
