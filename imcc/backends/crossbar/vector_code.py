"""Vector instructions for the kernels, written as LLVM code for ``LANES`` columns or positions.

LLVM makes vector instructions of a plain loop only where it can show that arrays do not overlap and
that every step stays 32 bits wide; here they are vectors to begin with, on every processor (LLVM
splits them into the registers that there are). The functions work on rows of contiguous arrays,
without checks of bounds.

Normals come from Box and Muller's transform (Ann. Math. Stat. 29, 1958) of a hash of a counter:
two rounds of xor-shift and multiplication over 32 bits with 64 bits of key (the constants are those
of C. Wellons' search for low-bias hashes). There is no state and no branch. One hash gives two
normals: 20 bits choose the radius, so that the largest draw is 5.4 standard deviations, 12 bits the
angle. Logarithm, sine and cosine are polynomials by least squares, good to 6e-6.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as typed_cgutils
from numba.extending import intrinsic

from imcc.backends.crossbar.columns import GROUP, LANES, UNROLL

ENTRIES = 1 << GROUP

ABREAST = 2
"""Positions whose sums fill the registers of most processors: 3 x 2 vectors of ``LANES``."""

_I16, _I32, _F32, _F64 = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.DoubleType()
cgutils: Any = typed_cgutils
_SIZES = {_I16: 2, _I32: 4, _F32: 4, _F64: 8}
_FAST = ("nsz", "contract")
_LOGARITHM = (-2.00002874, 0.9996881, -0.664484563, 0.509746083, -0.446506324, 0.284604614)
_SINE = (6.28305408, -41.3311226, 81.3654924, -74.4709398, 32.768827)
_COSINE = (0.999999211, -19.7389803, 64.9286571, -85.2716171, 58.7904695, -21.0710654)
"""Coefficients of ``-2 ln(1 + m) / m`` in m, ``sin(2 pi a) / a`` and ``cos(2 pi a)`` in a^2."""


def _vector(kind: Any) -> Any:
    return ir.VectorType(kind, LANES)


def _same(kind: Any, value: float) -> Any:
    return ir.Constant(_vector(kind), [ir.Constant(kind, value)] * LANES)


def _spread(b: Any, value: Any) -> Any:
    """A vector with ``value`` in every lane."""
    kind = _vector(value.type)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, first, ir.Constant(_vector(_I32), [0] * LANES))


def _call(b: Any, name: str, *values: Any) -> Any:
    kind = values[0].type
    kinds = ir.FunctionType(kind, [kind] * len(values))
    found = cgutils.get_or_insert_function(b.module, kinds, f"{name}.v{LANES}f32")
    return b.call(found, list(values), fastmath=("nnan", "nsz"))


def _multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    return b.fadd(b.fmul(x, y, flags=_FAST), z, flags=_FAST)


def _polynomial(b: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    value = _same(_F32, coefficients[-1])
    for item in reversed(coefficients[:-1]):
        value = _multiply_add(b, value, x, _same(_F32, item))
    return value


def _hash(b: Any, counter: Any, low: Any, high: Any) -> Any:
    """32 mixed bits for each lane."""

    def shifted(x: Any, bits: int) -> Any:
        return b.xor(x, b.lshr(x, _same(_I32, bits)))

    x = b.add(b.mul(counter, _same(_I32, 0x9E3779B1)), low)
    x = b.mul(shifted(x, 16), _same(_I32, 0x21F0AAAD))
    x = b.mul(shifted(b.xor(x, high), 15), _same(_I32, 0xD35A2D97))
    return shifted(x, 15)


def _normals(b: Any, counter: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Two standard normals for each lane."""
    mixed = _hash(b, counter, low, high)
    integers, floats = _vector(_I32), _vector(_F32)
    half = _same(_F32, 0.5)
    uniform = b.fadd(b.sitofp(b.lshr(mixed, _same(_I32, 12)), floats), half)
    bits = b.bitcast(b.fmul(uniform, _same(_F32, 2.0**-20)), integers)
    # Exponent and mantissa of the uniform, the mantissa in [sqrt(1/2), sqrt(2)).
    exponent = b.ashr(b.sub(bits, _same(_I32, 0x3F3504F3)), _same(_I32, 23))
    mantissa = b.bitcast(b.sub(bits, b.shl(exponent, _same(_I32, 23))), floats)
    m = b.fsub(mantissa, _same(_F32, 1.0))
    turns = b.fmul(b.sitofp(exponent, floats), _same(_F32, -2 * math.log(2)))
    square = _multiply_add(b, _polynomial(b, m, _LOGARITHM), m, turns)
    radius = _call(b, "llvm.sqrt", _call(b, "llvm.maxnum", square, _same(_F32, 0.0)))
    signed = b.ashr(b.shl(mixed, _same(_I32, 20)), _same(_I32, 20))
    angle = b.fmul(b.fadd(b.sitofp(signed, floats), half), _same(_F32, 2.0**-12))
    turned = b.fmul(angle, angle)
    sine = b.fmul(_polynomial(b, turned, _SINE), angle)
    return b.fmul(radius, sine), b.fmul(radius, _polynomial(b, turned, _COSINE))


def _converted(b: Any, v: Any, scale: Any, bottom: Any, top: Any) -> Any:
    """``clamp(round(v * scale), bottom, top)``."""
    code = _call(b, "llvm.rint", b.fmul(v, scale))
    return _call(b, "llvm.minnum", _call(b, "llvm.maxnum", code, bottom), top)


class _Row:
    """A one-dimensional contiguous array that a function of this file was handed."""

    def __init__(self, context: Any, b: Any, kind: Any, value: Any) -> None:
        self.data = context.make_array(kind)(context, b, value).data
        self.b, self.kind = b, self.data.type.pointee

    def one(self, index: Any) -> Any:
        """One element."""
        return self.b.load(self.b.gep(self.data, [index]))

    def load(self, index: Any, lanes: int = LANES) -> Any:
        """The lanes that start at ``index``."""
        return self.b.load(self._at(index, lanes), align=_SIZES[self.kind])

    def store(self, index: Any, value: Any) -> None:
        """Write lanes from ``index`` on."""
        at = self._at(index, value.type.count)
        self.b.store(value, at, align=_SIZES[self.kind])

    def add(self, index: Any, value: Any, weight: Any) -> None:
        """Add ``weight`` times ``value``, in the precision of the row."""
        b = self.b
        if self.kind == _F64:
            value, weight = b.fpext(value, _vector(_F64)), b.fpext(weight, _F64)
        term = b.fmul(value, _spread(b, weight))
        self.store(index, b.fadd(self.load(index), term))

    def _at(self, index: Any, lanes: int) -> Any:
        kind = ir.PointerType(ir.VectorType(self.kind, lanes))
        return self.b.bitcast(self.b.gep(self.data, [index]), kind)


class _Call:
    """Arguments of a function of this file by name, arrays as :class:`_Row`."""

    def __init__(self, context: Any, b: Any, names: str, kinds: Any, values: Any) -> None:
        self.held: dict[str, Any] = {}
        for name, kind, value in zip(names.split(), kinds, values, strict=True):
            is_array = isinstance(kind, types.Array)
            self.held[name] = _Row(context, b, kind, value) if is_array else value

    def __getattr__(self, name: str) -> Any:
        return self.held[name]


def _function(names: str, generate: Callable[[Any, _Call], None]) -> Any:
    """A function for kernels that takes ``names`` and returns nothing."""

    def function(typing: Any, *arguments: Any) -> Any:
        def made(context: Any, b: Any, signature: Any, values: Any) -> Any:
            generate(b, _Call(context, b, names, signature.args, values))
            return context.get_dummy_value()

        return types.void(*arguments), made

    # numba reads the parameters off the signature, and takes no starred ones.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("typing", *names.split())]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(function)


_CONVERTER = " inverse bottom top total out_a out_b weight_a weight_b"
_KEYS = " low high counter"


def _add_codes(b: Any, call: _Call, sums: list[Any]) -> None:
    """Convert two vectors and add them to the totals."""
    inverse, bottom, top = (_spread(b, v) for v in (call.inverse, call.bottom, call.top))
    codes = [_converted(b, v, inverse, bottom, top) for v in sums]
    call.total.add(call.out_a, codes[0], call.weight_a)
    call.total.add(call.out_b, codes[1], call.weight_b)


def _with_noise(b: Any, sums: list[Any], deviations: list[Any], keys: list[Any]) -> list[Any]:
    drawn = _normals(b, *keys)
    return [_multiply_add(b, *item) for item in zip(drawn, deviations, sums, strict=True)]


def _positions(noisy: bool) -> Callable[[Any, _Call], None]:
    def generate(b: Any, call: _Call) -> None:
        shifts = (call.shift_a, call.shift_b)
        sums = [
            b.fadd(call.sums.load(place), _spread(b, shift))
            for place, shift in zip((call.sums_a, call.sums_b), shifts, strict=True)
        ]
        if noisy:
            spread = [call.spread.load(place) for place in (call.spread_a, call.spread_b)]
            keys = [_spread(b, call.counter), call.low.load(call.at), call.high.load(call.at)]
            sums = _with_noise(b, sums, spread, keys)
        _add_codes(b, call, sums)

    return generate


def _columns(noisy: bool) -> Callable[[Any, _Call], None]:
    def generate(b: Any, call: _Call) -> None:
        shifts = (call.shift_a, call.shift_b)
        sums = [
            b.fadd(call.sums.load(place), call.shift.load(shift))
            for place, shift in zip((call.sums_a, call.sums_b), shifts, strict=True)
        ]
        if noisy:
            spread = [_spread(b, call.deviation)] * 2
            keys = [_lanes(b, call.counter), _spread(b, call.low), _spread(b, call.high)]
            sums = _with_noise(b, sums, spread, keys)
        _add_codes(b, call, sums)

    return generate


def _multiplied(rows: int) -> Callable[[Any, _Call], None]:
    """Column sums of ``rows`` positions, in registers while the loop goes through the crossbar."""

    def generate(b: Any, call: _Call) -> None:
        integer, zero = call.depth.type, _same(_F32, 0.0)
        held = [[cgutils.alloca_once_value(b, zero) for _ in range(2)] for _ in range(rows)]
        starts = [call.x_at]
        for _ in range(rows - 1):
            starts.append(b.add(starts[-1], call.stride))
        for item in (item for pair in held for item in pair):
            b.store(zero, item)
        with cgutils.for_range(b, call.depth) as loop:
            inputs = [_spread(b, call.x.one(b.add(start, loop.index))) for start in starts]
            at = b.add(call.levels_at, b.mul(loop.index, ir.Constant(integer, 2 * LANES)))
            for side in range(2):
                levels = call.levels.load(b.add(at, ir.Constant(integer, side * LANES)))
                for value, pair in zip(inputs, held, strict=True):
                    b.store(_multiply_add(b, value, levels, b.load(pair[side])), pair[side])
        for number, item in enumerate(item for pair in held for item in pair):
            call.sums.store(b.add(call.at, ir.Constant(integer, number * LANES)), b.load(item))

    return generate


def _lanes(b: Any, first: Any) -> Any:
    """``first``, ``first + 1``, ..."""
    steps = ir.Constant(_vector(_I32), [ir.Constant(_I32, lane) for lane in range(LANES)])
    return b.add(_spread(b, first), steps)


def _looked_up(b: Any, call: _Call, first: Any) -> list[Any]:
    """Sums of ``2 LANES`` columns, whose rows' bits start at ``index[first]``."""
    integer, wide = first.type, 2 * LANES
    table = call.table
    size = ir.Constant(integer, wide)
    held = cgutils.alloca_once_value(b, ir.Constant(ir.VectorType(table.kind, wide), None))
    b.store(ir.Constant(ir.VectorType(table.kind, wide), None), held)
    turns = b.udiv(call.used, ir.Constant(integer, UNROLL))
    with cgutils.for_range(b, turns) as loop:
        group = b.mul(loop.index, ir.Constant(integer, UNROLL))
        value = b.load(held)
        for step in range(UNROLL):
            number = b.add(group, ir.Constant(integer, step))
            place = b.add(first, b.mul(number, ir.Constant(integer, 8)))
            entry = b.zext(call.index.one(place), integer)
            entry = b.add(b.mul(number, ir.Constant(integer, ENTRIES)), entry)
            value = b.add(value, table.load(b.mul(entry, size), wide))
        b.store(value, held)
    whole = b.load(held)
    parts = []
    for start in (0, LANES):
        places = [ir.Constant(_I32, start + lane) for lane in range(LANES)]
        part = b.shuffle_vector(whole, whole, ir.Constant(_vector(_I32), places))
        if table.kind != _I32:
            part = b.sext(part, _vector(_I32))
        parts.append(b.fmul(b.sitofp(part, _vector(_F32)), _spread(b, call.scale)))
    return parts


def _lookups(noisy: bool) -> Callable[[Any, _Call], None]:
    def generate(b: Any, call: _Call) -> None:
        zero = _same(_F32, 0.0)
        made = [cgutils.alloca_once_value(b, zero) for _ in range(2)]
        for item in made:
            b.store(zero, item)
        inverse, bottom, top = (_spread(b, v) for v in (call.inverse, call.bottom, call.top))
        shift = [call.shift.load(place) for place in (call.shift_a, call.shift_b)]
        with cgutils.for_range(b, call.digits) as loop:
            digit = loop.index
            # Eight digits of a group of rows are the bytes of one word.
            eight = ir.Constant(digit.type, 8)
            word = b.mul(b.mul(b.udiv(digit, eight), eight), call.groups)
            sums = _looked_up(b, call, b.add(call.at, b.add(word, b.urem(digit, eight))))
            sums = [b.fadd(v, s) for v, s in zip(sums, shift, strict=True)]
            if noisy:
                spread = [_spread(b, call.spread.one(b.add(call.spread_at, digit)))] * 2
                counter = b.add(call.counter, b.mul(b.trunc(digit, _I32), call.stride))
                keys = [_lanes(b, counter), _spread(b, call.low), _spread(b, call.high)]
                sums = _with_noise(b, sums, spread, keys)
            weight = _spread(b, call.digit.one(digit))
            for item, v in zip(made, sums, strict=True):
                code = _converted(b, v, inverse, bottom, top)
                b.store(b.fadd(b.load(item), b.fmul(code, weight)), item)
        call.total.add(call.out_a, b.load(made[0]), call.weight_a)
        call.total.add(call.out_b, b.load(made[1]), call.weight_b)

    return generate


def _sum_rows(b: Any, call: _Call) -> None:
    wide = 2 * LANES
    value = b.add(call.table.load(call.left, wide), call.table.load(call.right, wide))
    call.table.store(call.at, value)


_POSITIONS = "sums sums_a sums_b shift_a shift_b spread spread_a spread_b at" + _KEYS + _CONVERTER
convert_positions = _function(_POSITIONS, _positions(noisy=False))
"""Two columns at ``LANES`` positions: ``sums[sums_a + i] + shift_a``, and so with b.

``total[out_a + i]`` and ``total[out_b + i]`` grow by the weights times the codes. The noise has the
deviations ``spread[spread_a + i]`` and ``spread[spread_b + i]`` and the keys ``low[at + i]`` and
``high[at + i]``.
"""
convert_positions_noisy = _function(_POSITIONS, _positions(noisy=True))

_COLUMNS = "sums sums_a sums_b shift shift_a shift_b deviation" + _KEYS + _CONVERTER
convert_columns = _function(_COLUMNS, _columns(noisy=False))
"""Twice ``LANES`` columns at one position; the counter of lane i is ``counter + i``."""
convert_columns_noisy = _function(_COLUMNS, _columns(noisy=True))

_LOOKUPS = (
    "table index at groups used digits digit scale shift shift_a shift_b spread spread_at stride"
    + _KEYS
    + _CONVERTER
)
convert_lookups = _function(_LOOKUPS, _lookups(noisy=False))
"""Twice ``LANES`` columns at one position, all digits: sums are looked up.

The sum of digit d is ``scale * sum_g table[g, index[at + 8 g + d]]`` over ``used`` groups; eight
digits on, the next ``groups``; its noise has the deviation ``spread[spread_at + d]`` and the
counter ``counter + d stride + i``.
"""
convert_lookups_noisy = _function(_LOOKUPS, _lookups(noisy=True))


def _draw(b: Any, call: _Call) -> None:
    keys = [_lanes(b, call.counter), _spread(b, call.low), _spread(b, call.high)]
    for place, drawn in zip((call.at_a, call.at_b), _normals(b, *keys), strict=True):
        call.out.store(place, drawn)


draw_normals = _function("out at_a at_b" + _KEYS, _draw)
"""Twice ``LANES`` standard normals into ``out[at_a + i]`` and ``out[at_b + i]``."""

_SUMS = "x x_at stride depth levels levels_at sums at"
multiply_one = _function(_SUMS, _multiplied(1))
"""Sums of twice ``LANES`` columns at one position into ``sums[at + lane]``.

``sum_k x[x_at + k] * levels[levels_at + 2 LANES k + lane]`` over ``depth`` rows.
"""
multiply_some = _function(_SUMS, _multiplied(ABREAST))
"""The same at ``ABREAST`` positions, whose inputs are ``stride`` apart."""

sum_rows = _function("table at left right", _sum_rows)
"""``table[at + i] = table[left + i] + table[right + i]`` for twice ``LANES`` columns."""
