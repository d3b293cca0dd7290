"""What a compiled program does, counted in its text: operations, bytes, random words, kernels.

`cost_analysis` of JAX counts the body of a loop once, and says nothing of a program that was
compiled for a GPU which is not there. Here a loop counts as often as the compiler knows it to turn.
What is counted of one instruction is what XLA counts: an element of an elementwise operation is an
operation, of integers too, and a product of matrices has two for each of its terms. A kernel reads
its operands once, and of an operand that it only looks into no more than it takes out; what stays
inside of a kernel costs nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

BYTES: Final = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "token": 0,
}  # fmt: skip
ELEMENTWISE: Final = frozenset(
    (
        *("abs", "add", "and", "atan2", "cbrt", "ceil", "clamp", "compare", "complex", "convert"),
        *("cosine", "count-leading-zeros", "divide", "erf", "exponential", "floor", "imag"),
        *("exponential-minus-one", "is-finite", "log", "log-plus-one", "logistic", "maximum"),
        *("minimum", "multiply", "negate", "not", "or", "popcnt", "power", "real", "remainder"),
        *("round-nearest-afz", "round-nearest-even", "rsqrt", "select", "shift-left"),
        *("shift-right-arithmetic", "shift-right-logical", "sign", "sine", "sqrt", "subtract"),
        *("tan", "tanh", "xor"),
    )
)
NO_KERNEL: Final = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
        *("call", "after-all", "opt-barrier", "partition-id", "replica-id", "copy-done"),
        *("slice-done", "async-start", "async-update", "async-done", "domain", "add-dependency"),
    )
)
LOOKS_INTO: Final = frozenset(("dynamic-slice", "gather", "slice"))
ROTATIONS_OF_A_WORD: Final = 10  # Threefry: 20 give two words

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_ON_CHIP = "S(1)"  # the memory space of a TPU that is no traffic
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Array(NamedTuple):
    """An array that an instruction gives.

    Attributes:
        dtype: of its elements.
        dims: its shape.
        bytes: what it takes in the memory of the device, with what fills up its tiles.
    """

    dtype: str
    dims: tuple[int, ...]
    bytes: int


class Counts(NamedTuple):
    """What is counted of a program, or of a part of one."""

    operations: float = 0.0
    bytes: float = 0.0
    random_words: float = 0.0
    kernels: float = 0.0

    def plus(self, other: Counts, times: float = 1.0) -> Counts:
        """The sum with so many times another."""
        return Counts(*(own + times * one for own, one in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Instruction:
    """A line of the text.

    Attributes:
        name: what others call it.
        arrays: what it gives.
        opcode: what it does.
        given: what stands in its parentheses.
        rest: its attributes, as text.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    given: str
    rest: str

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of what it takes."""
        return tuple(re.findall(r"%([\w.\-]+)", self.given))

    @cached_property
    def elements(self) -> int:
        """Elements that it gives."""
        return sum(math.prod(array.dims) for array in self.arrays)

    @cached_property
    def bytes(self) -> int:
        """Bytes that it gives."""
        return sum(array.bytes for array in self.arrays)

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The computations that it calls."""
        listed = [one for group in _BRANCHES.findall(self.rest) for one in group.split(",")]
        return (*_CALLS.findall(self.rest), *(one.strip().lstrip("%") for one in listed))


@dataclass
class Computation:
    """A computation: its instructions by name, the last of which is its result."""

    instructions: dict[str, Instruction] = field(default_factory=dict)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of the first to be run."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head.group(2)] = Computation()
            entry = head.group(2) if head.group(1) else entry
        elif found := _LINE.match(line):
            current.instructions[found.group(1)] = _instruction(found.group(1), found.group(2))
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    arrays = tuple(_array(*found) for found in _SHAPE.findall(text[:end]))
    opcode, _, after = text[end:].strip().partition("(")
    close = _closing("(" + after) - 2
    return Instruction(name, arrays, opcode, after[:close], after[close + 1 :])


def _array(dtype: str, dims: str, order: str, layout: str) -> Array:
    """The array of a shape in the text, such as ``f32[5000,3]{0,1:T(4,128)}``."""
    shape = _numbers(dims)
    tile = _TILE.match(layout)
    taken = list(shape)
    if tile and order:
        # The last of a tile goes along the dimension that is named first, the densest.
        for axis, size in zip(_numbers(order), reversed(_numbers(tile.group(1))), strict=False):
            taken[axis] = -(-taken[axis] // size) * size
    each = 0 if _ON_CHIP in layout else BYTES.get(dtype, 4)
    return Array(dtype, shape, each * math.prod(taken))


def _numbers(text: str) -> tuple[int, ...]:
    """Integers between commas."""
    return tuple(int(number) for number in text.split(",") if number)


def _closing(text: str) -> int:
    """Where the parenthesis ends that a text begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)


def count(text: str) -> Counts:
    """Counts a program.

    Args:
        text: of a compiled program, as `Compiled.as_text` gives it.
    """
    computations, entry = parse(text)
    return _Counter(computations).of_computation(entry)


class _Counter:
    """Counts computations, each once."""

    def __init__(self, computations: Mapping[str, Computation]) -> None:
        self._computations = computations
        self._known: dict[tuple[str, bool], Counts] = {}

    def of_computation(self, name: str, inside: bool = False) -> Counts:
        """What a computation does; one inside of a kernel reads and writes nothing by itself."""
        if (name, inside) not in self._known:
            total = Counts()
            for one in self._computations[name].instructions.values():
                total = total.plus(self._of_instruction(one, self._computations[name], inside))
            self._known[name, inside] = total
        return self._known[name, inside]

    def _of_instruction(self, one: Instruction, place: Computation, inside: bool) -> Counts:
        total = Counts(operations=self._own_operations(one, place))
        if one.opcode == "shift-left":
            total = total.plus(Counts(random_words=one.elements / ROTATIONS_OF_A_WORD))
        if one.opcode == "while":
            trips = _TRIPS.search(one.rest)
            for name in one.called:
                called = self.of_computation(name, inside)
                total = total.plus(called, int(trips.group(1)) if trips else 1)
        elif one.opcode in {"call", "conditional", "fusion", "async-start"}:
            for name in one.called:
                total = total.plus(self.of_computation(name, inside or one.opcode == "fusion"))
        if not inside and one.opcode not in NO_KERNEL:
            total = total.plus(Counts(bytes=self._traffic(one, place), kernels=1))
        return total

    def _own_operations(self, one: Instruction, place: Computation) -> float:
        """Operations of an instruction, without what it calls as a part of the program."""
        if one.opcode in ELEMENTWISE:
            return one.elements
        if one.opcode in {"dot", "convolution"}:
            return 2.0 * one.elements * _terms(one, place)
        if one.opcode in {"reduce", "reduce-window", "map", "scatter", "select-and-scatter"}:
            fed = one.operands[-1 if one.opcode == "scatter" else 0]
            each = sum(self.of_computation(name, inside=True).operations for name in one.called)
            return each * _elements_of(fed, place)
        if one.opcode == "sort":
            each = sum(self.of_computation(name, inside=True).operations for name in one.called)
            dims = one.arrays[0].dims
            return each * math.prod(dims) * math.log2(max((*dims[-1:], 2)))
        return 0.0

    def _traffic(self, one: Instruction, place: Computation) -> float:
        """Bytes that a kernel reads and writes."""
        if one.opcode in LOOKS_INTO:
            indices = one.operands[1:] if one.opcode == "gather" else ()
            return 2 * one.bytes + sum(_bytes_of(name, place) for name in indices)
        if one.opcode == "dynamic-update-slice":
            return 2 * _bytes_of(one.operands[1], place)
        if one.opcode == "scatter":
            return _bytes_of(one.operands[1], place) + 2 * _bytes_of(one.operands[-1], place)
        if one.opcode != "fusion":
            return one.bytes + sum(_bytes_of(name, place) for name in one.operands)
        inner = self._computations[one.called[0]].instructions
        return _written(one, inner) + sum(
            _read(position, _bytes_of(name, place), inner)
            for position, name in enumerate(one.operands)
        )


def _bytes_of(name: str, place: Computation) -> int:
    found = place.instructions.get(name)
    return found.bytes if found else 0


def _elements_of(name: str, place: Computation) -> int:
    found = place.instructions.get(name)
    return found.elements if found else 0


def _terms(one: Instruction, place: Computation) -> float:
    """Terms of the sum that each element of a product of matrices is."""
    left, right = (place.instructions[name].arrays[0].dims for name in one.operands[:2])
    if one.opcode == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
        return math.prod(left[axis] for axis in (_numbers(summed.group(1)) if summed else ()))
    # On a TPU a product of matrices, whose batch is a dimension dilated to its own size.
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.rest)
    summed_over = dict(zip(labels.group(1), right, strict=True))["i"] if labels else 1
    return math.prod((summed_over, *_summed_in_window(one.rest)))


def _summed_in_window(rest: str) -> list[int]:
    """Sizes of a convolution's window along what is no batch."""
    given = re.search(r"window=\{([^}]*)\}", rest)
    parts = dict(part.split("=") for part in given.group(1).split() if "=" in part) if given else {}
    sizes = [int(size) for size in parts.get("size", "1").split("x")]
    dilated = [int(size) for size in parts.get("lhs_dilate", "1").split("x")]
    dilated += [1] * (len(sizes) - len(dilated))
    return [size for size, by in zip(sizes, dilated, strict=True) if size != by]


def _users(name: str, inner: Mapping[str, Instruction]) -> list[tuple[str, Instruction]]:
    """Who uses an array, through bitcasts, and as whom they know it."""
    found: list[tuple[str, Instruction]] = []
    for one in inner.values():
        if name in one.operands:
            again = _users(one.name, inner) if one.opcode == "bitcast" else [(name, one)]
            found += again
    return found


def _read(position: int, size: int, inner: Mapping[str, Instruction]) -> float:
    """Bytes that a fused kernel reads of an operand: all, unless it only looks into it."""
    (own,) = (
        one for one in inner.values() if one.opcode == "parameter" and one.given == str(position)
    )
    users = _users(own.name, inner)
    taken = 0.0
    for known_as, one in users:
        if one.operands[0] != known_as or known_as in one.operands[1:]:
            return size
        if one.opcode in LOOKS_INTO:
            taken += one.bytes
        elif one.opcode != "dynamic-update-slice":  # which leaves the rest where it is
            return size
    return min(taken, size) if users else size


def _written(one: Instruction, inner: Mapping[str, Instruction]) -> float:
    """Bytes that a fused kernel writes: all, unless it only changes a part of what it is given."""
    changed = [kernel for kernel in inner.values() if kernel.opcode == "dynamic-update-slice"]
    total = float(one.bytes)
    for kernel in changed:
        if kernel.arrays[0] in one.arrays:
            total += inner[kernel.operands[1]].bytes - kernel.bytes
    return max(total, 0.0)
