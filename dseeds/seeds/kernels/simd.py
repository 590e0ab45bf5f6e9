"""Step 4: operations on vectors of bytes, for many units at once.

Compilers do not vectorise plain Numba loops over bytes, so these few functions are written as LLVM instructions. Each
works on `LANES` contiguous units of one colour in a window (see `layout`): unit `p`, an index into the window's flat
memory, and those behind it. LLVM maps them to the vector instructions of the machine. A set of lanes is a bit mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.layout import FACES, LANES

# The label outside the volume, the window or the mask.
NOTHING = 64
# A bit of a unit's state: it is due for a visit.
OPEN = 1
# A bit of a unit's label in a flood: it was taken in this sweep or the one before.
TAKEN = 128
BYTE_VECTOR = ir.VectorType(ir.IntType(8), LANES)
BLOCK_BINS = 32
SHARE_VECTOR = ir.VectorType(ir.IntType(16), BLOCK_BINS)
SUM_VECTOR = ir.VectorType(ir.IntType(32), BLOCK_BINS)
INDEX_TYPE = ir.IntType(64)


class _Writer:
    """A writer of one function's instructions, in which arrays are pointers to their data."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> None:
        self.builder = builder
        self.arguments = [
            cgutils.create_struct_proxy(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        ]

    def load(self, array: Any, index: Any, kind: ir.Type | None = None) -> Any:
        pointer = self.builder.gep(array, [index])
        if kind is None:
            return self.builder.load(pointer)
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=1)

    def store(self, vector: Any, array: Any, index: Any) -> None:
        pointer = self.builder.gep(array, [index])
        self.builder.store(vector, self.builder.bitcast(pointer, vector.type.as_pointer()), align=1)

    def neighbours(self, unit: Any, distances: Any, which: Sequence[int]) -> list[Any]:
        return [self.builder.add(unit, self.load(distances, ir.Constant(INDEX_TYPE, k))) for k in which]

    def all_lanes(self, value: int) -> Any:
        return ir.Constant(BYTE_VECTOR, [value] * LANES)

    def count(self, label: Any, among: Sequence[Any]) -> Any:
        # A lane with the same label is -1: all its bits are set.
        same = [self.builder.sext(self.builder.icmp_unsigned("==", other, label), BYTE_VECTOR) for other in among]
        return reduce(self.builder.sub, same, self.all_lanes(0))

    def mask(self, bits: Any) -> Any:
        return self.builder.zext(self.builder.bitcast(bits, ir.IntType(LANES)), INDEX_TYPE)


@intrinsic
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """Count the zero bits below a word's lowest set bit."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), code


@intrinsic
def leading_zeros(typingctx: Any, word: Any) -> Any:
    """Count the zero bits above a word's highest set bit."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), code


@intrinsic
def boundary_lanes(typingctx: Any, labels: Any, unit: Any, distances: Any) -> Any:
    """Return a bit mask of the units with a face neighbour of another label.

    `NOTHING` counts as another label, but units with that label are never in the mask.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        labels, unit, distances = write.arguments
        own = write.load(labels, unit, BYTE_VECTOR)
        faces = [write.load(labels, u, BYTE_VECTOR) for u in write.neighbours(unit, distances, FACES)]
        differs = reduce(builder.or_, [builder.xor(face, own) for face in faces])
        at_boundary = builder.icmp_unsigned("!=", differs, write.all_lanes(0))
        return write.mask(builder.and_(at_boundary, builder.icmp_unsigned("!=", own, write.all_lanes(NOTHING))))

    return types.uint64(labels, unit, distances), code


@intrinsic
def _take_all_marked(typingctx: Any, marks: Any, unit: Any) -> Any:
    """Do the same as `take_marked`, for all lanes."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        states = write.load(*write.arguments, BYTE_VECTOR)
        # 1 - 1 clears all bits, 0 - 1 keeps them.
        kept = builder.sub(builder.and_(states, write.all_lanes(OPEN)), write.all_lanes(OPEN))
        write.store(builder.and_(states, kept), *write.arguments)
        return write.mask(builder.trunc(states, ir.VectorType(ir.IntType(1), LANES)))

    return types.uint64(marks, unit), code


@jit
def take_marked(marks: NDArray[np.uint8], unit: np.uint64, count: int) -> np.uint64:
    """Return a bit mask of the lanes, among the first `count`, whose byte has the bit `OPEN`, and clear their bytes."""
    if count == LANES:
        return _take_all_marked(marks, unit)
    open_lanes = np.uint64(0)
    for lane in range(np.uint64(count)):
        marked = np.uint64(marks[unit + lane] & OPEN)
        open_lanes |= marked << lane
        marks[unit + lane] *= np.uint8(marked ^ np.uint64(OPEN))
    return open_lanes


@intrinsic
def flood_lanes(typingctx: Any, labels: Any, unit: Any, distances: Any, highest: Any, offset: Any, bit: Any) -> Any:
    """Return which units may take a label in a sweep of a flood, and which took theirs in the sweep before.

    A unit may if its level is at most `highest` and a face neighbour had a label before the sweep; see
    `kernels.flood`. A byte is such a label if `bit` is clear once `offset` is added. The lower half of the result is a
    bit mask of the units that may, the upper half of those that took.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        labels, unit, distances, highest, offset, bit = write.arguments
        highest, offset, bit = (_broadcast(write, number, BYTE_VECTOR) for number in (highest, offset, bit))
        own = write.load(labels, unit, BYTE_VECTOR)
        faces = [write.load(labels, u, BYTE_VECTOR) for u in write.neighbours(unit, distances, FACES)]
        without = reduce(builder.and_, [builder.add(face, offset) for face in faces])
        has_label = builder.icmp_unsigned("==", builder.and_(without, bit), write.all_lanes(0))
        level = builder.sub(own, write.all_lanes(NOTHING + 1))
        may_take = builder.and_(has_label, builder.icmp_unsigned("<=", level, highest))
        # Labels that were taken have their highest bit set; of these, the ones of this sweep are not there yet.
        took = builder.icmp_unsigned(">=", own, write.all_lanes(TAKEN))
        upper = builder.shl(write.mask(took), ir.Constant(INDEX_TYPE, LANES))
        return builder.or_(write.mask(may_take), upper)

    return types.uint64(labels, unit, distances, types.uint8, types.uint8, types.uint8), code


@intrinsic
def same_neighbours(typingctx: Any, labels: Any, unit: Any, distances: Any) -> Any:
    """Return a bit mask, in the order of `NEIGHBOURS`, of a single unit's neighbours that have its label."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        labels, unit, distances = write.arguments
        own = write.load(labels, unit)
        mask = ir.Constant(INDEX_TYPE, 0)
        for k, u in enumerate(write.neighbours(unit, distances, range(18))):
            same = builder.zext(builder.icmp_unsigned("==", write.load(labels, u), own), INDEX_TYPE)
            mask = builder.or_(mask, builder.shl(same, ir.Constant(INDEX_TYPE, k)))
        return mask

    return types.uint64(labels, unit, distances), code


@intrinsic
def count_neighbours(typingctx: Any, labels: Any, unit: Any, distances: Any, votes: Any, fresh: Any) -> Any:
    """Count the neighbours with the units' own labels and with the labels at their faces.

    `labels`, uint8, is the flat window, and `distances`, uint64 (18,), are `layout.neighbour_distances`. `votes`, uint8
    (7 * LANES,), receives, for the own label, then for those of the six faces, the number of the 18 neighbours that
    have it. `fresh`, uint64 (4,), receives a bit for each of `votes`, in their order, set if the label is a candidate.
    A face with the own label, with that of an earlier face or with nothing has no candidate.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        labels, unit, distances, votes, fresh = write.arguments
        around = [write.load(labels, u, BYTE_VECTOR) for u in write.neighbours(unit, distances, range(18))]
        seen = [write.load(labels, unit, BYTE_VECTOR)]
        write.store(write.count(seen[0], around), votes, ir.Constant(INDEX_TYPE, 0))
        seen.append(write.all_lanes(NOTHING))
        masks = [ir.Constant(INDEX_TYPE, (1 << LANES) - 1)]
        for f, face in enumerate(around[k] for k in FACES):
            is_new = reduce(builder.and_, [builder.icmp_unsigned("!=", face, label) for label in seen])
            seen.append(face)
            masks.append(write.mask(is_new))
            write.store(write.count(face, around), votes, ir.Constant(INDEX_TYPE, (f + 1) * LANES))
        masks.append(ir.Constant(INDEX_TYPE, 0))
        for w, (one, other) in enumerate(zip(masks[::2], masks[1::2], strict=True)):
            word = builder.or_(one, builder.shl(other, ir.Constant(INDEX_TYPE, LANES)))
            builder.store(word, builder.gep(fresh, [ir.Constant(INDEX_TYPE, w)]))
        return context.get_dummy_value()

    return types.void(labels, unit, distances, votes, fresh), code


def _bins(write: _Writer, table: Any, row: Any) -> Any:
    """Load a row of a table of 16-bit numbers, shape (rows, 32)."""
    return write.load(table, write.builder.mul(row, ir.Constant(INDEX_TYPE, BLOCK_BINS)), SHARE_VECTOR)


def _broadcast(write: _Writer, number: Any, kind: ir.VectorType) -> Any:
    """Broadcast a number to all elements of a vector."""
    first = write.builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return write.builder.shuffle_vector(first, first, zeros)


def _total(write: _Writer, vector: Any) -> Any:
    kind = ir.FunctionType(vector.type.element, [vector.type])
    name = f"llvm.vector.reduce.add.v{vector.type.count}i{vector.type.element.width}"
    return write.builder.call(cgutils.insert_pure_function(write.builder.module, kind, name), [vector])


@intrinsic
def sum_rows(
    typingctx: Any, table: Any, rows: Any, begin: Any, count: Any, scale: Any, profiles: Any, profile: Any
) -> Any:
    """Add up rows of a table of uint16, shape (rows, 32), scale the sums, and round them down.

    The rows are those in `rows`, uint8, from `begin` on, `count` of them; their sums have to fit 16 bits. The row
    `profile` of `profiles`, uint16 (profiles, 32), receives the scaled sums.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        table, rows, begin, count, scale, profiles, profile = write.arguments
        rows = builder.gep(rows, [begin])
        total = cgutils.alloca_once_value(builder, ir.Constant(SHARE_VECTOR, [0] * BLOCK_BINS))
        with cgutils.for_range(builder, count) as loop:
            row = builder.zext(write.load(rows, loop.index), INDEX_TYPE)
            builder.store(builder.add(builder.load(total), _bins(write, table, row)), total)
        numbers = ir.VectorType(ir.FloatType(), BLOCK_BINS)
        scaled = builder.fmul(builder.uitofp(builder.load(total), numbers), _broadcast(write, scale, numbers))
        write.store(
            builder.fptoui(scaled, SHARE_VECTOR), profiles, builder.mul(profile, ir.Constant(INDEX_TYPE, BLOCK_BINS))
        )
        return context.get_dummy_value()

    return types.void(table, rows, types.int64, types.int64, types.float32, profiles, types.uint64), code


@intrinsic
def intersect(typingctx: Any, shares: Any, row: Any, profiles: Any, profile: Any) -> Any:
    """Intersect a row of shares, uint16, shape (rows, 32), with a row of profiles: return the sum of the minima."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        shares, row, profiles, profile = write.arguments
        one, other = _bins(write, shares, row), _bins(write, profiles, profile)
        least = builder.select(builder.icmp_unsigned("<", one, other), one, other)
        return _total(write, builder.zext(least, SUM_VECTOR))

    return types.int32(shares, types.uint64, profiles, types.uint64), code


@intrinsic
def intersect_without(typingctx: Any, shares: Any, row: Any, profiles: Any, profile: Any, ratio: Any) -> Any:
    """Remove a profile from the shares, then intersect them as `intersect` does.

    The ratio is that of the profile's size to the remaining size, in units of 2^-12.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write = _Writer(context, builder, signature, arguments)
        shares, row, profiles, profile, ratio = write.arguments
        share = builder.zext(_bins(write, shares, row), SUM_VECTOR)
        taken = builder.zext(_bins(write, profiles, profile), SUM_VECTOR)
        spread = builder.mul(builder.sub(share, taken), _broadcast(write, ratio, SUM_VECTOR))
        spread = builder.ashr(spread, ir.Constant(SUM_VECTOR, [12] * BLOCK_BINS))
        rest = builder.add(share, spread)
        return _total(write, builder.select(builder.icmp_signed("<", rest, taken), rest, taken))

    return types.int32(shares, types.uint64, profiles, types.uint64, types.int32), code
