"""Networks for the benchmark of sparse-SNN accelerators: operands from traces, or drawn.

Traces hold the input spikes of each layer after single-spike silencing (the layout is in
``docs/data.md``); weights come with none, so they are drawn at the published sparsity. Where no
trace is at hand, words are drawn at published densities; such networks are marked synthetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imcc.backends.sparse_snn.fibers import Words, pack_spikes
from imcc.backends.sparse_snn.product import Product, StoredSpikes
from imcc.backends.sparse_snn.windows import filter_rows, window_rows

TABLE = "LoAS, MICRO 2024, Table II (CIFAR-10, T = 4)"
CLASSES = 10


@dataclass(frozen=True)
class Published:
    """What the table says of a network; shares of all neurons of all spiking layers."""

    spike_sparsity: float
    silent: float
    silent_after_silencing: float
    weight_sparsity: float

    @property
    def single(self) -> float:
        """Share of neurons that spike exactly once, which silencing removes."""
        return self.silent_after_silencing - self.silent

    def spikes_per_active(self, timesteps: int) -> float:
        """Spikes of a neuron that still spikes after silencing."""
        spikes = (1 - self.spike_sparsity) * timesteps - self.single
        return spikes / (1 - self.silent_after_silencing)


PUBLISHED = {
    "alexnet": Published(0.81195, 0.712559, 0.766834, 0.982635),
    "vgg16": Published(0.82325, 0.740898, 0.79581, 0.982279),
    "resnet19": Published(0.686667, 0.595935, 0.660811, 0.96914),
}


@dataclass(frozen=True)
class Layer:
    """One spiking layer: its input words ``[C, H, W]`` or ``[K]`` and the weights' shape."""

    name: str
    words: Words
    weight_shape: tuple[int, ...]
    stride: int = 1
    weights: NDArray[np.int32] | None = None

    @property
    def is_conv(self) -> bool:
        return len(self.weight_shape) > 2


@dataclass(frozen=True)
class Network:
    """Layers with the words that silencing leaves, and with those before it (``original``)."""

    name: str
    origin: str
    timesteps: int
    weight_sparsity: float
    silenced: tuple[Layer, ...]
    original: tuple[Layer, ...] | None
    original_origin: str = ""

    def products(self, seed: int, spikes: str = "silenced") -> list[Product]:
        """The layers' products, with weights drawn by ``seed``."""
        layers = self.silenced if spikes == "silenced" or not self.original else self.original
        rng = np.random.default_rng(seed)
        made = []
        for index, layer in enumerate(layers):
            following = layers[index + 1].words if index + 1 < len(layers) else None
            made.append(_product(layer, following, self, rng))
        return made


def _product(
    layer: Layer, following: Words | None, network: Network, rng: np.random.Generator
) -> Product:
    weights = layer.weights
    if weights is None:
        weights = draw_weights(rng, layer.weight_shape, network.weight_sparsity)
    if layer.is_conv:
        size = layer.weight_shape[-1]
        window = ((size, size), (layer.stride,) * 2, (size // 2,) * 2, (1, 1))
        rows = window_rows(layer.words, *window)
        source = StoredSpikes.of(layer.words.reshape(len(layer.words), -1).T)
    else:
        rows = layer.words.reshape(1, -1)
        source = StoredSpikes.of(rows)
    kernel = filter_rows(weights)
    neurons = len(rows) * len(kernel)
    # Pooling stands between a result and the next trace: its densities are taken for the result.
    counts = np.bitwise_count(following) if following is not None else np.zeros(1)
    active, spikes = float((counts > 0).mean()), float(counts.mean())
    result = StoredSpikes(len(rows), len(kernel), neurons * active, neurons * spikes)
    return Product(rows, kernel, network.timesteps, source, result)


def draw_weights(
    rng: np.random.Generator, shape: tuple[int, ...], sparsity: float
) -> NDArray[np.int32]:
    """8-bit weights, each 0 with probability ``sparsity``, else uniform over the other codes."""
    made = rng.integers(1, 128, shape, dtype=np.int32) * rng.choice((-1, 1), shape)
    return np.where(rng.random(shape) < sparsity, 0, made).astype(np.int32)


def read_traces(path: Path, name: str, weight_sparsity: float | None = None) -> Network:
    """A network from a file of traces.

    Each array NAME is ``np.packbits`` of spikes of shape ``NAME__shape``, time leading: ``[T, C,
    H, W]`` for a convolution, ``[T, K]`` for a linear layer; arrays with T = 1 (the encoding
    layer) are left out. ``NAME__weights`` may hold integer weights ``[N, C, k, k]`` or ``[N, K]``.
    Without them, a convolution is 3 x 3 with padding 1 and as many outputs as the next layer has
    channels (as inputs, in front of a linear layer), and the last layer has 10 outputs.
    """
    with np.load(path, allow_pickle=False) as held:
        names = [key for key in held if "__" not in key]
        shapes = {key: tuple(int(size) for size in held[f"{key}__shape"]) for key in names}
        names = [key for key in names if shapes[key][0] > 1]
        if not names:
            raise SystemExit(f"{path} holds no array with more than one timestep")
        timesteps = shapes[names[0]][0]
        layers = []
        for index, key in enumerate(names):
            shape = shapes[key]
            bits = np.unpackbits(held[key])[: int(np.prod(shape))].reshape(shape)
            words = pack_spikes(bits)
            weights = held.get(f"{key}__weights")
            if weights is not None:
                form = tuple(weights.shape)
                weights = weights.astype(np.int32)
            elif len(shape) == 2:
                last = index + 1 == len(names)
                form = (CLASSES if last else shapes[names[index + 1]][1], shape[1])
            else:
                conv_next = index + 1 < len(names) and len(shapes[names[index + 1]]) == 4
                outputs = shapes[names[index + 1]][1] if conv_next else shape[1]
                form = (outputs, shape[1], 3, 3)
            layers.append(Layer(key, words, form, weights=weights))
    table = PUBLISHED.get(name)
    if weight_sparsity is None:
        weight_sparsity = table.weight_sparsity if table else 0.98
    original = None
    if table is not None and timesteps == 4:
        original = tuple(_revive(layers, table, np.random.default_rng(0)))
    return Network(
        name,
        f"traces {path.name}",
        timesteps,
        weight_sparsity,
        tuple(layers),
        original,
        f"silenced spikes put back at random, as many as {TABLE} gives" if original else "",
    )


def _revive(layers: list[Layer], table: Published, rng: np.random.Generator) -> Iterator[Layer]:
    """Layers before silencing: a share of the silent neurons spikes once, at a random timestep."""
    silent = sum(int((layer.words == 0).sum()) for layer in layers)
    total = sum(layer.words.size for layer in layers)
    share = table.single * total / silent
    for layer in layers:
        once = np.uint32(1) << rng.integers(0, 4, layer.words.shape, dtype=np.uint32)
        chosen = (layer.words == 0) & (rng.random(layer.words.shape) < share)
        yield replace(layer, words=np.where(chosen, once, layer.words).astype(np.uint32))


@lru_cache(maxsize=8)
def _count_shares(mean: float, counts: tuple[int, ...]) -> NDArray[np.float64]:
    """The distribution over counts of largest entropy with a given mean."""
    low, high = -20.0, 20.0
    values = np.array(counts, float)
    for _ in range(80):
        slope = (low + high) / 2
        shares = np.exp(slope * (values - values.mean()))
        shares /= shares.sum()
        low, high = (slope, high) if shares @ values < mean else (low, slope)
    return shares


def draw_words(
    rng: np.random.Generator, shape: tuple[int, ...], table: Published, timesteps: int = 4
) -> Words:
    """Words at the published densities after silencing: two spikes or more where there are any."""
    counts = tuple(range(2, timesteps + 1))
    mean = min(table.spikes_per_active(timesteps), float(timesteps))
    patterns = np.arange(2**timesteps, dtype=np.uint32)
    ones = np.bitwise_count(patterns)
    weight = np.zeros(len(patterns))
    for count, share in zip(counts, _count_shares(mean, counts), strict=True):
        weight[ones == count] = share / (ones == count).sum()
    words = rng.choice(patterns, shape, p=weight / weight.sum())
    silent = rng.random(shape) < table.silent_after_silencing
    return np.where(silent, 0, words).astype(np.uint32)


def _resnet19_shapes() -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], int]]:
    """Name, input shape, weight shape, stride: blocks [3, 3, 2] at 128, 256, 512 channels."""
    channels, size = 128, 32
    for stage, (blocks, width) in enumerate(((3, 128), (3, 256), (2, 512)), 1):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 else 1
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1", (channels, size, size), (width, channels, 3, 3), stride
            if stride == 2:
                yield f"{name}.shortcut", (channels, size, size), (width, channels, 1, 1), stride
            size //= stride
            yield f"{name}.conv2", (width, size, size), (width, width, 3, 3), 1
            channels = width
    yield "fc1", (512,), (256, 512), 1
    yield "fc2", (256,), (CLASSES, 256), 1


def _traced_shapes(name: str) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], int]]:
    if name == "alexnet":
        inputs = [(64, 8), (192, 8), (384, 8), (256, 8)]
        outputs, features = [192, 384, 256, 256], 1024
    else:
        inputs = [(64, 32), (64, 16), (128, 16), (128, 8), (256, 8), (256, 8), (256, 4)]
        inputs += [(512, 4), (512, 4), (512, 2), (512, 2), (512, 2)]
        outputs, features = [64, 128, 128, 256, 256, 256, *[512] * 6], 512
    for index, ((channels, size), width) in enumerate(zip(inputs, outputs, strict=True), 1):
        yield f"Conv2d_{index:02}", (channels, size, size), (width, channels, 3, 3), 1
    yield "Linear_00", (features,), (CLASSES, features), 1


def synthetic(name: str, weight_sparsity: float | None = None) -> Network:
    """A network whose words are drawn at the densities of the table, all layers alike."""
    table, rng = PUBLISHED[name], np.random.default_rng(1)
    shapes = _resnet19_shapes() if name == "resnet19" else _traced_shapes(name)
    layers = [
        Layer(layer, draw_words(rng, shape, table), form, stride)
        for layer, shape, form, stride in shapes
    ]
    return Network(
        name,
        f"synthetic: words drawn at the densities of {TABLE}",
        4,
        table.weight_sparsity if weight_sparsity is None else weight_sparsity,
        tuple(layers),
        tuple(_revive(layers, table, np.random.default_rng(0))),
        "synthetic as well",
    )


def data_folder() -> Path | None:
    """The folder of traces under ``IMCC_DATA``, if it is there."""
    held = os.environ.get("IMCC_DATA")
    folder = Path(held) / "loas-spike-traces" if held else None
    return folder if folder is not None and folder.is_dir() else None


def networks(
    weight_sparsity: float | None, warn: Callable[[str], None], only: tuple[str, ...] = ()
) -> list[Network]:
    """AlexNet and VGG16 from traces (drawn, with a warning, without ``IMCC_DATA``), ResNet-19."""
    folder = data_folder()
    made = []
    for name in ("alexnet", "vgg16"):
        if folder is not None:
            made.append(read_traces(folder / f"{name}.npz", name, weight_sparsity))
        else:
            warn(f"IMCC_DATA names no folder with loas-spike-traces: {name} is synthetic")
            made.append(synthetic(name, weight_sparsity))
    made.append(synthetic("resnet19", weight_sparsity))
    return [item for item in made if not only or item.name in only]


def with_more_timesteps(network: Network, how: str) -> Network:
    """The network with twice the timesteps.

    ``repeat``: every neuron does again what it did. ``independent``: in the second half, every
    neuron does what a random other neuron of its layer did.
    """
    rng = np.random.default_rng(2)
    shift = np.uint32(network.timesteps)

    def longer(layer: Layer) -> Layer:
        again = layer.words
        if how == "independent":
            again = rng.permutation(again.ravel()).reshape(again.shape)
        return replace(layer, words=layer.words | (again << shift))

    return replace(
        network,
        timesteps=2 * network.timesteps,
        silenced=tuple(map(longer, network.silenced)),
        original=None,
    )
