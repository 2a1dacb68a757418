"""``sparse``: spikes and weights as compressed fibers, and the products that join them.

A *word* packs what one presynaptic value gives over all steps: bit t is the spike of timestep t.
Codes of several bits (a layer that encodes an image) are words too: bit b counts ``2^b``. A fiber
is a bitmask of positions and the words that are not 0; see :mod:`imcc.backends.sparse_snn.fibers`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from imcc.ir.attributes import declare_annotation
from imcc.ir.dialects.core import tensor
from imcc.ir.dialects.quant import largest_product_sum
from imcc.ir.dialects.windows import windowed_shape
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.phases import at_least, phase_rule
from imcc.ir.types import DialectType, QuantType, TensorType, Type

SEMANTICS = "imcc.backends.sparse_snn.simulate"

MAX_WORD_BITS = 32

LOOPS = declare_annotation(
    "sparse.loops", tuple[str, ...], doc="loops of the product from the outermost in"
)
SPATIAL = declare_annotation(
    "sparse.spatial", tuple[str, ...], doc="loops that are unrolled over hardware"
)
START = declare_annotation("sparse.start_ns", float, unit="ns", doc="when the op starts")
END = declare_annotation("sparse.end_ns", float, unit="ns", doc="when its result is complete")
CYCLES = declare_annotation(
    "sparse.cycles", float, unit="cycle", doc="of one inference, mean over profiled samples"
)
STALLS = declare_annotation(
    "sparse.stalls", tuple[float, float], unit="cycle", doc="of them, waiting for cache and DRAM"
)
EVENTS = declare_annotation(
    "sparse.events", tuple[float, ...], doc="events of one inference, in the order of EVENT_NAMES"
)
COUNTS = declare_annotation("sparse.counts", str, doc="the engine's counters, mean over samples")
SAMPLES = declare_annotation("sparse.samples", int, doc="samples that were profiled")
PROFILE = (CYCLES, STALLS, EVENTS, COUNTS, SAMPLES)

EVENT_NAMES = (
    "dram.bit",
    "cache_read.word",
    "cache_write.word",
    "crossbar.bit",
    "buffer.bit",
    "join.chunk",
    "fast_prefix_sum.run",
    "laggy_adder.step",
    "adder.bit",
)
"""Events of a product, named ``component.action``."""


@dataclasses.dataclass(frozen=True, eq=False)
class FibersType(DialectType):
    """Compressed fibers of words.

    ``shape`` is that of the words, ``[..., K]`` or ``[..., C, spatial]``, time not among it.
    ``kind`` says what a bit is: a timestep's spike, or a digit of a code.
    """

    name: ClassVar[str] = "sparse.fibers"

    kind: Literal["spikes", "codes"]
    word_bits: int
    shape: tuple[Dim, ...]
    time_axis: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsType(DialectType):
    """Compressed fibers of weight codes ``[N, ...]``, one fiber for each output."""

    name: ClassVar[str] = "sparse.weights"

    shape: tuple[int, ...]
    bits: int

    @property
    def terms(self) -> int:
        """Positions of a fiber."""
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count


class PackSpikes(Op, name="sparse.pack_spikes"):
    """Pack the timesteps of spikes: ``word[...] = sum_t spike[t, ...] 2^t``.

    A neuron that never spikes is a zero of its fiber's bitmask and takes no room. Words with at
    most ``silence`` spikes are set to 0 as well, which changes what the next layer sees; 0 loses
    nothing. Without a time axis a word has one bit.
    """

    example = (
        "%x: tensor<4xBx8xq<u1>> => %a = sparse.pack_spikes %x "
        ': !sparse.fibers<kind="spikes", word_bits=4, shape=[B, 8], time_axis=true>'
    )

    x: Value = operand(TensorType, quantised=True, doc="codes of one bit, [T, ...]")
    silence: int = attribute(default=0, minimum=0, doc="words with so few spikes are dropped")
    time_axis: bool = attribute(default=True)
    fibers: Value = result()

    def infer(self) -> Type:
        """Words of as many bits as there are timesteps."""
        x = tensor(self.x)
        if not self.time_axis:
            return FibersType("spikes", 1, x.shape, False)
        steps = x.shape[0] if x.rank else None
        if not isinstance(steps, int) or not 1 <= steps <= MAX_WORD_BITS:
            raise self.fail(f"{x} needs 1 to {MAX_WORD_BITS} timesteps in front")
        return FibersType("spikes", steps, x.shape[1:], True)

    def verify(self) -> None:
        """Spikes are codes of one bit."""
        quant = tensor(self.x).quant
        if quant.bits != 1 or quant.signed or not quant.symmetric:
            raise self.fail(f"spikes are codes q<u1>, found {self.x.type}")


class PackCodes(Op, name="sparse.pack_codes"):
    """Codes as words: bit b of a word counts ``2^b``. A code of 0 takes no room."""

    example = (
        "%x: tensor<Bx8xq<u8>> => %a = sparse.pack_codes %x "
        ': !sparse.fibers<kind="codes", word_bits=8, shape=[B, 8], time_axis=false>'
    )

    x: Value = operand(TensorType, quantised=True, doc="unsigned codes")
    fibers: Value = result()

    def infer(self) -> Type:
        """Words of as many bits as the codes have."""
        x = tensor(self.x)
        return FibersType("codes", x.quant.bits, x.shape, False)

    def verify(self) -> None:
        """Unsigned codes of at most 32 bits with one scale."""
        quant = tensor(self.x).quant
        if quant.signed or quant.bits > MAX_WORD_BITS or quant.axis is not None:
            raise self.fail(f"needs unsigned codes with one scale, found {self.x.type}")


class CompressWeights(Op, name="sparse.compress_weights"):
    """Weight codes ``[N, ...]`` as one fiber for each output; a code of 0 takes no room."""

    example = (
        "%w: tensor<3x8xq<s8, axis=0>> => %b = sparse.compress_weights %w "
        ": !sparse.weights<shape=[3, 8], bits=8>"
    )

    codes: Value = operand(TensorType, quantised=True, doc="[N, ...], zero point 0")
    weights: Value = result()

    def infer(self) -> Type:
        """The sizes of the codes."""
        kind = tensor(self.codes)
        sizes = tuple(size for size in kind.shape if isinstance(size, int))
        if kind.rank < 2 or len(sizes) < kind.rank:
            raise self.fail(f"codes need two or more axes of known size, found {kind}")
        return WeightsType(sizes, kind.quant.bits)

    def verify(self) -> None:
        """One scale for each output, and zero is the code 0."""
        quant = tensor(self.codes).quant
        if not quant.symmetric or quant.group is not None or quant.axis not in (None, 0):
            raise self.fail(f"codes {quant} need zero point 0 and one scale for each output")


class Product(Op, name="sparse.product"):
    """Join fibers: ``y[t, ..., n] = sum_k bit_t(word[..., k]) * w[n, k]`` in exact integers.

    For codes ``y[..., n] = sum_k (word[..., k] - zx) * w[n, k]``, summed up from its bits. With
    ``kernel`` the product slides over ``[..., C, spatial]`` as a convolution; padding is silent,
    for codes it is the zero point. Accumulators that a target bounds may overflow (the target says
    so); else the sums are those of ``quant.linear`` and ``quant.conv``.
    """

    example = (
        '%a: !sparse.fibers<kind="spikes", word_bits=4, shape=[B, 8], time_axis=true>, '
        "%b: !sparse.weights<shape=[3, 8], bits=8> => "
        "%y = sparse.product %a, %b : tensor<4xBx3xi32>"
    )

    a: Value = operand(FibersType)
    b: Value = operand(WeightsType)
    x_zero_point: Value | None = operand(
        TensorType, elements={"i32"}, default=None, doc="of codes; scalar; absent means 0"
    )
    kernel: tuple[int, ...] = attribute(default=(), minimum=1, doc="empty: a plain product")
    stride: tuple[int, ...] = attribute(default=(), minimum=1)
    padding: tuple[int, ...] = attribute(default=(), minimum=0)
    dilation: tuple[int, ...] = attribute(default=(), minimum=1)
    groups: int = attribute(default=1, minimum=1)
    y: Value = result(doc="[T, ..., N] or [T, ..., N, spatial]; without T for codes")

    @property
    def fibers(self) -> FibersType:
        """The type of the words."""
        if not isinstance(self.a.type, FibersType):
            raise TypeError(f"{self.a!r} is not fibers")
        return self.a.type

    @property
    def weights(self) -> WeightsType:
        """The type of the weights."""
        if not isinstance(self.b.type, WeightsType):
            raise TypeError(f"{self.b!r} is not weights")
        return self.b.type

    def infer(self) -> Type:
        """The shape of the product or convolution in 32-bit integers, time in front."""
        held, weights = self.fibers, self.weights
        words = TensorType(held.shape, "i32")
        time = (held.word_bits,) if held.kind == "spikes" and held.time_axis else ()
        if not self.kernel:
            if not words.rank or words.shape[-1] != weights.terms:
                raise self.fail(f"words {list(held.shape)} and {weights} do not multiply")
            return TensorType((*time, *words.shape[:-1], weights.shape[0]), "i32")
        count = len(self.kernel)
        channels = words.shape[-count - 1] if words.rank > count else None
        if channels != weights.shape[1] * self.groups or weights.shape[2:] != self.kernel:
            raise self.fail(f"words {list(held.shape)}, {weights} and the window differ")
        shape = windowed_shape(
            self,
            words,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            weights.shape[0],
        )
        return TensorType((*time, *shape), "i32")

    def verify(self) -> None:
        """Sums stay within 32 bits; groups need a window."""
        held, weights = self.fibers, self.weights
        bits = 1 if held.kind == "spikes" else held.word_bits
        largest = largest_product_sum(
            QuantType(bits, False), QuantType(weights.bits), weights.terms
        )
        if largest >= 2**31:
            raise self.fail(f"a sum of {weights.terms} products can reach {largest}")
        if not self.kernel and self.groups != 1:
            raise self.fail("a plain product has no groups")
        if self.kernel and weights.shape[0] % self.groups:
            raise self.fail(f"{weights.shape[0]} outputs do not divide into {self.groups} groups")
        if held.kind == "spikes" and self.x_zero_point is not None:
            raise self.fail("spikes have no zero point")


@phase_rule("sparse")
def _phase(op: Op, phase: str) -> str | None:
    """Placed products say in which order their loops run, scheduled ops when they run."""
    needed: tuple[str, ...] = ()
    if isinstance(op, Product) and at_least(phase, "placed"):
        needed = (LOOPS, SPATIAL)
    if at_least(phase, "scheduled"):
        needed = (*needed, START, END)
    missing = [name for name in needed if name not in op.annotations]
    return f"{op.name} lacks {', '.join(missing)}" if missing else None
