"""Codes to bytes and back: containers, sign, padding, and what does not fit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hls import wire
from hls.wire import WireError


def side(shape, bits, signed):
    size = next(s for s in (1, 2, 4, 8) if bits <= 8 * s)
    return {"shape": list(shape), "bits": bits, "signed": signed, "container_bytes": size,
            "beats": -(-math.prod(shape) * size // 8)}  # fmt: skip


def wire_of(shape=(3,), bits=8, signed=False):
    """A wire whose output is described like its input, so that what was packed can be unpacked."""
    return {"beat_bytes": 8, "input": side(shape, bits, signed), "output": side(shape, bits, signed)}


@st.composite
def transfers(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    io = wire_of(shape, draw(st.integers(2, 62)), draw(st.booleans()))
    low, high = wire.code_range(io["input"])
    count = draw(st.integers(0, 4))
    codes = draw(st.lists(st.integers(low, high), min_size=count * math.prod(shape), max_size=count * math.prod(shape)))
    return io, np.array(codes, np.int64).reshape(count, *shape)


@given(transfers())
def test_round_trip(made):
    io, codes = made
    data = wire.pack(codes, io)
    assert len(data) == len(codes) * io["input"]["beats"] * 8
    found = wire.unpack(data, io)
    assert found.dtype == np.int64 and np.array_equal(found, codes.reshape(len(codes), math.prod(codes.shape[1:])))


@given(transfers())
def test_bytes_are_little_endian_sign_extended_and_padded_with_zeros(made):
    io, codes = made
    size, signed = io["input"]["container_bytes"], io["input"]["signed"]
    wanted = b""
    for sample in codes.reshape(len(codes), math.prod(codes.shape[1:])):
        body = b"".join(int(code).to_bytes(size, "little", signed=signed) for code in sample)
        wanted += body + bytes(-len(body) % 8)
    assert wire.pack(codes, io) == wanted


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"),
    [(8, False, 0, 255), (8, True, -128, 127), (1, False, 0, 1), (11, True, -1024, 1023), (32, False, 0, 2**32 - 1)],
)
def test_code_range_and_its_ends(bits, signed, low, high):
    io = wire_of((1,), bits, signed)
    assert wire.code_range(io["input"]) == (low, high)
    assert wire.unpack(wire.pack(np.array([[low], [high]]), io), io).tolist() == [[low], [high]]
    for code in (low - 1, high + 1):
        with pytest.raises(WireError, match=f"whole numbers from {low} to {high}"):
            wire.pack(np.array([[code]]), io)


def test_channels_come_last():
    codes = np.arange(12).reshape(1, 2, 2, 3)
    assert wire.pack(codes, wire_of((2, 2, 3)))[:12] == bytes(range(12))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool])
def test_codes_are_integers(dtype):
    with pytest.raises(WireError, match="whole numbers"):
        wire.pack(np.zeros((1, 3), dtype), wire_of())


@pytest.mark.parametrize("shape", [(1, 4), (3,), (1, 3, 1), (3, 1)])
def test_codes_have_the_networks_shape(shape):
    with pytest.raises(WireError, match=r"the network takes \(3,\)"):
        wire.pack(np.zeros(shape, np.int64), wire_of())


def test_every_unsigned_integer_type_is_taken():
    io = wire_of((1,), 12, True)
    for dtype in (np.uint8, np.int16, np.uint64, np.int64):
        assert wire.pack(np.array([[7]], dtype), io) == bytes([7, 0, 0, 0, 0, 0, 0, 0])


def test_unpack_refuses_a_part_of_a_sample():
    with pytest.raises(WireError, match="12 output bytes are not whole samples of 8 bytes"):
        wire.unpack(bytes(12), wire_of())


@pytest.mark.parametrize("position", [3, 7])
def test_unpack_refuses_anything_behind_the_codes(position):
    data = bytearray(16)
    data[8 + position] = 1
    with pytest.raises(WireError, match="padding"):
        wire.unpack(bytes(data), wire_of())


@pytest.mark.parametrize(("bits", "signed", "raw"), [(11, True, 0x0400), (11, True, 0x7FF), (12, False, 0xF000)])
def test_unpack_refuses_codes_that_are_not_sign_extended(bits, signed, raw):
    with pytest.raises(WireError, match=f"leave the range .* of their {bits} bits"):
        wire.unpack(raw.to_bytes(2, "little") + bytes(6), wire_of((1,), bits, signed))


def test_nothing_is_nothing():
    io = wire_of()
    assert wire.pack(np.zeros((0, 3), np.int64), io) == b"" and wire.unpack(b"", io).shape == (0, 3)
