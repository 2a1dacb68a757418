"""Spiking networks captured unchanged from their libraries, against the library's own run.

Each model is captured twice, in float32 and in float64. ``flips`` counts outputs that differ where
the outputs are spikes; ``max_abs_diff`` is over all outputs. Libraries that are not installed give
no rows.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.output import Row, main
from imcc.frontend.capture import Captured, capture
from imcc.ir.semantics.interpreter import evaluate_function

STEPS, BATCH = 8, 4


@dataclass(frozen=True)
class Case:
    """A model, an input for it, and how its library forgets the state of a run."""

    name: str
    library: str
    model: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    reset: Callable[[nn.Module], Any] = lambda model: None


def _seeded(*shape: int, low: float = 0.0, high: float = 1.0) -> Callable[[], Tensor]:
    def make() -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return torch.rand(*shape, generator=generator) * (high - low) + low

    return make


def _lively(model: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: freshly made ones let nearly nothing fire."""
    generator = torch.Generator().manual_seed(6)
    for item in model.modules():
        if isinstance(item, (nn.BatchNorm1d, nn.BatchNorm2d)):
            shape = item.weight.shape
            item.weight.data = 1 + torch.rand(shape, generator=generator)
            item.bias.data = 0.6 * torch.rand(shape, generator=generator)
    return model


class _Network(nn.Module):
    """Convolution, pooling and a linear layer with a neuron behind each."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.first = nn.Conv2d(2, 8, 3, padding=1), neuron()
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.second = nn.Conv2d(8, 8, 3, padding=1), neuron()
        self.fc, self.third = nn.Linear(128, 10), neuron()


class _Passed(_Network):
    def forward(self, x: Tensor) -> Any:
        a = b = c = ()
        spikes, membranes = [], []
        for t in range(STEPS):
            one, *a = self.first(self.conv1(x[t]), *a)
            two, *b = self.second(self.conv2(self.pool(one)), *b)
            out, *c = self.third(self.fc(self.pool(two).flatten(1)), *c)
            spikes.append(out)
            membranes.append(c[-1])
        return torch.stack(spikes), torch.stack(membranes)


class _Hidden(_Network):
    def forward(self, x: Tensor) -> Tensor:
        spikes = []
        for t in range(STEPS):
            one = self.first(self.conv1(x[t]))
            two = self.second(self.conv2(self.pool(one)))
            spikes.append(self.third(self.fc(self.pool(two).flatten(1))))
        return torch.stack(spikes)


def _snntorch() -> Iterator[Case]:
    import snntorch

    def one_type(model: nn.Module) -> nn.Module:
        # snnTorch makes float32 spikes of any input; in float64 its own run needs them converted.
        def cast(module: Any, given: Any, out: Any) -> Any:
            if hasattr(module, "spk"):
                module.spk = module.spk.to(given[0].dtype)
            return pytree.tree_map(lambda item: item.to(given[0].dtype), out)

        for item in model.modules():
            if isinstance(item, snntorch.SpikingNeuron):
                item.register_forward_hook(cast)
        return model

    def reset(model: nn.Module) -> None:
        for item in model.modules():
            if isinstance(item, snntorch.SpikingNeuron):
                item.reset_mem()

    frames = _seeded(STEPS, BATCH, 2, 16, 16, high=2.0)
    neurons: dict[str, tuple[type[nn.Module], Callable[[], nn.Module]]] = {
        "Leaky, passed state": (_Passed, lambda: snntorch.Leaky(beta=0.9, threshold=0.4)),
        "Leaky, hidden state": (
            _Hidden,
            lambda: snntorch.Leaky(beta=0.9, threshold=0.4, init_hidden=True),
        ),
        "Leaky, reset to zero": (
            _Passed,
            lambda: snntorch.Leaky(beta=0.9, threshold=0.4, reset_mechanism="zero"),
        ),
        "Synaptic": (_Passed, lambda: snntorch.Synaptic(alpha=0.7, beta=0.8, threshold=0.6)),
    }
    for name, (network, neuron) in neurons.items():
        yield Case(
            f"CNN with {name}",
            "snntorch",
            lambda network=network, neuron=neuron: one_type(_wide(network(neuron))),
            frames,
            reset,
        )

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(20, 16)
            self.neuron = snntorch.RLeaky(beta=0.9, threshold=0.4, linear_features=16)

        def forward(self, x: Tensor) -> Tensor:
            spikes, membrane = self.neuron.reset_mem()
            made = []
            for step in x:
                spikes, membrane = self.neuron(self.fc(step), spikes, membrane)
                made.append(spikes)
            return torch.stack(made)

    vectors = _seeded(STEPS, BATCH, 20, high=2.0)
    yield Case("recurrent RLeaky", "snntorch", lambda: one_type(Recurrent()), vectors, reset)


def _wide(model: nn.Module) -> nn.Module:
    # 16 x 16 frames pooled twice.
    model.fc = nn.Linear(8 * 4 * 4, 10)
    return model


def _spikingjelly() -> Iterator[Case]:
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.model import spike_driven_transformer, spikformer

    def multi_step(kind: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(
            layer.SeqToANNContainer(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)),
            kind(),
            layer.SeqToANNContainer(nn.MaxPool2d(2)),
            layer.Flatten(step_mode="m"),
            layer.Linear(8 * 64, 10, step_mode="m"),
            kind(),
        )

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(2, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                neuron.LIFNode(),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(8 * 64, 10),
                neuron.LIFNode(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.net(x) for _ in range(STEPS)])

    frames = _seeded(STEPS, BATCH, 2, 16, 16, high=12.0)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "IF": lambda: neuron.IFNode(step_mode="m", v_reset=None),
        "LIF": lambda: neuron.LIFNode(step_mode="m"),
        "ParametricLIF": lambda: neuron.ParametricLIFNode(step_mode="m", decay_input=False),
    }
    for name, kind in kinds.items():
        made = multi_step(kind)
        yield Case(
            f"{name}, multi-step, SeqToANNContainer",
            "spikingjelly",
            lambda made=made: _lively(made()),
            frames,
            functional.reset_net,
        )
    image = _seeded(BATCH, 2, 16, 16, high=12.0)
    yield Case(
        "LIF, single-step loop",
        "spikingjelly",
        lambda: _lively(Single()),
        image,
        functional.reset_net,
    )
    size: dict[str, Any] = {"embed_dims": 64, "num_heads": 4, "depths": 2, "num_classes": 10}
    yield Case(
        "Spikformer",
        "spikingjelly",
        lambda: _lively(
            spikformer.Spikformer(T=4, img_size_h=32, img_size_w=32, patch_size=4, **size)
        ),
        _seeded(BATCH, 3, 32, 32, high=3.0),
        functional.reset_net,
    )
    yield Case(
        "Spike-driven Transformer",
        "spikingjelly",
        lambda: _lively(spike_driven_transformer.SpikeDrivenTransformer(T=4, **size)),
        _seeded(BATCH, 3, 32, 32, high=3.0),
        functional.reset_net,
    )


def _norse() -> Iterator[Case]:
    import norse.torch as norse

    low = norse.LIFParameters(v_th=torch.as_tensor(0.1))
    yield Case(
        "LIF and LI over time",
        "norse",
        lambda: norse.SequentialState(
            nn.Linear(20, 32), norse.LIF(low), nn.Linear(32, 10), norse.LI()
        ),
        _seeded(STEPS, BATCH, 20, high=3.0),
    )


def _sinabs() -> Iterator[Case]:
    import sinabs.layers as layers

    def reset(model: nn.Module) -> None:
        for item in model.modules():
            if isinstance(item, layers.StatefulLayer):
                for name, _ in list(item.named_buffers(recurse=False)):
                    item.register_buffer(name, torch.zeros(0))

    def one_type(model: nn.Module) -> nn.Module:
        # sinabs makes float32 spikes of any input, as snnTorch does.
        for item in model.modules():
            if isinstance(item, layers.StatefulLayer):
                item.register_forward_hook(lambda _, given, out: out.to(given[0].dtype))
        return model

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            layers.IAFSqueeze(num_timesteps=STEPS, spike_threshold=torch.tensor(0.3)),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 64, 10),
            layers.IAFSqueeze(num_timesteps=STEPS, spike_threshold=torch.tensor(0.3)),
        )

    yield Case(
        "CNN with IAFSqueeze, multi-spike",
        "sinabs",
        lambda: one_type(network()),
        _seeded(BATCH * STEPS, 2, 16, 16, high=2.0),
        reset,
    )


def _nir() -> Iterator[Case]:
    import nir
    import numpy as np

    from imcc.frontend.nir_import import load_nir

    random = np.random.default_rng(0)

    def neurons(*shape: int) -> Any:
        ones = np.ones(shape, dtype=np.float32)
        return nir.LIF(tau=8e-3 * ones, r=4 * ones, v_leak=0 * ones, v_threshold=0.4 * ones)

    def model() -> nn.Module:
        def weights(*shape: int) -> Any:
            return random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

        graph = nir.NIRGraph.from_list(
            nir.Affine(weights(32, 20), weights(32)),
            neurons(32),
            nir.Affine(weights(10, 32), weights(10)),
            neurons(10),
        )
        with TemporaryDirectory() as folder:
            nir.write(Path(folder) / "net.nir", graph)
            return load_nir(Path(folder) / "net.nir", dt=1e-3, steps=STEPS)[0]

    # There is no other program to compare with: the module that reads the graph is its own eager.
    yield Case("LIF network from a .nir file", "nir", model, _seeded(STEPS, BATCH, 20, high=3.0))


LIBRARIES: dict[str, Callable[[], Iterator[Case]]] = {
    "snntorch": _snntorch,
    "spikingjelly": _spikingjelly,
    "norse": _norse,
    "sinabs": _sinabs,
    "nir": _nir,
}


def _leaves(made: Any) -> list[Tensor]:
    return [item for item in pytree.tree_leaves(made) if isinstance(item, Tensor)]


def _compare(case: Case, dtype: torch.dtype) -> tuple[Captured, float, float, int, int]:
    """(program, seconds, largest difference, flips, spikes) in one element type."""
    torch.manual_seed(0)
    model, x = case.model().to(dtype).eval(), case.x().to(dtype)
    with torch.no_grad():
        case.reset(model)
        own = _leaves(model(x))
        case.reset(model)
    start = time.perf_counter()
    program = capture(model, (x,))
    seconds = time.perf_counter() - start
    function = program.module.function("inference")
    made = evaluate_function(function, (x,), resources=program.resources).outputs
    difference, flips, spikes = 0.0, 0, 0
    for left, right in zip(made, own, strict=True):
        right = right.to(left.dtype)
        difference = max(difference, float((left - right).abs().max()))
        if bool((right == right.round()).all()):
            flips += int((left != right).sum())
            spikes += int(right.sum())
    return program, seconds, difference, flips, spikes


def rows(quick: bool = False) -> list[Row]:
    """One row for each model of the installed libraries; ``quick`` takes one per library."""
    from benchmarks.capture import regions

    made: list[Row] = []
    for library, cases in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            continue
        for case in list(cases())[: 1 if quick else None]:
            program, seconds, difference, flips, spikes = _compare(case, torch.float32)
            _, _, wide, wide_flips, _ = _compare(case, torch.float64)
            ops = [op.name for op in program.module.walk() if not op.terminator]
            made.append(
                {
                    "model": case.name,
                    "library": library,
                    "version": version(library),
                    "ops": len(ops),
                    "distinct_ops": len(set(ops)),
                    "seconds": seconds,
                    "max_abs_diff": difference,
                    "regions": len(regions(program)),
                    "attentions": ops.count("nn.attention"),
                    "max_abs_diff_f64": wide,
                    "flips": flips,
                    "flips_f64": wide_flips,
                    "spikes": spikes,
                    "neurons_over_time": ops.count("snn.lif"),
                    "op_names": sorted(set(ops) - {"core.return"}),
                    "warnings": [item.message for item in program.warnings],
                }
            )
    return made


if __name__ == "__main__":
    main("Capture of spiking networks", lambda options: rows(options.quick))
