"""Quantised weights as a checkpoint of the compressed-tensors format, which transformers loads.

Codes, scales and zero points are written as they are (``pack-quantized``: codes of b bits packed
without gaps into 32-bit words); nothing is quantised again. All other tensors come from the model's
``state_dict``, changed where the passes changed them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from imcc.driver.compiled import CompiledModel
from imcc.ir import codes
from imcc.ir.diagnostics import error, nearest
from imcc.ir.dialects import core, nn, quant
from imcc.ir.types import QuantType
from imcc.runtime.output import new_folder

if TYPE_CHECKING:
    from torch import nn as torch_nn

MADE = re.compile(r"(\.(codes|scaled|folded)(\.\d+)?)+$")
"""What passes append to the name of a weight that they made anew; a number tells equals apart."""


@dataclass(frozen=True)
class Exported:
    """What was written: quantised layers, and those kept dense with the reason."""

    folder: Path
    quantised: tuple[str, ...]
    dense: Mapping[str, str]


def export_checkpoint(made: CompiledModel, model: torch_nn.Module, folder: str | Path) -> Exported:
    """Write ``model.safetensors`` and ``config.json`` for ``transformers`` into ``folder``.

    ``model`` is the torch module that ``made`` was compiled from, or a module that holds it; it
    needs a ``config`` with ``to_dict()``. A layer whose codes the format cannot hold (a last group
    that is short, a convolution) is written dense, as the values that its codes stand for, and
    named in the result. Where a product shares the table of an embedding, the product gets the
    codes, the table stays in float, and the two are tied no more. Raises :class:`DiagnosticError`
    if nothing is quantised, if weights are not those of the model, or if the folder cannot be
    written.
    """
    prefix, inner = _pretrained(model)
    tensors = {name: tensor.detach() for name, tensor in inner.state_dict().items()}
    embeddings = {n for n, m in inner.named_modules() if isinstance(m, torch.nn.Embedding)}
    untied = False
    groups: dict[str, dict[str, Any]] = {}
    dense: dict[str, str] = {}
    for op in made.module.walk():
        if isinstance(op, (nn.Linear, nn.Conv)) and isinstance(op.weight.owner, quant.Dequantize):
            held = op.weight.owner
            name = _target(_constant(held.x), prefix, tensors)
            if name.removesuffix(".weight") in embeddings:
                # Only the product reads codes; the table stays as it is.
                name, untied = _tied_layer(name, inner), True
            reason = _refused(held, op)
            if reason is not None:
                dense[name] = reason
                tensors[name] = _real(made, held).to(tensors[name].dtype)
                continue
            layer = name.removesuffix(".weight")
            tensors.pop(name, None)
            tensors.update(_packed(made, held, layer))
            groups[layer] = _scheme(core.tensor(held.x).quant)
        for value in op.operands if not isinstance(op, quant.Dequantize) else ():
            source = value.owner
            if isinstance(source, core.Constant) and MADE.search(str(source.value)):
                name = _target(str(source.value), prefix, tensors)
                tensors[name] = made.resources.get(source.value).to(tensors[name].dtype)
    if not groups:
        raise error(
            codes.BAD_DATA,
            "no weight of the program is quantised in a form that the checkpoint holds",
            reason="; ".join(f"{name}: {reason}" for name, reason in dense.items()) or None,
            help="compile with a pipeline that holds quantize-weights, for the target reference",
        )
    config = inner.config.to_dict()  # type: ignore[operator, union-attr]
    config["quantization_config"] = _config(groups, inner)
    if untied:
        config["tie_word_embeddings"] = False
    with new_folder(Path(folder)) as beside:
        from safetensors.torch import save_file

        plain = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(plain, str(beside / "model.safetensors"), metadata={"format": "pt"})
        (beside / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    return Exported(Path(folder), tuple(groups), dense)


def _pretrained(model: torch_nn.Module) -> tuple[str, torch_nn.Module]:
    for name, module in model.named_modules():
        if callable(getattr(getattr(module, "config", None), "to_dict", None)):
            return (f"{name}." if name else ""), module
    raise error(
        codes.BAD_DATA,
        f"{type(model).__name__} has no config of transformers in it",
        help="only models of the package transformers have a checkpoint format to write",
    )


def _tied_layer(embedding: str, model: torch_nn.Module) -> str:
    """The weight of the linear layer that shares the table of an embedding."""
    table = model.get_parameter(embedding)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.weight is table:
            return f"{name}.weight"
    raise error(
        codes.BAD_DATA,
        f"the codes of {embedding} are those of a product, and no linear layer shares the table",
        help="leave its product in float by a plan, see docs/how-to/quantise-weights.md",
    )


def _constant(value: Any) -> str:
    owner = value.owner
    if not isinstance(owner, core.Constant):
        raise error(codes.BAD_DATA, f"the codes %{value.name} are not stored in the program")
    return str(owner.value)


def _target(resource: str, prefix: str, tensors: Mapping[str, Tensor]) -> str:
    name = MADE.sub("", resource).removeprefix(prefix)
    if name not in tensors and f"{name.removesuffix('.weight')}.weight_packed" not in tensors:
        raise error(
            codes.BAD_DATA,
            f"the model has no tensor {name!r}",
            suggestions=nearest(name, tensors),
            help="give the torch model that the program was compiled from",
        )
    return name


def _refused(held: quant.Dequantize, op: nn.Linear | nn.Conv) -> str | None:
    kind = core.tensor(held.x)
    if isinstance(op, nn.Conv):
        return "the format holds matrices only"
    if kind.quant.axis != 0:
        return "the format needs a scale for each output channel or group"
    size = int(str(kind.shape[-1]))
    if kind.quant.group is not None and size % kind.quant.group:
        return f"{size} inputs are no multiple of the group size {kind.quant.group}"
    return None


def _real(made: CompiledModel, held: quant.Dequantize) -> Tensor:
    from imcc.ir.semantics.quant import dequantise

    stored = made.resources.get(_constant(held.x)).float()
    zero = None if held.zero_point is None else made.resources.get(_constant(held.zero_point))
    scale = made.resources.get(_constant(held.scale))
    return dequantise(stored, scale, zero, core.tensor(held.x).quant)


def _packed(made: CompiledModel, held: quant.Dequantize, layer: str) -> dict[str, Tensor]:
    kind = core.tensor(held.x).quant
    stored = made.resources.get(_constant(held.x)).int()
    scale = made.resources.get(_constant(held.scale))
    # The format's codes are signed: unsigned ones move down by half the range, and so does zero.
    shift = 0 if kind.signed else 2 ** (kind.bits - 1)
    made_tensors = {
        f"{layer}.weight_packed": pack(stored - shift, kind.bits),
        f"{layer}.weight_scale": scale.reshape(len(stored), -1),
        f"{layer}.weight_shape": torch.tensor(stored.shape),
    }
    if held.zero_point is not None:
        zero = made.resources.get(_constant(held.zero_point)).reshape(len(stored), -1)
        packed = pack((zero - shift).T.contiguous(), kind.bits)
        made_tensors[f"{layer}.weight_zero_point"] = packed.T
    return made_tensors


def pack(values: Tensor, bits: int) -> Tensor:
    """Signed codes ``[N, K]`` as 32-bit words ``[N, ceil(K * bits / 32)]``, least bits first."""
    offset = (values + 2 ** (bits - 1)).numpy().astype(np.uint8)
    single = np.unpackbits(offset[..., None], axis=-1, count=bits, bitorder="little")
    flat = single.reshape(len(offset), -1)
    short = -flat.shape[1] % 32
    packed = np.packbits(np.pad(flat, ((0, 0), (0, short))), axis=1, bitorder="little")
    return torch.from_numpy(packed.view("<i4").copy())


def _scheme(kind: QuantType) -> dict[str, Any]:
    return {
        "num_bits": kind.bits,
        "type": "int",
        "symmetric": kind.symmetric,
        "strategy": "channel" if kind.group is None else "group",
        "group_size": kind.group,
    }


def _config(groups: Mapping[str, dict[str, Any]], model: torch_nn.Module) -> dict[str, Any]:
    schemes: dict[str, list[str]] = {}
    for layer, scheme in groups.items():
        schemes.setdefault(json.dumps(scheme), []).append(layer)
    asymmetric = any(not json.loads(scheme)["symmetric"] for scheme in schemes)
    if asymmetric and len(schemes) > 1:
        raise error(
            codes.BAD_DATA,
            f"transformers decodes zero points of a single format, the program has {len(schemes)}",
            help='use scheme="symmetric" for a mixed plan, or one format for all layers',
        )
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        # compressed-tensors makes room for zero points that are not packed, so a layer with packed
        # ones can only be decoded while it loads.
        "dequantize": asymmetric,
        "config_groups": {
            f"group_{number}": {
                "targets": layers,
                "weights": json.loads(scheme),
                "format": "pack-quantized",
            }
            for number, (scheme, layers) in enumerate(schemes.items())
        },
        "ignore": [name for name in linear if name not in groups],
    }
