"""The crossbar simulator against integer meaning (noise off) and against theory (noise on)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imcc.backends.crossbar import simulate
from imcc.backends.crossbar.dialect import MatrixType, Mvm
from imcc.backends.crossbar.noise import GaussianWrite
from imcc.backends.targets import find_target
from imcc.ir.dialects import core, quant
from imcc.ir.module import Function, FunctionResult, Module
from imcc.ir.semantics.draws import Draws
from imcc.ir.semantics.interpreter import evaluate_function
from imcc.ir.semantics.resources import ResourceStore
from imcc.ir.types import QuantType, TensorType
from imcc.ir.verifier import verify
from imcc.passes.infrastructure import PassContext, parse_pipeline, run_pipeline

QUIET = ("device.write_noise.sigma_fraction=0.0", "device.read_noise.sigma_fraction=0.0")


class Product:
    """A module with one product of codes, before and after mapping."""

    def __init__(self, x, weight, element, target, *, zero=None, conv=None):
        self.store, self.target = ResourceStore(), target
        module = Module("product")
        batch = module_shape(x)
        function = module.add_function(Function("inference"))
        arg = function.add_argument(TensorType(batch, element), "x")
        held = module.add_resource(self.store.put("w.codes", weight, QuantType(8, True, 0)))
        w = core.Constant.of(held.name, held.type)
        function.append(w)
        zero_value = None
        if zero is not None:
            held = module.add_resource(self.store.put("z", torch.tensor(zero, dtype=torch.int32)))
            z = core.Constant.of(held.name, held.type)
            function.append(z)
            zero_value = z.y
        if conv is None:
            op = quant.Linear(x=arg, weight=w.y, x_zero_point=zero_value)
        else:
            op = quant.Conv(x=arg, weight=w.y, x_zero_point=zero_value, **conv)
        function.append(op)
        # The rescale takes integers and floats alike, so the mapped module verifies.
        held = module.add_resource(self.store.put("one", torch.tensor(1.0, dtype=torch.float64)))
        one = core.Constant.of(held.name, held.type)
        function.append(one)
        axis = -1 if conv is None else -1 - len(conv["stride"])
        out = quant.Rescale(acc=op.y, scale=one.y, axis=axis)
        function.append(out)
        function.append(core.Return(values=(out.y,)))
        function.results = [FunctionResult(out.y.type)]
        verify(module)
        self.x, self.neutral, self.mapped = x, module, module.clone()
        self.context = PassContext(resources=self.store, target=target, calibration=[(x,)])
        run_pipeline(self.mapped, parse_pipeline("map-crossbars"), self.context)
        self.mvm = next(op for op in self.mapped.walk() if isinstance(op, Mvm))

    def calibrate(self):
        run_pipeline(self.mapped, parse_pipeline("calibrate-adc"), self.context)
        return self.mvm.adc_step

    def expected(self):
        made = evaluate_function(self.neutral.function(), [self.x], resources=self.store)
        return made.outputs[0]

    def states(self, draws=None, trials=1):
        return evaluate_function(
            self.mapped.function("deploy"),
            [],
            resources=self.store,
            backend="crossbar",
            target=self.target,
            draws=draws,
            trials=trials,
        ).states

    def read(self, states, x=None, draws=None, trials=1):
        return evaluate_function(
            self.mapped.function(),
            [self.x if x is None else x],
            resources=self.store,
            states=states,
            backend="crossbar",
            target=self.target,
            draws=draws,
            trials=trials,
        ).outputs[0]


def module_shape(x):
    from imcc.ir.dims import parse_dim

    return (parse_dim("B"), *x.shape[1:])


def codes(shape, element, generator):
    made = torch.randint(element.minimum, element.maximum + 1, shape, generator=generator)
    return made.to(torch.float32)


ELEMENTS = st.sampled_from(["u8", "s8", "zero", "u4"])


def element_of(name):
    made = {
        "u8": QuantType(8, False),
        "s8": QuantType(8, True),
        "zero": QuantType(8, False, None, None, False),
        "u4": QuantType(4, False),
    }
    return made[name], (37 if name == "zero" else None)


def slow(monkeypatch):
    monkeypatch.setattr(simulate, "lossless", lambda *args: False)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 4),
    ELEMENTS,
    st.sampled_from([1, 2, 3]),
    st.sampled_from([16, 128]),
    st.integers(0, 99),
)
def test_linear_equals_integers_on_both_paths(rows, columns, batch, name, cell, array, seed):
    generator = torch.Generator().manual_seed(seed)
    element, zero = element_of(name)
    settings_ = [*QUIET, f"array.cell_bits={cell}", f"array.rows={array}", "adc.bits=10"]
    target = find_target("rram", settings_)
    x = codes((batch, rows), element, generator)
    weight = torch.randint(-127, 128, (columns, rows), generator=generator)
    product = Product(x, weight, element, target, zero=zero)
    expected = product.expected()
    states = product.states()
    assert torch.equal(product.read(states), expected)
    with pytest.MonkeyPatch.context() as patch:
        slow(patch)
        assert torch.equal(product.read(states), expected)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(1, 3, 4), (2, 4, 6), (4, 4, 4), (1, 20, 3)]),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    ELEMENTS,
    st.integers(0, 99),
)
def test_convolution_equals_integers_on_both_paths(sizes, k, stride, pad, dilation, name, seed):
    groups, channels, outputs = sizes
    generator = torch.Generator().manual_seed(seed)
    element, zero = element_of(name)
    target = find_target("rram", [*QUIET, "adc.bits=10"])
    x = codes((2, channels, 7, 6), element, generator)
    weight = torch.randint(-127, 128, (outputs, channels // groups, k, k), generator=generator)
    window = {
        "stride": [stride, 1],
        "padding": [pad, 1],
        "dilation": [dilation, 1],
        "groups": groups,
    }
    product = Product(x, weight, element, target, zero=zero, conv=window)
    expected = product.expected()
    states = product.states()
    assert torch.equal(product.read(states), expected)
    with pytest.MonkeyPatch.context() as patch:
        slow(patch)
        assert torch.equal(product.read(states), expected)
        patch.setattr(simulate, "BLOCK", 1000)
        patch.setattr(simulate, "WORK", 1000)
        assert torch.equal(product.read(states), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["differential", "sign_arrays", "offset", "bias_column"]),
    st.sampled_from(["im2col", "per_position"]),
    st.sampled_from(["separate", "diagonal", "stacked"]),
    st.sampled_from([(1, 5, 4), (2, 4, 6), (4, 4, 4)]),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([(7, 15), (16, 33), (128, 128)]),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    ELEMENTS,
    st.integers(0, 99),
)
def test_every_mapping_computes_the_same_integers(
    encoding, kernel, grouped, sizes, dac, array, cell, pair, name, seed
):
    groups, channels, outputs = sizes
    generator = torch.Generator().manual_seed(seed)
    element, zero = element_of(name)
    pair = pair and encoding in ("differential", "sign_arrays")
    settings_ = [
        *QUIET,
        f"array.encoding={encoding}",
        f"array.kernel_mapping={kernel}",
        f"array.grouped={grouped}",
        f"array.rows={array[0]}",
        f"array.columns={array[1]}",
        f"array.cell_bits={cell}",
        f"dac.bits={dac}",
        "adc.bits=16",
        f"adc.converts={'pair' if pair else 'column'}",
    ]
    x = codes((2, channels, 5, 4), element, generator)
    weight = torch.randint(-128, 128, (outputs, channels // groups, 3, 2), generator=generator)
    if encoding in ("differential", "sign_arrays"):
        weight = weight.clamp(-127)
    window = {"stride": [1, 2], "padding": [1, 0], "dilation": [1, 1], "groups": groups}
    product = Product(x, weight, element, find_target("rram", settings_), zero=zero, conv=window)
    product.mvm.__dict__.update(adc_step=1.0, adc_bits=32)
    expected, states = product.expected(), product.states()
    assert torch.equal(product.read(states), expected)
    with pytest.MonkeyPatch.context() as patch:
        slow(patch)
        assert torch.equal(product.read(states), expected)
        patch.setattr(simulate, "USE_KERNEL", False)
        assert torch.equal(product.read(states), expected)


@pytest.mark.parametrize("encoding", ["differential", "sign_arrays", "offset", "bias_column"])
@pytest.mark.parametrize("pair", ["column", "pair"])
def test_both_forms_agree_on_devices_that_are_not_ideal(encoding, pair):
    if pair == "pair" and encoding not in ("differential", "sign_arrays"):
        pytest.skip("needs pairs")
    generator = torch.Generator().manual_seed(0)
    element = QuantType(8, False)
    target = find_target(
        "rram",
        [
            QUIET[1],
            f"array.encoding={encoding}",
            f"adc.converts={pair}",
            "adc.offset_lsb=0.7",
            "device.stuck.off_fraction=0.05",
            "dac.offset_lsb=0.05",
            "array.wires.model=fast",
            "array.wires.word_line_ohm=2.0",
        ],
    )
    x = codes((5, 200), element, generator)
    weight = torch.randint(-127, 128, (9, 200), generator=generator)
    product = Product(x, weight, element, target)
    product.calibrate()
    draws = Draws(1, (0, 1), tuple(range(5)))
    states = product.states(draws, 2)
    x = x.repeat(2, 1)
    kernel = product.read(states, x, draws, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "USE_KERNEL", False)
        assert torch.equal(product.read(states, x, draws, 2), kernel)
    error = (kernel[:5] - product.expected()).std() / product.expected().std()
    assert 0.01 < float(error) < 0.5


def test_convolution_over_one_axis_and_multi_bit_drivers():
    generator = torch.Generator().manual_seed(0)
    element = QuantType(8, False)
    target = find_target("rram", [*QUIET, "adc.bits=13", "dac.bits=3"])
    x = codes((2, 5, 11), element, generator)
    weight = torch.randint(-127, 128, (4, 5, 3), generator=generator)
    window = {"stride": [2], "padding": [1], "dilation": [1], "groups": 1}
    product = Product(x, weight, element, target, conv=window)
    assert torch.equal(product.read(product.states()), product.expected())
    with pytest.MonkeyPatch.context() as patch:
        slow(patch)
        assert torch.equal(product.read(product.states()), product.expected())


def test_offset_of_a_finite_on_off_ratio_cancels_in_the_pair():
    generator = torch.Generator().manual_seed(0)
    element = QuantType(8, False)
    target = find_target("rram", [*QUIET, "adc.bits=12", "array.dummy_column=false"])
    x = codes((5, 100), element, generator)
    product = Product(x, torch.randint(-127, 128, (4, 100), generator=generator), element, target)
    # Offsets of one third of a level: rounding of a pair agrees, so nothing is lost.
    assert product.calibrate() == 1.0
    assert torch.equal(product.read(product.states()), product.expected())


def test_narrow_converter_clips_and_calibration_sets_its_range():
    element = QuantType(8, False)
    target = find_target("rram", [*QUIET, "adc.bits=6"])
    x, weight = torch.full((1, 128), 255.0), torch.full((1, 128), 127)
    product = Product(x, weight, element, target)
    # All 128 cells of a column conduct: the top slice holds 1, the others 3.
    assert product.calibrate() == pytest.approx(384 / 63)
    assert product.read(product.states()).item() == pytest.approx(
        255 * (63 * 21 + 64 * 21) * 384 / 63
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(product.mvm.__dict__, "adc_step", 1.0)
        assert product.read(product.states()).item() == 255 * 63 * 85


def test_calibration_counts_every_sum_once():
    monitor = simulate.ColumnMonitor()
    monitor.record(torch.tensor([0.0, 1.0, 2.0, 2.0]))
    monitor.record(torch.tensor([7.0, 0.5]))
    assert monitor.counts.tolist() == [1, 2, 2, 0, 0, 0, 0, 1]
    assert monitor.quantile(1.0) == 7
    assert monitor.quantile(0.5) == 1


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 17)
)
def test_every_weight_is_in_the_cells_exactly_once(groups, rows, columns, cell_bits, array_rows):
    slices = math.ceil(7 / cell_bits)
    kind = MatrixType(
        rows * groups,
        columns * groups,
        groups,
        8,
        True,
        cell_bits,
        slices,
        "differential",
        array_rows,
        16,
    )
    weights = torch.randint(-127, 128, (groups, columns, rows)).float()
    held = simulate.levels(weights, kind)
    assert held.shape[1] == kind.row_tiles and held.shape[2] <= array_rows
    assert held.min() >= 0 and held.max() < 2**cell_bits
    worth = 2.0 ** (cell_bits * torch.arange(slices))
    pairs = held.reshape(groups, -1, columns, slices, 2)[:, :rows]
    assert torch.equal(((pairs[..., 0] - pairs[..., 1]) @ worth).transpose(1, 2), weights)
    assert (pairs.amin(-1) == 0).all()
    # Rows past the last weight stay off.
    assert not held.reshape(groups, -1, kind.physical_columns)[:, rows:].any()
    # A single code changes exactly the cells of its own pair of columns.
    one = torch.zeros_like(weights)
    one[-1, -1, -1] = -127
    assert simulate.levels(one, kind).count_nonzero() == slices


def noisy_product(settings_, samples, rows=16, columns=1):
    """Weights of a single slice: errors are those of one pair of physical columns each."""
    target = find_target("rram", ["adc.bits=16", "array.cell_bits=8", *settings_])
    x = torch.zeros(samples, rows)
    x[:, : rows // 2] = 1.0
    weight = torch.full((columns, rows), 64)
    return Product(x, weight, QuantType(1, False), target)


def sums_before_conversion(product, draws, trials=1):
    seen = []

    def keep(self, sums):
        seen.append(sums.clone())
        return sums.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "USE_KERNEL", False)
        patch.setattr(simulate, "USE_KERNEL", False)
        patch.setattr(simulate.Reader, "_convert", keep)
        states = product.states(draws, trials)
        x = product.x.repeat(trials, 1)
        product.read(states, x, draws, trials)
    return torch.cat([item.flatten(0, 4) for item in seen])


def test_read_noise_of_a_column_has_the_variance_of_its_cells():
    count, sigma = 100_000, 0.01
    product = noisy_product([QUIET[0], f"device.read_noise.sigma_fraction={sigma}"], count)
    sums = sums_before_conversion(product, Draws(3, (0,), tuple(range(count))))
    # 8 active cells, one level is (1 - 1/10) / 255 of g_max.
    variance = 8 * (sigma / (0.9 / 255)) ** 2
    error = sums - torch.tensor([8 * 64.0, 0.0])
    assert error.mean(0).abs().max() < 5 * math.sqrt(variance / count)
    assert torch.allclose(error.var(0), torch.tensor(variance), rtol=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("verify_settings", [[], ["device.write_noise.verify=true"]])
def test_write_noise_of_a_column_has_the_variance_of_its_cells(verify_settings):
    trials, columns, sigma = 100, 1000, 0.02
    product = noisy_product(
        [QUIET[1], f"device.write_noise.sigma_fraction={sigma}", *verify_settings],
        1,
        columns=columns,
    )
    sums = sums_before_conversion(product, Draws(4, tuple(range(trials)), (0,)), trials)
    sums, trials = sums.reshape(-1, 2), trials * columns
    error = sums - torch.tensor([8 * 64.0, 0.0])
    share = 1.0
    if verify_settings:
        # Variance of a standard normal truncated to [-1, 1].
        inside = math.erf(1 / math.sqrt(2))
        share = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / inside
    variance = 8 * share * (sigma * 255) ** 2
    assert error.mean(0).abs().max() < 5 * math.sqrt(variance / trials)
    assert torch.allclose(error.var(0), torch.tensor(variance), rtol=5 * math.sqrt(2 / trials))


@pytest.mark.parametrize("bound", [math.inf, 1.0, 0.5])
@pytest.mark.parametrize("g", [0.0, 0.01, 0.5])
def test_write_noise_moments_agree_with_samples(bound, g):
    count = 200_000
    model = GaussianWrite(0.02, bound)
    normal = torch.randn(count, generator=torch.Generator().manual_seed(1))
    drawn = model.sample(torch.full((count,), g), normal).double()
    mean, variance = model.moments(torch.tensor([g]))
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=5 * 0.02 / math.sqrt(count))
    assert drawn.var().item() == pytest.approx(variance.item(), rel=0.03)
    assert drawn.min() >= 0


def test_numbers_do_not_depend_on_batches_and_trials():
    generator = torch.Generator().manual_seed(0)
    element = QuantType(8, True)
    x = codes((5, 3, 6, 6), element, generator)
    weight = torch.randint(-127, 128, (4, 3, 3, 3), generator=generator)
    window = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    product = Product(x, weight, element, find_target("rram"), conv=window)
    product.calibrate()
    draws = Draws(7, (0, 1, 2), tuple(range(5)))
    whole = product.read(product.states(draws, 3), x.repeat(3, 1, 1, 1), draws, 3)
    whole = whole.reshape(3, 5, *whole.shape[1:])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], product.expected())
    for trial in range(3):
        for samples in ((0, 1), (2,), (3, 4)):
            part = Draws(7, (trial,), samples)
            made = product.read(product.states(part), x[list(samples)], part)
            assert torch.equal(made, whole[trial, list(samples)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "WORK", 1000)
        again = product.read(product.states(draws, 3), x.repeat(3, 1, 1, 1), draws, 3)
        assert torch.equal(again.reshape(whole.shape), whole)


def test_read_noise_model_of_any_form_is_referred_to_the_column(monkeypatch):
    """The general path (moments of each cell) gives what the constant-variance path gives."""
    count = 20_000
    product = noisy_product([QUIET[0], "device.read_noise.sigma_fraction=0.01"], count)
    draws = Draws(3, (0,), tuple(range(count)))
    constant = sums_before_conversion(product, draws)
    monkeypatch.setattr(
        "imcc.backends.crossbar.noise.GaussianRead.constant_variance", property(lambda self: None)
    )
    general = sums_before_conversion(product, draws)
    assert torch.allclose(general, constant, rtol=1e-4, atol=1e-3)
