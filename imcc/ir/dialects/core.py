"""``core``: constants, structure of tensors, elementwise arithmetic, the end of a function.

Arithmetic, comparison and selection broadcast as numpy does: trailing axes are aligned, and an axis
of size 1 repeats.
"""

from __future__ import annotations

from typing import Literal, Protocol

from imcc.ir.attributes import Symbol
from imcc.ir.dims import Dim, Monomial, product
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import (
    BOOLEAN,
    DTYPES,
    FLOATS,
    INTEGERS,
    NUMBERS,
    SpikesType,
    TensorType,
    Type,
)

SEMANTICS = "imcc.ir.semantics.core"


def tensor(value: Value) -> TensorType:
    """The tensor type of a value whose operand declaration admits tensors only.

    Spikes count as the plain tensor of their elements, so that what an op computes from them is
    not taken for spikes.
    """
    return moved(value).dense


def moved(value: Value) -> TensorType:
    """The tensor type for the result of an op that only moves elements: spikes stay spikes."""
    if not isinstance(value.type, TensorType):
        raise TypeError(f"{value!r} is not a tensor")
    return value.type


def normalise_axis(op: Op, axis: int, rank: int) -> int:
    """A non-negative axis; fails with a diagnostic if it lies outside ``-rank .. rank-1``."""
    if not -rank <= axis < rank:
        raise op.fail(f"axis {axis} is outside of a tensor of {rank} axes")
    return axis % rank


class Reporter(Protocol):
    """What says where shapes do not fit: an op, or whoever makes one."""

    def fail(self, message: str) -> Exception:
        """The error to raise."""


def broadcast(op: Reporter, left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The broadcast shape, trailing axes aligned; fails with a diagnostic if they differ."""
    shape: list[Dim] = []
    for index in range(1, max(len(left), len(right)) + 1):
        a = left[-index] if index <= len(left) else 1
        b = right[-index] if index <= len(right) else 1
        if a == 1 or a == b:
            shape.append(b)
        elif b == 1:
            shape.append(a)
        else:
            shown = [f"[{', '.join(map(str, item))}]" for item in (left, right)]
            raise op.fail(f"shapes {shown[0]} and {shown[1]} do not broadcast")
    return tuple(reversed(shape))


def not_the_batch(op: Op, size: Dim, what: str) -> None:
    """Fail if a size holds the batch: a result would depend on the other samples of its batch."""
    if isinstance(size, Monomial) and "B" in size.symbols:
        raise op.fail(
            f"{what} of size {size}, which holds the batch",
            reason="a result would depend on the other samples of its batch",
            help="treat all samples of a batch alike",
        )


class Constant(Op, name="core.constant"):
    """A constant tensor: ``y = resource[value]``. The type is that of the resource."""

    example = "=> %y = core.constant {value = @w} : tensor<4x3xf32>"

    value: Symbol = attribute(doc="the resource that holds the data")
    y: Value = result()

    def infer(self) -> Type:
        """The resource's declared type; before the op is in a module, the type it was given."""
        module: Module | None = self.parent.module if self.parent is not None else None
        if module is not None and self.value in module.resources:
            return module.resources[self.value].type
        raise self.fail(f"@{self.value} is not a resource of the module")

    @classmethod
    def of(cls, resource: str, kind: TensorType, name: str = "", scope: str = "") -> Constant:
        """A constant of a resource whose type is known; ``name`` hints the value's name."""
        made = cls.build({}, {"value": Symbol(resource)}, (kind,), (name,), scope, ())
        if not isinstance(made, Constant):
            raise TypeError("build returned another op")
        return made


class Return(Op, name="core.return"):
    """End of a function; ``values`` are its results."""

    terminator = True
    example = "%x: tensor<Bx3xf32> => core.return %x"

    values: tuple[Value, ...] = operand(variadic=True)

    def infer(self) -> tuple[Type, ...]:
        """No results."""
        return ()


class Reshape(Op, name="core.reshape"):
    """Same elements in row-major order under another shape: ``y.flat = x.flat``."""

    example = "%x: tensor<Bx4x2xf32> => %y = core.reshape %x {shape = [B, 8]} : tensor<Bx8xf32>"

    x: Value = operand(TensorType)
    shape: tuple[Dim, ...] = attribute(doc="the new shape")
    y: Value = result()

    def infer(self) -> Type:
        """The element type of ``x`` under ``shape``."""
        return moved(self.x).with_shape(self.shape)

    def verify(self) -> None:
        """Both shapes have the same number of elements."""
        before, after = tensor(self.x).elements, product(self.shape)
        if before != after:
            raise self.fail(
                f"{tensor(self.x)} has {before} elements, shape [{', '.join(map(str, self.shape))}]"
                f" has {after}"
            )


class Permute(Op, name="core.permute"):
    """Axes in another order: ``y.shape[i] = x.shape[axes[i]]``."""

    example = "%x: tensor<Bx4x2xf32> => %y = core.permute %x {axes = [0, 2, 1]} : tensor<Bx2x4xf32>"

    x: Value = operand(TensorType)
    axes: tuple[int, ...] = attribute(doc="a permutation of 0 .. rank-1")
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with axes permuted."""
        kind = moved(self.x)
        if sorted(self.axes) != list(range(kind.rank)):
            raise self.fail(f"axes {list(self.axes)} do not permute 0 .. {kind.rank - 1}")
        return kind.with_shape(tuple(kind.shape[axis] for axis in self.axes))


class Expand(Op, name="core.expand"):
    """Repetition of axes of size 1: ``y[i] = x[i mod x.shape]``, trailing axes aligned.

    Elementwise ops broadcast by themselves; this is for ops that do not, such as
    ``core.concat``.
    """

    example = "%x: tensor<1x1x4xf32> => %y = core.expand %x {shape = [B, 1, 4]} : tensor<Bx1x4xf32>"

    x: Value = operand(TensorType)
    shape: tuple[Dim, ...] = attribute(doc="the new shape")
    y: Value = result()

    def infer(self) -> Type:
        """The element type of ``x`` under ``shape``."""
        return moved(self.x).with_shape(self.shape)

    def verify(self) -> None:
        """Every axis keeps its size or grows from 1; new axes stand in front."""
        if broadcast(self, tensor(self.x).shape, self.shape) != self.shape:
            raise self.fail(
                f"{tensor(self.x)} does not expand to [{', '.join(map(str, self.shape))}]"
            )


class Iota(Op, name="core.iota"):
    """The numbers ``y[i] = i`` for i in ``0 .. size-1``; positions in a sequence, for instance."""

    example = "=> %y = core.iota {size = S} : tensor<Sxi64>"

    size: Dim = attribute(doc="number of elements")
    y: Value = result()

    def infer(self) -> Type:
        """``i64`` elements."""
        return TensorType((self.size,), "i64")


class Slice(Op, name="core.slice"):
    """Every ``step``-th element of one axis: ``y[..., i, ...] = x[..., start + i * step, ...]``.

    A symbolic ``stop`` takes as many elements as a symbolic axis has: the rows of a table of
    positions that a sequence of length S uses, for instance. It is checked when the program runs.
    """

    example = (
        "%x: tensor<Bx8xf32> => "
        "%y = core.slice %x {axis = 1, start = 2, stop = 6} : tensor<Bx4xf32>"
    )

    x: Value = operand(TensorType)
    axis: int = attribute(doc="the axis, from the front")
    start: int = attribute(minimum=0, doc="first index")
    stop: Dim = attribute(minimum=0, doc="one past the last index")
    step: int = attribute(default=1, minimum=1)
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with the axis shortened to ``ceil((stop - start) / step)``."""
        kind = moved(self.x)
        axis = normalise_axis(self, self.axis, kind.rank)
        size = kind.shape[axis]
        shape = list(kind.shape)
        if isinstance(self.stop, Monomial):
            if self.start or self.step != 1:
                raise self.fail(f"a slice that stops at {self.stop} must start at 0 with step 1")
            shape[axis] = self.stop
            return kind.with_shape(tuple(shape))
        if isinstance(size, Monomial):
            # Whether the axis is that long is known when the program runs.
            size = max(size.coefficient, self.stop)
        if not self.start < self.stop <= size:
            raise self.fail(f"[{self.start}, {self.stop}) is empty or outside of size {size}")
        shape[axis] = -(-(self.stop - self.start) // self.step)
        return kind.with_shape(tuple(shape))


class Concat(Op, name="core.concat"):
    """Tensors joined along one axis; all other sizes and the element type are equal."""

    example = (
        "%a: tensor<Bx2xf32>, %b: tensor<Bx3xf32> => "
        "%y = core.concat %a, %b {axis = 1} : tensor<Bx5xf32>"
    )

    inputs: tuple[Value, ...] = operand(TensorType, variadic=True, doc="at least one")
    axis: int = attribute()
    y: Value = result()

    def infer(self) -> Type:
        """The first input's type with the axis summed."""
        if not self.inputs:
            raise self.fail("needs at least one input")
        kinds = [tensor(value) for value in self.inputs]
        axis = normalise_axis(self, self.axis, kinds[0].rank)
        total = 0
        for kind in kinds:
            size = kind.shape[axis] if kind.rank == kinds[0].rank else None
            rest = [d for i, d in enumerate(kind.shape) if i != axis]
            wanted = [d for i, d in enumerate(kinds[0].shape) if i != axis]
            if rest != wanted or kind.element != kinds[0].element or not isinstance(size, int):
                raise self.fail(f"{kind} and {kinds[0]} do not join along axis {axis}")
            total += size
        shape = list(kinds[0].shape)
        shape[axis] = total
        made = kinds[0].with_shape(tuple(shape))
        spikes = all(isinstance(value.type, SpikesType) for value in self.inputs)
        return SpikesType(made.shape, made.element) if spikes else made


class Gather(Op, name="core.gather"):
    """Elements of one axis by index: ``y[..., j, ...] = x[..., index[j], ...]``.

    The axes of ``index`` take the place of the axis; an embedding is a gather of rows (axis 0).
    A negative index counts from the end. Raises at run time for an index outside of the axis.
    """

    example = (
        "%x: tensor<100x8xf32>, %i: tensor<BxSxi64> => "
        "%y = core.gather %x, %i {axis = 0} : tensor<BxSx8xf32>"
    )

    x: Value = operand(TensorType)
    index: Value = operand(TensorType, elements=INTEGERS)
    axis: int = attribute(doc="the axis of x, from the front")
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with the axis replaced by the axes of ``index``."""
        kind = moved(self.x)
        axis = normalise_axis(self, self.axis, kind.rank)
        shape = (*kind.shape[:axis], *tensor(self.index).shape, *kind.shape[axis + 1 :])
        return kind.with_shape(shape)


class Pad(Op, name="core.pad"):
    """Constant padding: ``before[i]`` and ``after[i]`` elements of ``value`` around axis ``i``."""

    example = (
        "%x: tensor<Bx8xf32> => "
        "%y = core.pad %x {before = [0, 1], after = [0, 2]} : tensor<Bx11xf32>"
    )

    x: Value = operand(TensorType)
    before: tuple[int, ...] = attribute(minimum=0)
    after: tuple[int, ...] = attribute(minimum=0)
    value: float = attribute(default=0.0)
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with each axis enlarged; a symbolic axis cannot be padded."""
        kind = moved(self.x) if self.value in (0.0, 1.0) else tensor(self.x)
        if len(self.before) != kind.rank or len(self.after) != kind.rank:
            raise self.fail(f"needs {kind.rank} numbers before and after")
        shape: list[Dim] = []
        for size, low, high in zip(kind.shape, self.before, self.after, strict=True):
            if isinstance(size, int):
                shape.append(size + low + high)
            elif low or high:
                raise self.fail(f"an axis of symbolic size {size} cannot be padded")
            else:
                shape.append(size)
        return kind.with_shape(tuple(shape))


class _Binary(Op):
    a: Value = operand(TensorType, elements=NUMBERS)
    b: Value = operand(TensorType, elements=NUMBERS)
    y: Value = result()

    def infer(self) -> Type:
        """The broadcast shape; both element types must be equal."""
        left, right = tensor(self.a), tensor(self.b)
        if left.element != right.element:
            raise self.fail(f"element types {left.element} and {right.element} differ")
        return left.with_shape(broadcast(self, left.shape, right.shape))


class Add(_Binary, name="core.add"):
    """Elementwise sum with broadcasting: ``y = a + b``; integers wrap around."""

    example = "%a: tensor<Bx4xf32>, %b: tensor<4xf32> => %y = core.add %a, %b : tensor<Bx4xf32>"


class Subtract(_Binary, name="core.subtract"):
    """Elementwise difference with broadcasting: ``y = a - b``."""

    example = (
        "%a: tensor<Bx4xf32>, %b: tensor<4xf32> => %y = core.subtract %a, %b : tensor<Bx4xf32>"
    )


class Multiply(_Binary, name="core.multiply"):
    """Elementwise product with broadcasting: ``y = a * b``."""

    example = (
        "%a: tensor<Bx4xf32>, %b: tensor<4xf32> => %y = core.multiply %a, %b : tensor<Bx4xf32>"
    )

    def infer(self) -> Type:
        """As for the other elementwise ops; the product of spikes is their conjunction."""
        made = super().infer()
        both = isinstance(self.a.type, SpikesType) and isinstance(self.b.type, SpikesType)
        if both and isinstance(made, TensorType):
            return SpikesType(made.shape, made.element)
        return made


class Divide(_Binary, name="core.divide"):
    """Elementwise quotient with broadcasting, in floating point: ``y = a / b``."""

    example = "%a: tensor<Bx4xf32>, %b: tensor<4xf32> => %y = core.divide %a, %b : tensor<Bx4xf32>"

    def verify(self) -> None:
        """Integers have several quotients; cast them first."""
        if tensor(self.a).element not in FLOATS:
            raise self.fail(f"divides {tensor(self.a).element}", help="cast to floating point")


class Power(_Binary, name="core.power"):
    """Elementwise power with broadcasting: ``y = a ^ b``."""

    example = "%a: tensor<Bx4xf32>, %b: tensor<f32> => %y = core.power %a, %b : tensor<Bx4xf32>"


class Compare(Op, name="core.compare"):
    """Elementwise comparison with broadcasting: ``y = a relation b``, elements ``i1``."""

    example = (
        "%a: tensor<BxSxi64>, %b: tensor<Sxi64> => "
        '%y = core.compare %a, %b {relation = "less_equal"} : tensor<BxSxi1>'
    )

    a: Value = operand(TensorType, elements=NUMBERS | BOOLEAN)
    b: Value = operand(TensorType, elements=NUMBERS | BOOLEAN)
    relation: Literal["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"] = (
        attribute()
    )
    y: Value = result()

    def infer(self) -> Type:
        """The broadcast shape; both element types must be equal."""
        left, right = tensor(self.a), tensor(self.b)
        if left.element != right.element:
            raise self.fail(f"element types {left.element} and {right.element} differ")
        return TensorType(broadcast(self, left.shape, right.shape), "i1")


class Where(Op, name="core.where"):
    """Elementwise choice with broadcasting: ``y = a`` where ``condition`` holds, else ``b``.

    On ``i1``, ``where(p, q, false)`` is "p and q", ``where(p, true, q)`` is "p or q".
    """

    example = (
        "%c: tensor<Bx4xi1>, %a: tensor<Bx4xf32>, %b: tensor<4xf32> => "
        "%y = core.where %c, %a, %b : tensor<Bx4xf32>"
    )

    condition: Value = operand(TensorType, elements=BOOLEAN)
    a: Value = operand(TensorType)
    b: Value = operand(TensorType)
    y: Value = result()

    def infer(self) -> Type:
        """The broadcast shape of all three; ``a`` and ``b`` have one element type."""
        left, right = tensor(self.a), tensor(self.b)
        if left.element != right.element:
            raise self.fail(f"element types {left.element} and {right.element} differ")
        shape = broadcast(self, left.shape, right.shape)
        return left.with_shape(broadcast(self, tensor(self.condition).shape, shape))


class Unary(Op, name="core.unary"):
    """An elementary function of each element: ``y = function(x)``."""

    example = '%x: tensor<Bx4xf32> => %y = core.unary %x {function = "exp"} : tensor<Bx4xf32>'

    x: Value = operand(TensorType, elements=NUMBERS)
    function: Literal[
        "abs", "ceil", "cos", "erf", "exp", "floor", "log", "round", "rsqrt", "sign", "sin", "sqrt"
    ] = attribute(doc="round: ties to even")
    y: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return tensor(self.x)

    def verify(self) -> None:
        """Of integers only the size and the sign are integers again."""
        if tensor(self.x).element not in FLOATS and self.function not in ("abs", "sign"):
            raise self.fail(f"{self.function} of {tensor(self.x).element}")


class Cast(Op, name="core.cast"):
    """Elements in another type: ``y = x``, rounded where ``to`` holds fewer digits.

    Floating point to integer drops the fraction; a number to ``i1`` is whether it is not 0.
    """

    example = '%x: tensor<BxSxi64> => %y = core.cast %x {to = "f32"} : tensor<BxSxf32>'

    x: Value = operand(TensorType, elements=DTYPES)
    to: Literal["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "i1"] = attribute(
        doc="the new element type"
    )
    y: Value = result()

    def infer(self) -> Type:
        """``x`` with other elements."""
        return tensor(self.x).with_element(self.to)


class CumulativeSum(Op, name="core.cumulative_sum"):
    """Running sum along one axis: ``y[..., i, ...] = sum_{j <= i} x[..., j, ...]``."""

    example = "%x: tensor<BxSxi64> => %y = core.cumulative_sum %x {axis = -1} : tensor<BxSxi64>"

    x: Value = operand(TensorType, elements=NUMBERS)
    axis: int = attribute(maximum=-1, doc="from the back")
    y: Value = result()

    def infer(self) -> Type:
        """The type of ``x``."""
        return tensor(self.x)

    def verify(self) -> None:
        """The axis exists and is not the batch."""
        axis = normalise_axis(self, self.axis, tensor(self.x).rank)
        not_the_batch(self, tensor(self.x).shape[axis], "sums along an axis")
