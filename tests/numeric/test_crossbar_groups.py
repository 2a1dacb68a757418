"""Matrices with groups of scales: each group's sum leaves the array by itself, exactly."""

import pytest
import torch

from imcc.backends.api import find_backend
from imcc.backends.targets import find_target
from imcc.ir import parse_module
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.types import QuantType

QUIET = ("device.write_noise.sigma_fraction=0.0", "device.read_noise.sigma_fraction=0.0")


def program(signed, bits, rows, group, zeros, step):
    sign, kind = ("s", "") if signed else ("u", ", asymmetric")
    blocks = -(-rows // group)
    slices = -(-(bits - (1 if signed else 0)) // 2)
    extra = ", weight_zero_point=%z" if zeros else ""
    constant = f"%z = core.constant {{value = @z}} : tensor<5x{blocks}xi32>" if zeros else ""
    matrix = (
        f"!xbar.matrix<rows={rows}, columns=5, groups=1, weight_bits={bits}, "
        f"signed={str(signed).lower()}, cell_bits=2, slices={slices}, "
        f'encoding="differential", array_rows=128, array_columns=128, row_block={group}, '
        'row_order="channel", packing="separate">'
    )
    codes = f"tensor<5x{rows}xq<{sign}{bits}, axis=0, group={group}{kind}>>"
    return f"""// imc 1
module @m phase("mapped") {{
  resource @w : {codes}
  {f"resource @z : tensor<5x{blocks}xi32>" if zeros else ""}
  func @inference(%x: tensor<Bx{rows}xq<u8>>) -> tensor<Bx5x{blocks}xf32> {{
    %c = core.constant {{value = @w}} : {codes}
    {constant}
    %m = xbar.program %c {{cell_bits = 2, array_rows = 128, array_columns = 128,
      stream = "w"}} : {matrix}
    %y = xbar.mvm %x, %m{extra} {{input_bits = 8, adc_bits = 12, adc_step = {step},
      stream = "r"}} : tensor<Bx5x{blocks}xf32>
    core.return %y
  }}
}}
"""


@pytest.mark.parametrize("step", [1.0, 0.5])
@pytest.mark.parametrize("rows, group", [(24, 8), (20, 8), (300, 128), (300, 150)])
@pytest.mark.parametrize("signed, zeros", [(True, False), (False, True)])
def test_sums_of_groups_are_exact(rows, group, signed, zeros, step):
    # A step of half a level loses nothing, but takes the simulated read instead of the product.
    generator = torch.Generator().manual_seed(rows)
    element = QuantType(4, signed, 0, group, signed)
    low, high = element.minimum, element.maximum + 1
    codes = torch.randint(low, high, (5, rows), generator=generator)
    blocks = -(-rows // group)
    zero = torch.randint(0, 16, (5, blocks), generator=generator, dtype=torch.int32)
    store = ResourceStore()
    store.put("w", codes, element)
    if zeros:
        store.put("z", zero)
    module = parse_module(program(signed, 4, rows, group, zeros, step))
    target = find_target("rram", QUIET)
    find_backend("crossbar").load_rules()
    x = torch.randint(0, 256, (3, rows), generator=generator).float()
    made = evaluate_function(
        module.function(), (x,), resources=store, backend="crossbar", target=target
    ).outputs[0]
    weights = codes.double()
    if zeros:
        weights = weights - zero.double().repeat_interleave(group, 1)[:, :rows]
    wanted = torch.stack(
        [
            x.double()[:, at : at + group] @ weights[:, at : at + group].T
            for at in range(0, rows, group)
        ],
        dim=-1,
    )
    assert torch.equal(made.double(), wanted)
