"""Protobuf's wire format as read by UFF's reader: encoded by a separate encoder, and broken messages."""

import struct
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.models.uff.wire import WireError, fields, integer, integers, message, text
from tests.fakes.uff_writer import chunk, varint, whole


def test_negative_numbers_are_twos_complement() -> None:
    ((_, value),) = fields(whole(3, -5))
    assert integer(value) == -5
    assert integers(varint(-1) + varint(300)) == [-1, 300]


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300)))))
def test_encoded_messages_are_read(entries: List[Any]) -> None:
    data = b"".join(whole(*entry) if isinstance(entry[1], int) else chunk(*entry) for entry in entries)
    read = [(number, value if isinstance(value, int) else bytes(value)) for number, value in fields(data)]
    assert read == entries


def test_fixed_width_fields_are_views() -> None:
    eight, four = struct.pack("<d", 0.5), struct.pack("<f", 2.0)
    read = list(fields(bytes([9 << 3 | 1]) + eight + bytes([10 << 3 | 5]) + four))
    assert [(number, bytes(message(value))) for number, value in read] == [(9, eight), (10, four)]


@pytest.mark.parametrize("data", [b"\x80" * 11, b"\x0a\x05abc", b"\x0b", b"\x00\x01", b"\x09\x00", b"\x80"])
def test_broken_messages_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(fields(data))


def test_values_of_another_kind_are_refused() -> None:
    for read, value in ((message, 1), (text, 1), (text, memoryview(b"\xff")), (integer, memoryview(b""))):
        with pytest.raises(WireError):
            read(value)
