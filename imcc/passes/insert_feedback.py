"""Pass ``insert-feedback``: an entry point that adapts the weights on line."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from imcc.ir import codes
from imcc.ir.diagnostics import Diagnostic, DiagnosticError, nearest
from imcc.ir.dialects import core, learn, nn
from imcc.ir.dialects.core import tensor
from imcc.ir.dims import Dim, Monomial
from imcc.ir.module import Function, FunctionResult, Module, State, clone_function
from imcc.ir.ops import Op, Value
from imcc.ir.rewriting import Rewriter
from imcc.ir.types import TensorType
from imcc.passes.infrastructure import Exact, Pass, PassContext, option

BATCH = Monomial(1, ("B",))
MATRIX_OPS = (nn.Linear, nn.Conv)


@dataclass(frozen=True)
class InsertFeedback(Pass):
    """Make weights state, and add ``@adapt(inputs, labels)``: forward pass, error, updates.

    The output error e is the derivative of the loss (``learn.output_error``). Gradients run back
    through the adjoint rule of each op; at the input of a matrix layer the rules differ:

    - ``bp``: ``W^T delta``, by a read of the transposed weight.
    - ``dfa``: ``B e`` with a fixed random matrix B for each input, so that no layer waits for a
      later one and no weight is read transposed (Nokland, NeurIPS 2016; for spiking networks on
      RRAM: Bhattacharjee et al., arXiv 2502.06736). B projects to all elements of the input and
      is repeated over time steps.
    - ``dfa-shared``: as ``dfa``, each B being the first rows of one matrix, which is read once.

    With ``feedback = "channels"`` B projects to the channels of a feature map and is repeated over
    its positions too: as over time steps, where a convolution runs along time.

    Elements of B are normal with deviation ``feedback_scale / sqrt(outputs)``, drawn from the
    run's seed. Each adapted weight is updated by ``w - learning_rate * dw`` (``learn.update``).

    A neuron passes its gradient on by the surrogate that it declares: ``through_time`` as
    back-propagation through its time steps does, ``local`` each step for itself,
    ``dy[t] phi'(u[t])``, which needs no history of the membrane. ``auto`` is the form in which the
    rule is written: through time for ``bp``, local for direct feedback.

    ``@inference`` computes what it did, from states that start as the weights.
    """

    name: ClassVar[str] = "insert-feedback"
    contract: ClassVar[Exact] = Exact()
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    rule: Literal["dfa", "bp", "dfa-shared"] = option(
        default="dfa", doc="how the error reaches the layers"
    )
    layers: tuple[str, ...] = option(
        default=("*",), doc="patterns over names of weights and biases that adapt"
    )
    learning_rate: float = option(default=0.01, minimum=0.0, doc="step of an update")
    loss: Literal["cross_entropy", "squared"] = option(
        default="cross_entropy", doc="what the output error is the derivative of"
    )
    feedback_scale: float = option(
        default=1.0, minimum=0.0, doc="deviation of B e relative to that of e"
    )
    feedback: Literal["elements", "channels"] = option(
        default="elements", doc="what has rows of B of its own: elements of a layer, or channels"
    )
    neurons: Literal["auto", "through_time", "local"] = option(
        default="auto", doc="how gradients pass spiking neurons"
    )

    def run(self, module: Module, context: PassContext) -> None:
        """Add states and the entry point."""
        from imcc.ir import layer_adjoints

        del layer_adjoints  # its import registers the rules
        rewriter = context.rewriter(module, self.name)
        inference = module.function("inference")
        output = self._output(inference)
        parameters = self._parameters(inference)
        for name, value in parameters.items():
            state = rewriter.add_state(State(name, value.type, init=name))
            held = rewriter.add_argument(inference, value.type, _identifier(name), state=state.name)
            for op in [op for op in inference.ops if _reads(op, name)]:
                rewriter.replace_uses(op.results[0], held)
                rewriter.erase(op, "the weight is a state now")
        adapt = clone_function(inference, "adapt")
        classes = tensor(output).shape[1]
        batch = TensorType((tensor(output).shape[0],), "i64")
        labels = adapt.add_argument(batch, "labels")
        rewriter.add_function(adapt)
        made = _Backward(self, adapt, rewriter, context, int(str(classes)))
        made.run(labels, parameters)

    def _output(self, function: Function) -> Value:
        last = function.terminator
        values = list(last.operands) if last is not None else []
        if len(values) != 1 or tensor(values[0]).rank != 2 or not _is_size(values[0], -1):
            shown = ", ".join(str(value.type) for value in values) or "nothing"
            raise DiagnosticError(
                Diagnostic(
                    codes.UNSUPPORTED_FORM,
                    f"adaptation needs one output [B, classes], @{function.name} returns {shown}",
                    help="let the model return class scores, averaged over time steps if it spikes",
                )
            )
        return values[0]

    def _parameters(self, function: Function) -> dict[str, Value]:
        """The first constant of every weight and bias that adapts, by resource name."""
        found: dict[str, Value] = {}
        names: list[str] = []
        for op in function.ops:
            if not isinstance(op, MATRIX_OPS):
                continue
            for value in (op.weight, op.bias):
                if value is None or not isinstance(value.owner, core.Constant):
                    continue
                name = str(value.owner.value)
                names.append(name)
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.layers):
                    found[name] = value
        for pattern in self.layers:
            if not fnmatch.filter(names, pattern):
                raise DiagnosticError(
                    Diagnostic(
                        codes.BAD_OPTION,
                        f"pass {self.name}, option layers: {pattern!r} matches no weight",
                        suggestions=nearest(pattern, names),
                        help="weights and biases that can adapt: " + (", ".join(names) or "none"),
                    )
                )
        return found


class _Backward:
    """Builds the backward part of ``@adapt``."""

    def __init__(
        self,
        options: InsertFeedback,
        function: Function,
        rewriter: Rewriter,
        context: PassContext,
        classes: int,
    ) -> None:
        self.options, self.function = options, function
        self.rewriter, self.context, self.classes = rewriter, context, classes
        self.gradients: dict[Value, Value] = {}
        self.error: Value | None = None
        self.shared: Value | None = None
        local = options.neurons == "local" or (options.neurons == "auto" and options.rule != "bp")
        self.through_time = not local
        self.source: Op | None = None
        self.maps: dict[Value, Value] = {}

    def run(self, labels: Value, parameters: dict[str, Value]) -> None:
        """Append error, gradients and updates; return outputs and new states."""
        from imcc.ir.adjoints import pull_back

        last = self.function.terminator
        if last is None:
            return
        (output,) = last.operands
        forward = [op for op in self.function.ops if op is not last]
        self.rewriter.erase(last, "the backward part follows")
        states = {
            name: value
            for value, name in zip(
                self.function.arguments, self.function.argument_states, strict=True
            )
            if name in parameters
        }
        depends = _dependants(forward, states.values())
        # Before gradients read what the layers read.
        self.maps = {
            op.x: self._map_of(op.x)
            for op in forward
            if isinstance(op, MATRIX_OPS) and op.x in depends and self.options.rule != "bp"
        }
        self.source = output.owner
        error = learn.OutputError(y=output, labels=labels, loss=self.options.loss)
        self.error = self.emit(error).result
        self.gradients[output] = self.error
        if self.options.rule == "dfa-shared":
            self._share(forward, depends)
        for op in reversed(forward):
            found = [self.gradients.get(value) for value in op.results]
            named = dict(_operands(op))
            wanted = {name for name, value in named.items() if value in depends}
            if not wanted or all(item is None for item in found):
                continue
            self.source = op
            feedback = None
            if isinstance(op, MATRIX_OPS) and self.options.rule != "bp" and "x" in wanted:
                wanted.discard("x")
                feedback = op.x
            for name, gradient in pull_back(op, self.emit, found, wanted).items():
                self._add(named[name], gradient)
            if feedback is not None:
                self._feed_back(feedback)
        updated = {name: self._update(value) for name, value in states.items()}
        values = (output, *updated.values())
        self.rewriter.append(self.function, core.Return(values=values))
        results = [FunctionResult(output.type)]
        results += [FunctionResult(value.type, state=name) for name, value in updated.items()]
        self.rewriter.set_results(self.function, results)

    def emit(self, op: Op) -> Op:
        """Append an op with the scope and place of the op that it is the adjoint of."""
        if isinstance(op, learn.NeuronGradient):
            op._set("through_time", self.through_time)
        if self.source is not None:
            op._set("scope", self.source.scope)
            op._set("loc", self.source.loc)
        return self.rewriter.append(self.function, op)

    def _add(self, value: Value, gradient: Value) -> None:
        held = self.gradients.get(value)
        if held is not None:
            gradient = self.emit(core.Add(a=held, b=gradient)).result
        self.gradients[value] = gradient

    def _update(self, value: Value) -> Value:
        gradient = self.gradients.get(value)
        if gradient is None:
            return value
        users = [op for op in value.users if isinstance(op, MATRIX_OPS)]
        self.source = users[0] if users else None
        made = learn.Update(weight=value, dw=gradient, rate=self.options.learning_rate)
        return self.emit(made).result

    # -- feedback ---------------------------------------------------------------------------------

    def _feed_back(self, value: Value) -> None:
        """Give ``value`` the gradient ``B e``, once however many layers read it."""
        if self.error is None:
            return
        value = self.maps.get(value, value)
        leading, rest = self._layout(value)
        positions = len(rest) - self._kept(rest)
        rest = rest[: len(rest) - positions]
        rows = math.prod(rest)
        if self.shared is not None:
            projected = self.emit(core.Slice(x=self.shared, axis=1, start=0, stop=rows)).result
        else:
            projected = self.emit(nn.Linear(x=self.error, weight=self._matrix(value, rows))).result
        shape: tuple[Dim, ...] = (tensor(projected).shape[0], *rest)
        made = self.emit(core.Reshape(x=projected, shape=shape)).result
        if leading or positions:
            rank = tensor(value).rank
            axes = (*range(-rank, len(leading) - rank), *range(-positions, 0))
            made = self.emit(learn.Spread(dy=made, x=value, axes=axes)).result
        self._add(value, made)

    def _map_of(self, value: Value) -> Value:
        """With feedback to channels, the feature map that a flattened value is made of."""
        owner = value.owner
        while (
            self.options.feedback == "channels"
            and isinstance(owner, core.Reshape)
            and len(owner.y.users) == 1
            and BATCH in tensor(owner.x).shape
            and len(self._layout(owner.x)[1]) > len(self._layout(value)[1])
        ):
            value = owner.x
            owner = value.owner
        return value

    def _kept(self, rest: tuple[int, ...]) -> int:
        """Axes behind the batch that have rows of B of their own."""
        channels = self.options.feedback == "channels" and len(rest) > 1
        return 1 if channels else len(rest)

    def _layout(self, value: Value) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
        shape = tensor(value).shape
        if BATCH not in shape:
            raise DiagnosticError(
                Diagnostic(
                    codes.UNSUPPORTED_FORM,
                    f"feedback reaches %{value.name} of type {value.type}, which has no axis B",
                    help="capture the model with a dynamic batch",
                )
            )
        place = shape.index(BATCH)
        if not all(isinstance(size, int) for size in shape[place + 1 :]):
            raise DiagnosticError(
                Diagnostic(
                    codes.UNSUPPORTED_FORM,
                    f"feedback to %{value.name} of type {value.type} needs known sizes behind B",
                )
            )
        return shape[:place], tuple(int(str(size)) for size in shape[place + 1 :])

    def _matrix(self, value: Value, rows: int) -> Value:
        name = (self.source.scope if self.source is not None else "") or value.name
        return self._draw(f"{name}.feedback", rows)

    def _share(self, forward: list[Op], depends: set[Value]) -> None:
        """Project the error once, to the size of the largest layer; the others take a part."""
        maps = [
            self._layout(self.maps[op.x])[1]
            for op in forward
            if isinstance(op, MATRIX_OPS) and op.x in depends
        ]
        sizes = [math.prod(rest[: self._kept(rest)]) for rest in maps]
        if sizes and self.error is not None:
            drawn = self._draw("feedback", max(sizes))
            self.shared = self.emit(nn.Linear(x=self.error, weight=drawn)).result

    def _draw(self, name: str, rows: int) -> Value:
        import hashlib

        import torch

        # Keyed by seed and name, so that one layer's matrix does not depend on the others.
        digest = hashlib.sha256(f"{self.context.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        drawn = torch.randn(rows, self.classes, generator=generator)
        scale = self.options.feedback_scale / math.sqrt(self.classes)
        element = str(tensor(self.error).element) if self.error is not None else "f32"
        held = drawn.double() if element == "f64" else drawn
        resource = self.rewriter.add_resource(self.context.weights().put(name, held * scale))
        return self.emit(core.Constant.of(resource.name, resource.type)).result


def _operands(op: Op) -> list[tuple[str, Value]]:
    made: list[tuple[str, Value]] = []
    for declared in type(op).spec().operands:
        held = op.__dict__[declared.name]
        if declared.variadic:
            made += [(f"{declared.name}.{index}", value) for index, value in enumerate(held)]
        elif isinstance(held, Value):
            made.append((declared.name, held))
    return made


def _dependants(ops: Iterable[Op], sources: Iterable[Value]) -> set[Value]:
    found = set(sources)
    for op in ops:
        if any(value in found for value in op.operands):
            found.update(op.results)
    return found


def _reads(op: Op, resource: str) -> bool:
    return isinstance(op, core.Constant) and str(op.value) == resource


def _is_size(value: Value, axis: int) -> bool:
    return isinstance(tensor(value).shape[axis], int)


def _identifier(name: str) -> str:
    return name.replace(".", "_")
