"""IR drop: the elimination against the nodal equations, against badcrossbar, and in a read."""

import importlib.util
import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from imcc.backends.crossbar import ir_drop
from imcc.backends.crossbar.cells import program
from imcc.backends.crossbar.dialect import MatrixType
from imcc.backends.crossbar.simulate import levels
from imcc.backends.targets import find_target
from imcc.ir.semantics.draws import Draws


def conductances(rows, columns, low=1e-7, high=1e-5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, rows, columns)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def nodal(g, word_ohm, bit_ohm):
    """Kirchhoff's current law at all 2 m n nodes, solved for a unit voltage on each word line."""
    rows, columns = g.shape
    word, bit = 1 / word_ohm, 1 / bit_ohm
    matrix = scipy.sparse.lil_matrix((2 * rows * columns,) * 2)
    drive = np.zeros((2 * rows * columns, rows))

    def connect(a, b, value):
        matrix[a, a] += value
        matrix[b, b] += value
        matrix[a, b] -= value
        matrix[b, a] -= value

    for k in range(rows):
        for j in range(columns):
            node = k * columns + j
            below = rows * columns + node
            connect(node, below, g[k, j])
            if j:
                connect(node, node - 1, word)
            else:
                matrix[node, node] += word
                drive[node, k] += word
            if k:
                connect(below, below - columns, bit)
            if k == rows - 1:
                matrix[below, below] += bit
    solution = scipy.sparse.linalg.spsolve(matrix.tocsc(), drive).reshape(-1, rows)
    return bit * solution[-columns:].T


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (6, 9), (12, 8)])
@pytest.mark.parametrize("ohms", [(1.0, 2.5), (1e3, 1e4), (1e-3, 1e-3)])
def test_elimination_solves_the_nodal_equations(size, ohms):
    g = conductances(*size)
    made = ir_drop.exact(g, *ohms)[0].numpy()
    np.testing.assert_allclose(made, nodal(g[0].numpy(), *ohms), rtol=1e-9)


def test_no_resistance_changes_nothing():
    g = conductances(5, 4)
    assert torch.allclose(ir_drop.exact(g, 0.0, 0.0), g, rtol=1e-14)
    assert torch.equal(ir_drop.fast(g, 0.0, 0.0), g)
    # With ideal bit lines rows are separate ladders, which the fast form solves exactly.
    assert torch.allclose(ir_drop.exact(g, 50.0, 0.0), ir_drop.fast(g, 50.0, 0.0), rtol=1e-12)


@pytest.mark.skipif(importlib.util.find_spec("badcrossbar") is None, reason="needs badcrossbar")
@pytest.mark.parametrize("size", [64, 128])
def test_badcrossbar_gives_the_same_matrix(size, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        import badcrossbar

        g = conductances(size, size)
        # A few inputs suffice: badcrossbar factors the whole circuit for each call.
        inputs = np.random.default_rng(1).random((size, 3))
        solution = badcrossbar.compute(
            inputs, (1 / g[0]).numpy(), r_i_word_line=2.0, r_i_bit_line=1.0, node_voltages=False
        )
    made = inputs.T @ ir_drop.exact(g, 2.0, 1.0)[0].numpy()
    np.testing.assert_allclose(made, solution.currents.output, rtol=1e-9)


@pytest.mark.parametrize(("ohm", "lost", "error"), [(0.1, 0.006, 2e-5), (1.0, 0.055, 1e-3)])
def test_fast_form_is_close_while_little_is_lost(ohm, lost, error):
    g = conductances(128, 128)
    exact, fast = ir_drop.exact(g, ohm, ohm), ir_drop.fast(g, ohm, ohm)
    assert float(1 - exact.sum() / g.sum()) == pytest.approx(lost, rel=0.1)
    assert float((fast - exact).norm() / exact.norm()) < error


def test_batches_of_tiles_are_solved_alike(monkeypatch):
    g = torch.cat([conductances(6, 5, seed=seed) for seed in range(4)]) * 1e6
    whole = ir_drop.effective(g.reshape(2, 2, 6, 5), 3.0, 4.0, "exact")
    monkeypatch.setattr(ir_drop, "WORK", 1)
    for index in range(4):
        one = ir_drop.effective(g[index : index + 1], 3.0, 4.0, "exact")
        assert torch.allclose(whole.reshape(4, 6, 5)[index], one[0], rtol=1e-12)


@pytest.mark.parametrize("encoding", ["differential", "sign_arrays", "offset", "bias_column"])
def test_programming_folds_the_wires_of_each_crossbar(encoding):
    cells = 2 if encoding in ("differential", "sign_arrays") else 1
    kind = MatrixType(20, 9, 1, 4, True, 4, 1, encoding, 16, 10)
    weights = torch.randint(-7, 8, (1, 9, 20), generator=torch.Generator().manual_seed(0))
    ideal = levels(weights, kind)
    target = find_target(
        "rram",
        [
            "device.write_noise.sigma_fraction=0.0",
            f"array.encoding={encoding}",
            "array.cell_bits=4",
            "array.wires.model=exact",
            "array.wires.word_line_ohm=200.0",
            "array.wires.bit_line_ohm=300.0",
        ],
    )
    made = program(kind, ideal, target, Draws(0), "w").levels[0, 0]
    # The second crossbar from the top, the first from the left: 4 rows are in use.
    columns = list(range(0, 18, 2)) if encoding == "sign_arrays" else list(range(10))
    if encoding == "sign_arrays":
        columns = columns[:9]
    if encoding in ("offset", "bias_column"):
        columns = list(range(9))
        columns += [9] if encoding == "bias_column" else []
    assert cells * 9 >= len(columns) - 1
    g = (0.1 + ideal[0, 1, :4, columns] * 0.06) * 1e-6
    # The first row lies next to the converters.
    expected = nodal(g.double().flip(0).numpy(), 200.0, 300.0)[::-1].copy() / 1e-6
    expected = (torch.tensor(expected) - 0.1) / 0.06
    assert torch.allclose(made[1, :4, columns].double(), expected, atol=1e-3)
