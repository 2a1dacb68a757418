"""From integer products to crossbars: the lowering rules that ``map-crossbars`` applies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from imcc.backends.crossbar.dialect import MatrixType, Mvm, Packing, Program
from imcc.backends.crossbar.target import CrossbarTarget
from imcc.ir.dialects import core, learn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, FunctionResult, State
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.rules import LOWER
from imcc.passes.learning.adapting import state_of

Product = quant.Linear | quant.Conv | learn.TransposedProduct
"""Ops whose weight lies in a matrix."""

TRANSPOSED = 0
"""In place of a number of groups: the copy of a matrix that holds it transposed."""


@dataclass
class Adapting:
    """A weight that adapts: states of its cells and how its codes are made.

    ``copy`` is the state of the transposed matrix, if there is one; ``scale`` the resource of the
    channel scales.
    """

    cells: str
    scale: str
    bits: int
    copy: str | None = None


@dataclass(frozen=True)
class _Coded:
    scale: str
    bits: int


@dataclass
class Mapping:
    """What lowering rules share: the target, the function that programs, matrices made so far."""

    target: CrossbarTarget
    deploy: Function
    states: dict[tuple[str, int], str] = field(default_factory=dict)
    """State of each (weight resource or adapting state, groups)."""
    adapting: dict[str, Adapting] = field(default_factory=dict)
    """Weights that adapt, by the state that holds them in floating point."""
    results: list[tuple[Value, str]] = field(default_factory=list)
    streams: set[str] = field(default_factory=set)

    def stream(self, wanted: str) -> str:
        """A name of random draws that nothing else uses."""
        made, number = wanted, 0
        while made in self.streams:
            number += 1
            made = f"{wanted}.{number}"
        self.streams.add(made)
        return made

    def matrix(self, rewriter: Rewriter, op: Product, groups: int) -> str:
        """The state that holds the op's weights; its programming is added to ``@deploy``."""
        source, state = self._source(op)
        key = (source, groups)
        if key in self.states:
            return self.states[key]
        base = source.removesuffix(".codes")
        if groups > 1 and any(name == source for name, _ in self.states):
            base = f"{base}.groups{groups}"
        array = self.target.keys.array
        convolution = isinstance(op, quant.Conv) and array.kernel_mapping == "per_position"
        name = self._program(
            rewriter,
            op,
            self._codes(rewriter, op),
            base,
            groups=groups,
            row_order="channel" if not convolution else "position",
            packing=array.grouped if groups > 1 else "separate",
        )
        self.states[key] = name
        if state is not None:
            self.adapting[source] = Adapting(name, str(state.scale), state.bits)
        return name

    def copy(self, rewriter: Rewriter, op: learn.TransposedProduct) -> str:
        """The state of a second matrix that holds the op's weights transposed."""
        source, state = self._source(op)
        key = (source, TRANSPOSED)
        if key in self.states:
            return self.states[key]
        self.matrix(rewriter, op, op.groups)
        codes = turned(self._codes(rewriter, op), self.deploy, rewriter)
        base = f"{source.removesuffix('.codes')}.transposed"
        name = self._program(rewriter, op, codes, base)
        self.states[key] = name
        if state is not None:
            self.adapting[source].copy = name
        return name

    def _program(
        self,
        rewriter: Rewriter,
        op: Product,
        codes: Value,
        base: str,
        *,
        groups: int = 1,
        row_order: Literal["channel", "position"] = "channel",
        packing: Packing = "separate",
    ) -> str:
        array = self.target.keys.array
        program = Program(
            codes=codes,
            groups=groups,
            cell_bits=array.cell_bits,
            encoding=array.encoding,
            array_rows=array.rows,
            array_columns=array.columns,
            row_order=row_order,
            packing=packing,
            stream=self.stream(f"{base}.write"),
            scope=op.scope,
            loc=op.loc,
        )
        rewriter.append(self.deploy, program)
        name = f"{base}.cells"
        rewriter.add_state(State(name, program.matrix.type))
        self.results.append((program.matrix, name))
        return name

    def _source(self, op: Product) -> tuple[str, _Coded | None]:
        """Name of the constant or state that a weight's codes come from; how, if it is a state."""
        source = op.weight.owner
        if isinstance(source, core.Constant):
            return str(source.value), None
        state = coded_state(op, op.weight)
        if isinstance(source, quant.Quantize) and state is not None:
            scale = source.scale.owner
            if isinstance(scale, core.Constant):
                return state, _Coded(str(scale.value), source.bits)
        raise op.fail("the weight is neither a constant nor codes of a state")

    def _codes(self, rewriter: Rewriter, op: Product) -> Value:
        """The op's codes in ``@deploy``: a constant, or those of what the state starts from."""
        source, state = self._source(op)
        if state is None:
            constant = core.Constant.of(source, tensor(op.weight), scope=op.scope)
            return rewriter.append(self.deploy, constant).y
        init = rewriter.module.states[source].init
        if init is None:
            raise op.fail(f"the state @{source} starts from nothing")
        resources = rewriter.module.resources
        start = core.Constant.of(init, resources[init].type, scope=op.scope)
        scale = core.Constant.of(state.scale, resources[state.scale].type, scope=op.scope)
        coded = quant.Quantize(
            x=start.y, scale=scale.y, bits=state.bits, signed=True, axis=0, scope=op.scope
        )
        for item in (start, scale, coded):
            rewriter.append(self.deploy, item)
        return coded.y

    def finish(self, rewriter: Rewriter) -> None:
        """End ``@deploy``: it returns every matrix as the new value of its state."""
        rewriter.append(self.deploy, core.Return(values=tuple(value for value, _ in self.results)))
        results = [FunctionResult(value.type, name) for value, name in self.results]
        rewriter.set_results(self.deploy, results)


def coded_state(op: Op, weight: Value) -> str | None:
    """The state that the codes ``weight`` are made of, if it is one."""
    made = weight.owner
    return state_of(op, made.x) if isinstance(made, quant.Quantize) else None


def turned(codes: Value, place: Op | Function, rewriter: Rewriter) -> Value:
    """Codes ``[N, ...]`` as ``[K, N]``, in front of an op or at the end of a function."""
    kind = tensor(codes)
    rows = math.prod(int(str(size)) for size in kind.shape[1:])
    flat = core.Reshape(x=codes, shape=(kind.shape[0], rows))
    moved = core.Permute(x=flat.y, axes=(1, 0))
    for item in (flat, moved):
        if isinstance(place, Function):
            rewriter.append(place, item)
        else:
            rewriter.insert_before(place, item)
    return moved.y


def handle_of(function: Function, state: str, rewriter: Rewriter) -> tuple[Value, MatrixType]:
    """The argument of a function that carries a matrix, added if it is not there; its type."""
    kind = rewriter.module.states[state].type
    if not isinstance(kind, MatrixType):
        raise TypeError(f"state @{state} is no matrix")
    handle = function.state_argument(state)
    return handle or rewriter.add_argument(function, kind, state, state), kind


@LOWER.register(quant.Linear, quant.Conv, backend="crossbar")
def _product(op: quant.Linear | quant.Conv, rewriter: Rewriter, mapping: Mapping) -> None:
    function = op.parent
    if function is None:
        raise ValueError("the op is not in a function")
    groups = 1
    kernel: tuple[int, ...] = ()
    stride, padding, dilation = kernel, kernel, kernel
    if isinstance(op, quant.Conv):
        groups, stride, padding, dilation = op.groups, op.stride, op.padding, op.dilation
        kernel = tuple(size for size in tensor(op.weight).shape[2:] if isinstance(size, int))
    state = mapping.matrix(rewriter, op, groups)
    handle, kind = handle_of(function, state, rewriter)
    keys = mapping.target.keys
    new: list[Op] = []
    weight_zero = op.weight_zero_point
    if weight_zero is not None and not tensor(weight_zero).shape:
        spread = core.Expand(x=weight_zero, shape=(kind.columns,))
        new.append(spread)
        weight_zero = spread.y
    made = Mvm(
        x=op.x,
        matrix=handle,
        x_zero_point=op.x_zero_point,
        weight_zero_point=weight_zero,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        input_bits=tensor(op.x).quant.bits,
        dac_bits=keys.dac.bits,
        adc_bits=keys.adc.bits,
        adc_step=mapping.target.initial_step(kind.run_rows),
        converts=keys.adc.converts if kind.paired else "column",
        stream=mapping.stream(f"{op.scope or state}.read"),
    )
    rewriter.replace(op, [*new, made], made.y)


def erase_unused(function: Function, rewriter: Rewriter) -> None:
    """Erase constants that only fed products."""
    for op in list(function.ops):
        if isinstance(op, core.Constant) and not op.y.users:
            rewriter.erase(op, "its codes are programmed by @deploy")


def erase_states(rewriter: Rewriter) -> None:
    """Drop states that no function takes any more: their weights are in cells alone."""
    used = {
        state
        for function in rewriter.module.functions.values()
        for state in (*function.argument_states, *(item.state for item in function.results))
    }
    for name in [name for name in rewriter.module.states if name not in used]:
        rewriter.remove_state(name)
