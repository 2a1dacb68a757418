"""Lowering of weights that adapt: matrices whose codes are state, transposed reads, updates."""

from __future__ import annotations

from imcc.backends.crossbar.dialect import Mvm
from imcc.backends.crossbar.learning_ops import (
    ReadCodes,
    TransposedMvm,
    Update,
    largest_driven,
)
from imcc.backends.crossbar.lowering import Adapting, Mapping, handle_of, turned
from imcc.ir.dialects import core, learn, quant
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Function, FunctionResult
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.rules import LOWER


@LOWER.register(learn.TransposedProduct, backend="crossbar")
def _transposed(op: learn.TransposedProduct, rewriter: Rewriter, mapping: Mapping) -> None:
    """Codes of errors with channels last, a read for each position, windows added up."""
    function = op.parent
    if function is None:
        raise ValueError("the op is not in a function")
    new: list[Op] = []
    x, spatial = op.x, len(op.size)
    if spatial:
        rank = tensor(x).rank
        channel = rank - 1 - spatial
        order = (*range(channel), *range(channel + 1, rank), channel)
        moved = core.Permute(x=x, axes=order)
        new.append(moved)
        x = moved.y
    keys = mapping.target.keys
    bits = tensor(op.x).quant.bits
    made: Mvm | TransposedMvm
    if keys.learning.transposed == "copy":
        state = mapping.copy(rewriter, op)
        handle, kind = handle_of(function, state, rewriter)
        made = Mvm(
            x=x,
            matrix=handle,
            input_bits=bits,
            dac_bits=keys.dac.bits,
            adc_bits=keys.adc.bits,
            adc_step=mapping.target.initial_step(kind.run_rows),
            converts=keys.adc.converts if kind.paired else "column",
            stream=mapping.stream(f"{op.scope or state}.back"),
        )
    else:
        state = mapping.matrix(rewriter, op, op.groups)
        handle, kind = handle_of(function, state, rewriter)
        made = TransposedMvm(
            x=x,
            held=handle,
            input_bits=bits,
            dac_bits=keys.dac.bits,
            adc_bits=keys.adc.bits,
            adc_step=mapping.target.initial_step(largest_driven(kind)),
            converts=keys.adc.converts if kind.paired else "column",
            stream=mapping.stream(f"{op.scope or state}.back"),
        )
    new.append(made)
    result = made.y
    if spatial:
        kernel = tuple(int(str(size)) for size in tensor(op.weight).shape[2:])
        folded = learn.Fold(
            x=result,
            size=op.size,
            kernel=kernel,
            stride=op.stride,
            padding=op.padding,
            dilation=op.dilation,
        )
        new.append(folded)
        result = folded.y
    rewriter.replace(op, new, result)


def write_back(function: Function, rewriter: Rewriter, mapping: Mapping) -> None:
    """Write what a function makes of adapting weights to their cells; drop states it reads no more.

    With ``learning.weights = "digital"`` the floating-point state stays and the cells follow it;
    with ``"cells"`` the weight that is updated is what the cells hold.
    """
    last = function.terminator
    if last is None:
        return
    values, results = list(last.operands), list(function.results)
    for name, weight in mapping.adapting.items():
        argument = function.state_argument(name)
        place = next((i for i, item in enumerate(results) if item.state == name), None)
        if argument is None or place is None or values[place] is argument:
            continue
        following = values[place]
        if mapping.target.keys.learning.weights == "cells":
            _read_back(function, argument, weight, rewriter)
            del values[place], results[place]
        codes = _codes(following, weight, rewriter, mapping, last)
        for state in filter(None, (weight.cells, weight.copy)):
            handle, kind = handle_of(function, state, rewriter)
            update = Update(
                held=handle,
                codes=codes if state == weight.cells else turned(codes, last, rewriter),
                write=mapping.target.keys.learning.write,
                stream=mapping.stream(f"{state}.update"),
            )
            rewriter.insert_before(last, update)
            values.append(update.matrix)
            results.append(FunctionResult(kind, state))
    rewriter.set_operand(last, "values", values)
    rewriter.set_results(function, results)
    _erase_unread(function, rewriter)


def _read_back(function: Function, argument: Value, weight: Adapting, rewriter: Rewriter) -> None:
    """Let what reads the floating-point weight read the cells."""
    handle, _ = handle_of(function, weight.cells, rewriter)
    first = next(op for op in function.ops if op in argument.users)
    sizes = tuple(int(str(size)) for size in tensor(argument).shape)
    held = rewriter.insert_before(first, ReadCodes(held=handle, shape=sizes, axis=0))
    scale = core.Constant.of(weight.scale, rewriter.module.resources[weight.scale].type)
    rewriter.insert_before(first, scale)
    real = rewriter.insert_before(first, quant.Dequantize(x=held.codes, scale=scale.y))
    rewriter.replace_uses(argument, real.y)


def _codes(value: Value, weight: Adapting, rewriter: Rewriter, mapping: Mapping, last: Op) -> Value:
    """Codes of an updated weight."""
    scale = core.Constant.of(weight.scale, rewriter.module.resources[weight.scale].type)
    rewriter.insert_before(last, scale)
    learning = mapping.target.keys.learning
    made: quant.Quantize | learn.StochasticQuantize
    if learning.weights == "cells" and learning.rounding == "stochastic":
        stream = mapping.stream(f"{weight.cells}.rounding")
        made = learn.StochasticQuantize(
            x=value, scale=scale.y, bits=weight.bits, axis=0, stream=stream
        )
    else:
        made = quant.Quantize(x=value, scale=scale.y, bits=weight.bits, signed=True, axis=0)
    owner = value.owner
    if owner is not None:
        made._set("scope", owner.scope)
        made._set("loc", owner.loc)
    return rewriter.insert_before(last, made).result


def _erase_unread(function: Function, rewriter: Rewriter) -> None:
    """Erase conversions that only fed products, and take states away that nothing reads."""
    for op in reversed(list(function.ops)):
        if isinstance(op, (quant.Quantize, quant.Dequantize)) and not op.result.users:
            rewriter.erase(op, "the cells hold its codes")
    for value, state in list(zip(function.arguments, function.argument_states, strict=True)):
        if state is not None and not value.users:
            rewriter.remove_argument(function, value)
