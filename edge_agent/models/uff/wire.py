"""Reads protobuf's wire format without a schema, because none was published for UFF.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from typing import Iterator, List, Tuple, Union

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Value = Union[int, memoryview]
Field = Tuple[int, Value]

_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


class WireError(ValueError):
    """The bytes are not a protobuf message."""


def fields(data: Union[bytes, memoryview]) -> Iterator[Field]:
    """Each field of one message as (number, value), in file order.

    A varint's value is an int (unsigned), every other one a view into `data`.

    Raises:
        WireError: At the first byte that cannot be part of a message.
    """
    view = memoryview(data)
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 before byte {at}")
        if wire == _VARINT:
            value, at = _varint(view, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(view, at)
        elif wire in _FIXED_BYTES:
            size = _FIXED_BYTES[wire]
        else:
            raise WireError(f"wire type {wire} before byte {at}")
        if size > len(view) - at:
            raise WireError(f"field {number} claims {size} bytes at byte {at}, {len(view) - at} are left")
        yield number, view[at : at + size]
        at += size


def message(value: Value) -> memoryview:
    """The value of a field that must be bytes, text or a nested message.

    Raises:
        WireError: It is a number.
    """
    if isinstance(value, int):
        raise WireError("a number where a message was expected")
    return value


def text(value: Value) -> str:
    """The value of a text field.

    Raises:
        WireError: It is not UTF-8 text.
    """
    try:
        return bytes(message(value)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError("text that is not UTF-8") from error


def integer(value: Value) -> int:
    """The value of an int32 or int64 field: varints carry two's complement of 64 bits.

    Raises:
        WireError: It is not a varint.
    """
    if not isinstance(value, int):
        raise WireError("a message where a number was expected")
    return value - (1 << 64) if value >> 63 else value


def integers(data: Union[bytes, memoryview]) -> List[int]:
    """The numbers of a packed repeated int32 or int64 field.

    Raises:
        WireError: The bytes are not a sequence of varints.
    """
    view = memoryview(data)
    at, numbers = 0, []
    while at < len(view):
        value, at = _varint(view, at)
        numbers.append(integer(value))
    return numbers


def _varint(view: memoryview, at: int) -> Tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise WireError("the file ends inside a number")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise WireError(f"a number longer than 10 bytes before byte {at}")
