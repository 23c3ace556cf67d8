"""Valid bytes → bytes that are nearly valid. hypothesis draws, and shrinks what fails."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tests.fuzz.traffic import Message, Traffic
from tests.fuzz.wire import RELEASE, command_elements, command_set, message, pdus, with_right_length

# Lengths, signs and limits that parsers get wrong.
_NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_TEXTS = (
    b"", b"\0", b"../../../../tmp/fuzz", b"/tmp/fuzz", b"1.2.3\0", b"1..2", b"9" * 65, b"." * 64, b"*", b"?",
    b"\\" * 50, b"1.2.840.10008.1.1", b"%s%n", b"\xff\xfe", b"ISO 2022 IR 149", b"\x1b$)C", b"20200101-",
    b"STUDY ", b"NaN ", b"=" * 30, b"[a-z", b"' OR 1=1 --",
)  # fmt: skip
_PLACE = st.integers(0, 1 << 16)
_STEP = st.one_of(
    st.tuples(st.just("flip"), _PLACE, st.integers(0, 7)),
    st.tuples(st.just("set8"), _PLACE, st.integers(0, 255)),
    st.tuples(st.sampled_from(["le16", "be16", "le32", "be32"]), _PLACE, st.sampled_from(_NUMBERS)),
    st.tuples(st.sampled_from(["cut", "drop", "twice"]), _PLACE, st.integers(1, 64)),
    st.tuples(st.sampled_from(["insert", "over"]), _PLACE, st.sampled_from(_TEXTS)),
    st.tuples(st.just("insert"), _PLACE, st.binary(min_size=1, max_size=16)),
)
_STEPS = st.lists(_STEP, min_size=1, max_size=6)


def mutated(bases: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of `bases` after some changes."""
    return st.builds(_apply_all, st.sampled_from(bases), _STEPS)


def _apply_all(base: bytes, steps: list[tuple[str, int, int | bytes]]) -> bytes:
    content = bytearray(base)
    for kind, place, value in steps:
        _apply(content, kind, place % (len(content) + 1), value)
    return bytes(content)


def _apply(content: bytearray, kind: str, at: int, value: int | bytes) -> None:
    if isinstance(value, bytes):
        content[at : at + (len(value) if kind == "over" else 0)] = value
    elif kind == "flip" and at < len(content):
        content[at] ^= 1 << value
    elif kind == "set8" and at < len(content):
        content[at] = value
    elif kind[2:] in ("16", "32"):
        width = int(kind[2:]) // 8
        order = "little" if kind[:2] == "le" else "big"
        content[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]
    elif kind == "cut":
        del content[at:]
    elif kind == "drop":
        del content[at : at + value]
    elif kind == "twice":
        content[at:at] = content[at : at + value]


@st.composite
def associations(draw: st.DrawFn, traffic: Traffic) -> bytes:
    """A whole association: some of its PDUs changed, left out, repeated or exchanged."""
    parts = list(pdus(traffic.stream))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        kind = draw(st.sampled_from(["change", "change", "keep length", "drop", "twice", "swap", "kind"]))
        if kind in ("change", "keep length"):
            changed = draw(mutated([parts[at]]))
            parts[at] = with_right_length(changed) if kind == "keep length" else changed
        elif kind == "drop" and len(parts) > 1:
            del parts[at]
        elif kind == "twice":
            parts.insert(at, parts[at])
        elif kind == "swap":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[at] = bytes([draw(st.integers(0, 9))]) + parts[at][1:]
    return b"".join(parts)


@st.composite
def commands(draw: st.DrawFn, traffic: Traffic) -> bytes:
    """A sound association whose requests have changed command sets, in any context."""
    parts = [traffic.request]
    for asked in draw(st.lists(st.sampled_from(traffic.messages), min_size=1, max_size=4)):
        command = command_set(_changed(draw, command_elements(asked.command)))
        if draw(st.integers(0, 4)) == 0:
            command = draw(mutated([command]))
        context_id = draw(st.sampled_from([asked.context_id] * 3 + [1, 3, 7, 15, 0, 2, 255]))
        data = draw(st.sampled_from([asked.data] * 3 + [None, b"", b"\0" * 8]))
        parts.append(message(context_id, command, data))
    return b"".join([*parts, RELEASE])


def _changed(draw: st.DrawFn, elements: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(elements) - 1)) if elements else 0
        kind = draw(st.sampled_from(["drop", "twice", "number", "text", "tag", "swap"]))
        if not elements:
            break
        element, value = elements[at]
        if kind == "drop":
            del elements[at]
        elif kind == "twice":
            elements.insert(at, elements[at])
        elif kind == "number":
            number = draw(
                st.sampled_from((*_NUMBERS, 0x20, 0x21, 0x10, 0x30, 0x100, 0x130, 0x140, 0x0FFF, 0x8001))
            )
            elements[at] = element, (number & 0xFFFF).to_bytes(2, "little")
        elif kind == "text":
            elements[at] = element, draw(st.sampled_from(_TEXTS))
        elif kind == "tag":
            elements[at] = (
                draw(
                    st.sampled_from((2, 3, 0x100, 0x110, 0x120, 0x600, 0x700, 0x800, 0x900, 0x1000, 0x1008))
                ),
                value,
            )
        else:
            elements.reverse()
    return elements


@st.composite
def data_sets(draw: st.DrawFn, traffic: Traffic, asked: Sequence[Message]) -> bytes:
    """A sound association whose requests have changed data sets."""
    parts = [traffic.request]
    for one in draw(st.lists(st.sampled_from(asked), min_size=1, max_size=4)):
        assert one.data is not None
        parts.append(message(one.context_id, one.command, draw(mutated([one.data]))))
    return b"".join([*parts, RELEASE])
