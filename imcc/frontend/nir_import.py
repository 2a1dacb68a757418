"""NIR graphs from ``.nir`` files: a torch module that computes them, captured like any other.

NIR describes neurons in continuous time (Pedersen et al., Nature Communications 2024). Here time
goes in steps ``dt`` by forward Euler, ``v <- v + dt / tau ((v_leak - v) + R I)``; integrators
without a time constant take the current of a step as the charge of that step,
``v <- v + R I``, as the libraries do that read NIR. Inputs are ``[T, B, ...]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imcc.frontend.neurons.ops import li, lif
from imcc.ir import codes
from imcc.ir.diagnostics import (
    Diagnostic,
    DiagnosticCollector,
    DiagnosticError,
    error,
    nearest,
)

DEFAULT_DT = 1e-4
"""Seconds of a time step where the user names none; what snnTorch assumes when it exports."""

DEFAULT_STEPS = 16
MAX_BYTES = 2 << 30
MAX_OBJECTS = 100_000
MAX_DEPTH = 32

Node = dict[str, Any]


@dataclass(frozen=True)
class NirNode:
    """What became of one node: ``faithful``, ``approximate`` or ``unsupported``, and why."""

    name: str
    kind: str
    verdict: str
    reason: str = ""


def load_nir(
    path: str | Path, *, dt: float = DEFAULT_DT, steps: int = DEFAULT_STEPS
) -> tuple[NirNetwork, tuple[Tensor, ...]]:
    """The network of a ``.nir`` file and example inputs of ``steps`` time steps, batch 1.

    Raises ``MODEL_FILE`` for a file that is no NIR graph, ``UNSUPPORTED_OP`` that lists every node
    which cannot be computed.
    """
    graph = _read(Path(path))
    network = NirNetwork(*_flattened(graph), dt=dt)
    found = DiagnosticCollector(limit=1000)
    for item in network.report:
        if item.verdict == "unsupported":
            found.add(_diagnostic(item, "error"))
    found.raise_errors()
    return network, tuple(torch.zeros(steps, 1, *shape) for shape in network.input_shapes)


def split_spec(text: str) -> tuple[Path, dict[str, Any]] | None:
    """Path and options of ``net.nir`` or ``net.nir:dt=1e-3,steps=32``; None for other files."""
    head, found, tail = text.partition(".nir")
    if not found or (tail and not tail.startswith(":")):
        return None
    kinds: dict[str, Any] = {"dt": float, "steps": int}
    options: dict[str, Any] = {}
    for pair in filter(None, tail.removeprefix(":").split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key] = kinds[key](value)
            if not 0 < options[key] < 1e6:
                raise ValueError
        except (KeyError, ValueError):
            raise error(
                codes.MODEL_FILE,
                f"{pair!r} is no option of a NIR file",
                suggestions=nearest(key, kinds),
                help="write net.nir:dt=1e-3,steps=32; dt is in seconds",
            ) from None
    return Path(head + found).expanduser(), options


def _diagnostic(item: NirNode, severity: Any) -> Diagnostic:
    return Diagnostic(
        codes.UNSUPPORTED_OP if severity == "error" else codes.CAPTURE,
        f"NIR node {item.name!r} ({item.kind}) is {item.verdict}",
        severity=severity,
        scope=item.name,
        reason=item.reason,
    )


# -- reading --------------------------------------------------------------------------------------


def _broken(path: Path, reason: str) -> DiagnosticError:
    return error(
        codes.MODEL_FILE,
        f"{path} is not a NIR graph that can be read",
        reason=reason,
        help="write it with nir.write(path, graph), NIR 1.0 or newer",
    )


def _read(path: Path) -> Node:
    """The graph as plain data; reads nothing but this one file."""
    try:
        import h5py
    except ImportError:
        raise error(
            codes.MODEL_FILE,
            f"{path} needs the package h5py to be read",
            help="pip install h5py",
        ) from None
    if not path.is_file():
        raise error(
            codes.MODEL_FILE,
            f"{path} does not exist" if not path.exists() else f"{path} is no file",
            help='write it with nir.write("net.nir", graph)',
        )
    budget = [MAX_BYTES, MAX_OBJECTS]

    def read(group: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _broken(path, f"groups are nested deeper than {MAX_DEPTH}")
        made: Node = {}
        for key in group:
            budget[1] -= 1
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise _broken(path, f"{key!r} is a link out of its place")
            item = group[key]
            if isinstance(item, h5py.Group):
                made[str(key)] = read(item, depth + 1)
                continue
            if item.external or item.is_virtual:
                raise _broken(path, f"{key!r} keeps its data in another file")
            budget[0] -= item.size * item.dtype.itemsize if item.size else 0
            if min(budget) < 0:
                raise _broken(path, f"it holds more than {MAX_BYTES >> 30} GiB of data")
            value = item[()]
            made[str(key)] = value.decode("utf8") if isinstance(value, bytes) else value
        return made

    try:
        with h5py.File(path, "r") as file:
            data = read(file, 0)
        node: Node = data["node"]
        if node["type"] != "NIRGraph":
            raise _broken(path, f"its root is a {node['type']}")
    except DiagnosticError:
        raise
    except Exception as wrong:
        raise _broken(path, f"{type(wrong).__name__}: {wrong}"[:200]) from None
    return node


def _text(value: Any) -> str:
    return value.decode("utf8") if isinstance(value, bytes) else str(value)


def _flattened(graph: Node) -> tuple[dict[str, Node], list[tuple[str, str]]]:
    """Nodes and edges with the graphs within the graph taken apart: ``outer.inner``."""
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    ends: dict[str, dict[str, list[str]]] = {}

    def walk(part: Node, prefix: str) -> None:
        try:
            held = {_text(name): item for name, item in part["nodes"].items()}
            pairs = [(_text(a), _text(b)) for a, b in part["edges"]]
            for name, item in held.items():
                if item["type"] == "NIRGraph":
                    walk(item, f"{prefix}{name}.")
                    inner = {key: value["type"] for key, value in item["nodes"].items()}
                    ends[prefix + name] = {
                        kind: [f"{prefix}{name}.{key}" for key, of in inner.items() if of == kind]
                        for kind in ("Input", "Output")
                    }
                else:
                    nodes[prefix + name] = item
        except (KeyError, TypeError, AttributeError, ValueError) as wrong:
            raise error(
                codes.MODEL_FILE,
                f"the NIR graph {prefix.rstrip('.') or 'of the file'} is not complete",
                reason=f"{type(wrong).__name__}: {wrong}"[:200],
                help="write it with nir.write(path, graph), NIR 1.0 or newer",
            ) from None
        for a, b in pairs:
            for end in (a, b):
                if end not in held:
                    raise error(codes.MODEL_FILE, f"an edge names the node {end!r}, there is none")
            sources = ends.get(prefix + a, {}).get("Output", [prefix + a])
            targets = ends.get(prefix + b, {}).get("Input", [prefix + b])
            edges.extend((left, right) for left in sources for right in targets)

    walk(graph, "")
    return nodes, edges


# -- computing ------------------------------------------------------------------------------------


class NirNetwork(nn.Module):
    """A NIR graph over inputs ``[T, B, ...]``, one submodule for each node.

    ``report`` says for each node whether it is computed faithfully. Edges that meet in a node add
    up.
    """

    def __init__(
        self, nodes: Mapping[str, Node], edges: list[tuple[str, str]], *, dt: float
    ) -> None:
        super().__init__()
        if dt <= 0:
            raise error(codes.MODEL_FILE, f"dt must be positive, found {dt}")
        self.dt = dt
        self.order = _ordered(list(nodes), edges)
        self.sources = {name: [a for a, b in edges if b == name] for name in nodes}
        self.inputs = [
            name for name in nodes if nodes[name]["type"] == "Input" and not self.sources[name]
        ]
        targets = {a for a, _ in edges}
        self.outputs = [
            name for name in self.order if nodes[name]["type"] == "Output" and name not in targets
        ]
        if not self.inputs or not self.outputs:
            raise error(codes.MODEL_FILE, "the NIR graph has no input or no output")
        self.input_shapes = [_shape(nodes[name]["shape"]) for name in self.inputs]
        self.report: list[NirNode] = []
        self.steps = nn.ModuleDict()
        for name in self.order:
            made, verdict, reason = _module(nodes[name], dt)
            self.report.append(NirNode(name, str(nodes[name]["type"]), verdict, reason))
            # A dot would end the name of a submodule.
            self.steps[name.replace(".", "/")] = made

    @property
    def conversion_notes(self) -> list[Diagnostic]:
        """A warning for each node that is approximated."""
        return [
            _diagnostic(item, "warning") for item in self.report if item.verdict == "approximate"
        ]

    def forward(self, *inputs: Tensor) -> Any:
        """Outputs in the order of the graph; a single one as it is."""
        values = dict(zip(self.inputs, inputs, strict=True))
        for name in self.order:
            if name in values:
                continue
            given = [values[source] for source in self.sources[name]]
            x = given[0]
            for other in given[1:]:
                x = x + other
            values[name] = self.steps[name.replace(".", "/")](x)
        made = tuple(values[name] for name in self.outputs)
        return made[0] if len(made) == 1 else made


def _ordered(names: list[str], edges: list[tuple[str, str]]) -> list[str]:
    waiting = {name: {a for a, b in edges if b == name} for name in names}
    order: list[str] = []
    while waiting:
        ready = [name for name, before in waiting.items() if before <= set(order)]
        if not ready:
            loop = ", ".join(sorted(waiting)[:4])
            raise error(
                codes.UNSUPPORTED_FORM,
                f"the NIR graph has a cycle through {loop}",
                reason="a recurrent connection delays by a time step, which NIR leaves open",
                help="only graphs without recurrent connections are computed",
            )
        order.extend(ready)
        for name in ready:
            del waiting[name]
    return order


def _shape(value: Any) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in value)
    if any(size < 1 for size in sizes):
        raise error(codes.MODEL_FILE, f"the NIR graph has an input of shape {list(sizes)}")
    return sizes


class _Layer(nn.Module):
    """A layer of torch on ``[T, B, ...]``."""

    def __init__(self, run: Any, **tensors: Tensor | None) -> None:
        super().__init__()
        self.run = run
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.run(x, **dict(self.named_buffers()))
        return made


class _Neurons(nn.Module):
    """A synapse if there is one, then a membrane."""

    def __init__(
        self,
        synapse: dict[str, Any] | None,
        run: Any,
        form: dict[str, Any],
        numbers: dict[str, Any],
    ) -> None:
        super().__init__()
        self.synapse, self.run, self.form, self.numbers = synapse, run, form, numbers

    def forward(self, x: Tensor) -> Tensor:
        if self.synapse is not None:
            x = li(x, None, {"leak_as": "rate", "decay_input": True}, **self.synapse)[0]
        made: Tensor = self.run(x, None, self.form, **self.numbers)[0]
        return made


def _number(value: Any) -> float | Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
        return float(tensor.flatten()[0])
    return tensor.to(torch.float32)


def _over_layer(x: Tensor, compute: Any) -> Tensor:
    made: Tensor = compute(x.flatten(0, 1))
    return made.reshape(*x.shape[:2], *made.shape[1:])


def _ints(value: Any, count: int) -> list[int]:
    flat = [int(item) for item in torch.as_tensor(value).flatten()]
    return flat * count if len(flat) == 1 else flat


def _module(node: Node, dt: float) -> tuple[nn.Module, str, str]:
    """The module of a node, the verdict on it, and the reason."""
    kind = str(node["type"])
    try:
        return _made(kind, node, dt)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as wrong:
        raise error(
            codes.MODEL_FILE,
            f"a NIR node of type {kind} is not complete",
            reason=f"{type(wrong).__name__}: {wrong}"[:200],
            help="write it with nir.write(path, graph), NIR 1.0 or newer",
        ) from None


def _made(kind: str, node: Node, dt: float) -> tuple[nn.Module, str, str]:
    def tensor(name: str) -> Tensor:
        return torch.as_tensor(node[name], dtype=torch.float32)

    faithful = ("faithful", "")
    match kind:
        case "Input" | "Output":
            return (nn.Identity(), *faithful)
        case "Affine" | "Linear":
            weight = tensor("weight")
            if weight.dim() != 2:
                return (nn.Identity(), "unsupported", f"its weight has {weight.dim()} axes")
            bias = tensor("bias") if kind == "Affine" else None
            return (_Layer(_linear, weight=weight, bias=bias), *faithful)
        case "Conv1d" | "Conv2d":
            return (_convolution(kind, node, tensor("weight"), tensor("bias")), *faithful)
        case "AvgPool2d" | "SumPool2d":
            return (_pool(kind, node), *faithful)
        case "Flatten":
            start, end = int(node.get("start_dim", 1)), int(node.get("end_dim", -1))
            # Its axes count without time and batch.
            ends = (start + 2 if start >= 0 else start, end + 2 if end >= 0 else end)
            return (_Layer(lambda x: x.flatten(*ends)), *faithful)
        case "Scale":
            return (_Layer(lambda x, scale: x * scale, scale=tensor("scale")), *faithful)
        case "Threshold":
            form = {"fires_at": "above", "reset": "none"}
            numbers = {"leak": 0.0, "threshold": _number(node["threshold"])}
            return (_Neurons(None, lif, form, numbers), *faithful)
        case "LI" | "LIF" | "CubaLI" | "CubaLIF" | "I" | "IF":
            return _neurons(kind, node, dt)
    reason = "a delay needs a queue of past steps" if kind == "Delay" else "there is no rule for it"
    return (nn.Identity(), "unsupported", reason)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def _convolution(kind: str, node: Node, weight: Tensor, bias: Tensor) -> nn.Module:
    count = weight.dim() - 2
    compute: Any = functional.conv1d if kind == "Conv1d" else functional.conv2d
    padding = node["padding"]
    given: dict[str, Any] = {
        "stride": _ints(node["stride"], count),
        "padding": _text(padding) if isinstance(padding, (str, bytes)) else _ints(padding, count),
        "dilation": _ints(node["dilation"], count),
        "groups": int(node["groups"]),
    }

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _over_layer(x, lambda flat: compute(flat, weight, bias, **given))

    return _Layer(run, weight=weight, bias=bias)


def _pool(kind: str, node: Node) -> nn.Module:
    kernel, stride, padding = (_ints(node[key], 2) for key in ("kernel_size", "stride", "padding"))
    factor = kernel[0] * kernel[1] if kind == "SumPool2d" else 1

    def run(x: Tensor) -> Tensor:
        made = _over_layer(x, lambda flat: functional.avg_pool2d(flat, kernel, stride, padding))
        return made * factor if factor != 1 else made

    return _Layer(run)


def _neurons(kind: str, node: Node, dt: float) -> tuple[nn.Module, str, str]:
    verdict, reason = "faithful", ""
    numbers: dict[str, Any] = {"gain": _number(node["r"])}
    form: dict[str, Any] = {}
    synapse: dict[str, Any] | None = None
    if kind in ("I", "IF"):
        verdict = "approximate"
        reason = "without a time constant, the current of a step is taken as its charge"
    else:
        tau = node["tau_mem" if kind.startswith("Cuba") else "tau"]
        numbers |= {"leak": _rate(tau, dt), "rest": _number(node["v_leak"])}
        form = {"leak_as": "rate", "decay_input": True}
        largest = float(torch.as_tensor(dt / torch.as_tensor(tau)).max())
        if largest > 1:
            verdict, reason = "approximate", f"dt is {largest:g} times its time constant"
    if kind.startswith("Cuba"):
        synapse = {"leak": _rate(node["tau_syn"], dt), "gain": _number(node.get("w_in", 1.0))}
    if not kind.endswith("F"):
        return _Neurons(synapse, li, form, numbers), verdict, reason
    reset = _number(node["v_reset"]) if "v_reset" in node else 0.0
    if isinstance(reset, Tensor):
        return nn.Identity(), "unsupported", "v_reset differs between its neurons"
    numbers["threshold"] = _number(node["v_threshold"])
    form |= {"fires_at": "above", "reset": "hard", "reset_value": reset}
    return _Neurons(synapse, lif, form, numbers), verdict, reason


def _rate(tau: Any, dt: float) -> float | Tensor:
    held = torch.as_tensor(tau, dtype=torch.float64)
    if not bool((held > 0).all()):
        raise ValueError("a time constant is not positive")
    return _number(dt / held)
