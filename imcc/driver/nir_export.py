"""NIR graphs from captured spiking networks, and what each node keeps of the neuron it stands for.

NIR has time constants in seconds and neurons that reset to a value (Pedersen et al., Nature
Communications 2024). A step of ``dt`` by forward Euler, ``v <- v + dt / tau ((v_leak - v) + R I)``,
is matched against the forms of ``snn.lif`` and ``snn.li``:

============== ============== =================== ====================
leak_as        decay_input    dt / tau            R
============== ============== =================== ====================
factor l       no             ``1 - l``           ``gain / (1 - l)``
factor l       yes            ``1 - l``           ``gain l / (1 - l)``
rate l         no / yes       ``l``               ``gain / l``, ``gain``
time constant  no / yes       ``1 / l``           ``gain l``, ``gain``
============== ============== =================== ====================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imcc.frontend.nir_import import DEFAULT_DT, NirNode
from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticCollector, error
from imcc.ir.dialects import core, nn, snn
from imcc.ir.dialects.core import tensor
from imcc.ir.module import Module
from imcc.ir.ops import Op, Value
from imcc.ir.semantics.resources import ResourceStore


def export_nir(
    module: Module,
    resources: ResourceStore,
    path: str | Path,
    *,
    dt: float = DEFAULT_DT,
    approximate: bool = False,
) -> tuple[NirNode, ...]:
    """Write ``@inference`` of a captured module as a ``.nir`` file; returns a verdict per node.

    Inputs are ``[T, B, ...]``; ``dt`` is the time of a step in seconds. A node is ``faithful``
    where forward Euler of NIR's equations gives what the op gives (up to rounding, and to membranes
    that equal the threshold), else ``approximate`` with the reason.

    Raises ``UNSUPPORTED_OP`` with every op that NIR cannot hold, and with every approximate one
    unless ``approximate`` is true; ``OUTPUT`` if the file exists or cannot be written.
    """
    try:
        import nir
    except ImportError:
        raise error(
            codes.UNSUPPORTED_OP,
            "writing NIR needs the package nir",
            help="pip install nir",
        ) from None
    target = Path(path)
    if target.exists():
        raise error(codes.OUTPUT, f"{target} exists already", help="choose another file")
    made = _Graph(nir, resources, dt)
    made.build(module)
    found = DiagnosticCollector(limit=1000)
    for item, op in made.verdicts:
        if item.verdict == "unsupported" or (item.verdict == "approximate" and not approximate):
            found.add(_refused(item, op))
    found.raise_errors()
    beside = target.with_name(f".{target.name}.part")
    try:
        nir.write(str(beside), nir.NIRGraph(made.nodes, made.edges, type_check=False))
        beside.replace(target)
    except OSError as wrong:
        beside.unlink(missing_ok=True)
        raise error(codes.OUTPUT, f"cannot write {target}: {wrong.strerror or wrong}") from None
    return tuple(item for item, _ in made.verdicts)


def _refused(item: NirNode, op: Op) -> Diagnostic:
    return op.diagnostic(
        codes.UNSUPPORTED_OP,
        f"NIR holds this op {'not' if item.verdict == 'unsupported' else 'approximately'}",
        reason=item.reason,
        help="pass approximate=True to write it all the same"
        if item.verdict == "approximate"
        else "export the part of the network that NIR can hold",
    )


@dataclass(frozen=True)
class _Made:
    node: Any
    verdict: str = "faithful"
    reason: str = ""


class _Graph:
    """Nodes and edges under construction; a value is the sum of what its source nodes give."""

    def __init__(self, nir: Any, resources: ResourceStore, dt: float) -> None:
        self.nir, self.resources, self.dt = nir, resources, dt
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[Value, tuple[str, ...]] = {}
        self.verdicts: list[tuple[NirNode, Op]] = []

    def build(self, module: Module) -> None:
        """Translate every op of ``@inference``."""
        function = module.function("inference")
        for number, value in enumerate(function.inputs):
            name = "input" if number == 0 else f"input_{number}"
            self.nodes[name] = self.nir.Input(input_type={"input": np.array(_step(value))})
            self.sources[value] = (name,)
        for op in function.ops:
            if isinstance(op, core.Constant):
                continue
            if op.terminator:
                for number, value in enumerate(op.operands):
                    name = "output" if number == 0 else f"output_{number}"
                    node = self.nir.Output(output_type={"output": np.array(_step(value))})
                    self._add(name, node, value)
                continue
            if isinstance(op, core.Add) and op.a in self.sources and op.b in self.sources:
                # Edges into one node are summed.
                self.sources[op.y] = self.sources[op.a] + self.sources[op.b]
                continue
            self._translate(op)

    def _translate(self, op: Op) -> None:
        made = self._made(op)
        name = self._name(op)
        self.verdicts.append((NirNode(name, op.name, made.verdict, made.reason), op))
        if made.node is not None:
            self._add(name, made.node, _input(op))
        self.sources[op.results[0]] = (name,)

    def _add(self, name: str, node: Any, value: Value) -> None:
        self.nodes[name] = node
        self.edges += [(source, name) for source in self.sources.get(value, ())]

    def _name(self, op: Op) -> str:
        base = op.scope.replace(".", "_") or op.name.replace(".", "_")
        name, number = base, 0
        while name in self.nodes:
            number += 1
            name = f"{base}_{number}"
        return name

    def _made(self, op: Op) -> _Made:
        if len(op.results) > 1 and op.results[1].users:
            return _Made(None, "unsupported", "the membrane is read, NIR has spikes only")
        match op:
            case nn.Linear() if self._held(op.weight) is not None:
                weight = self._array(op.weight)
                if op.bias is None:
                    return _Made(self.nir.Linear(weight=weight))
                return _Made(self.nir.Affine(weight=weight, bias=self._array(op.bias)))
            case nn.Conv() if self._held(op.weight) is not None and len(op.stride) <= 2:
                return _Made(self._convolution(op))
            case nn.AvgPool() if len(op.kernel) == 2 and op.count_include_pad and not op.ceil_mode:
                sizes = (np.array(item) for item in (op.kernel, op.stride, op.padding))
                kernel, stride, padding = sizes
                return _Made(self.nir.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding))
            case core.Reshape() if _step(op.y) == (int(np.prod(_step(op.x))),):
                shape = {"input": np.array(_step(op.x))}
                return _Made(self.nir.Flatten(input_type=shape, start_dim=0, end_dim=-1))
            case snn.LeakyIntegrateAndFire() | snn.LeakyIntegrator() if op.time_axis:
                return self._neuron(op)
        return _Made(None, "unsupported", f"NIR has no node for {op.name} in this form")

    def _convolution(self, op: nn.Conv) -> Any:
        weight = self._array(op.weight)
        bias = np.zeros(len(weight), weight.dtype) if op.bias is None else self._array(op.bias)
        count = len(op.stride)
        kind = self.nir.Conv1d if count == 1 else self.nir.Conv2d
        size = _step(op.x)[-count:]
        given = (op.stride, op.padding, op.dilation)
        stride, padding, dilation = (item[0] if count == 1 else tuple(item) for item in given)
        return kind(
            input_shape=size[0] if count == 1 else tuple(size),
            weight=weight,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=op.groups,
            bias=bias,
        )

    def _neuron(self, op: snn.LeakyIntegrateAndFire | snn.LeakyIntegrator) -> _Made:
        shape = _step(op.x)
        leak, gain, rest = (
            self._spread(getattr(op, f"{name}s"), getattr(op, name), shape)
            for name in ("leak", "gain", "rest")
        )
        if op.start is not None or op.v_init != 0.0:
            return _Made(None, "unsupported", "NIR's membranes start at 0")
        if isinstance(op, snn.LeakyIntegrator) and op.read == "jump":
            return _Made(None, "unsupported", "the output is taken between jump and decay")
        reasons: list[str] = []
        fires: dict[str, Any] = {}
        if isinstance(op, snn.LeakyIntegrateAndFire):
            reason = _not_nirs_reset(op)
            if op.max_spikes != 1 or op.minimum is not None:
                return _Made(None, "unsupported", "NIR's neurons fire once and have no lower bound")
            if reason:
                reasons.append(reason)
            fires["v_threshold"] = self._spread(op.thresholds, op.threshold, shape)
            fires["v_reset"] = np.full(shape, op.reset_value or 0.0, dtype=leak.dtype)
        verdict = "approximate" if reasons else "faithful"
        if op.leak_as == "factor" and not op.decay_input and bool((leak == 1).all()):
            kind = self.nir.IF if fires else self.nir.I
            reasons.append("without a time constant, the current of a step is taken as its charge")
            return _Made(kind(r=gain, **fires), "approximate", "; ".join(reasons))
        rate, resistance = _euler(op, leak, gain)
        if not bool(((rate > 0) & (rate <= 1)).all()):
            return _Made(None, "unsupported", "its leak is no decay by a time constant")
        kind = self.nir.LIF if fires else self.nir.LI
        node = kind(tau=self.dt / rate, r=resistance, v_leak=rest, **fires)
        return _Made(node, verdict, "; ".join(reasons))

    def _held(self, value: Value) -> core.Constant | None:
        return value.owner if isinstance(value.owner, core.Constant) else None

    def _array(self, value: Value) -> np.ndarray[Any, Any]:
        held = self._held(value)
        if held is None:
            raise error(codes.UNSUPPORTED_OP, f"%{value.name} is computed at run time")
        made: np.ndarray[Any, Any] = self.resources.get(held.value).detach().numpy()
        return made

    def _spread(
        self, values: Value | None, value: float, shape: tuple[int, ...]
    ) -> np.ndarray[Any, Any]:
        if values is None:
            return np.full(shape, value, dtype=np.float64)
        held = self._array(values).astype(np.float64)
        # Parameters broadcast to one step with its batch; drop that axis.
        lead = held.reshape((1,) * (len(shape) + 1 - held.ndim) + held.shape)
        made: np.ndarray[Any, Any] = np.broadcast_to(lead, (1, *shape))[0].copy()
        return made


def _euler(
    op: snn.LeakyIntegrateAndFire | snn.LeakyIntegrator,
    leak: np.ndarray[Any, Any],
    gain: np.ndarray[Any, Any],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``dt / tau`` and R of a neuron."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if op.leak_as == "factor":
            driven = gain * leak if op.decay_input else gain
            return 1 - leak, driven / (1 - leak)
        rate = leak if op.leak_as == "rate" else 1 / leak
        return rate, gain if op.decay_input else gain / rate


def _not_nirs_reset(op: snn.LeakyIntegrateAndFire) -> str:
    if op.reset == "hard" and op.reset_at == "present":
        return ""
    if op.reset == "none":
        return "NIR's neurons reset; this one does not"
    if op.reset == "subtract":
        return "NIR resets to a value; this neuron subtracts its threshold"
    return "NIR resets at once; this neuron resets in the next step"


def _input(op: Op) -> Value:
    held: Mapping[str, Any] = op.__dict__
    found = held.get("x")
    return found if isinstance(found, Value) else op.operands[0]


def _step(value: Value) -> tuple[int, ...]:
    """Shape of one sample at one time step, of ``[T, B, ...]``."""
    shape = tensor(value).shape[2:]
    if not all(isinstance(size, int) for size in shape):
        raise error(
            codes.UNSUPPORTED_OP,
            f"%{value.name} is {value.type}: NIR needs known sizes behind time and batch",
        )
    return tuple(int(str(size)) for size in shape)
