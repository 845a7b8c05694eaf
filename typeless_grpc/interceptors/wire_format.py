"""Counts the fields of a message in protobuf's wire format, because parsing may need far more memory than its bytes.

Each empty message in a repeated field takes two bytes on the wire and a hundred in memory: 30 MiB of them become
gigabytes, and block the event loop for seconds (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, LENGTH_DELIMITED, START_GROUP, END_GROUP, FIXED32 = range(6)
SIZES = {FIXED64: 8, FIXED32: 4, START_GROUP: 0, END_GROUP: 0}
MIN_BYTES = 1  # of an element of a packed field; other fields have a tag and a value or length
# Repeated fields of these types have a tag for each element; all others may be packed.
NOT_PACKED = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE)


def has_more_fields(data: bytes, descriptor: Descriptor, limit: int) -> bool:
    """Whether a message and the messages in it have more than `limit` fields; elements of packed fields count.

    descriptor: of the message's type. Malformed data is not an error here: its readable part is counted.
    """
    return len(data) > MIN_BYTES * limit and _count(memoryview(data), descriptor, limit) > limit


def _count(data: memoryview, descriptor: Descriptor, limit: int) -> int:
    """Count fields, and stop soon after the limit."""
    n_fields, position, known = 0, 0, descriptor.fields_by_number
    while position < len(data) and n_fields <= limit:
        tag, position = _varint(data, position)
        n_fields += 1
        kind = tag & 7
        if kind == VARINT:
            _, position = _varint(data, position)
        elif kind == LENGTH_DELIMITED:
            size, position = _varint(data, position)
            field = known.get(tag >> 3)
            if field is not None and field.message_type is not None:
                n_fields += _count(data[position : position + size], field.message_type, limit - n_fields)
            elif field is not None and field.cpp_type not in NOT_PACKED:
                n_fields += size  # packed: an element has at least one byte
            position += size
        elif kind in SIZES:
            position += SIZES[kind]
        else:
            break
    return n_fields


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a varint and the position after it; zero at the end of the data."""
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, position
