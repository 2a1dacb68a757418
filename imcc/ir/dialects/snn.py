"""``snn``: spiking neurons over a leading time axis.

Libraries differ in how a membrane leaks, when a spike resets it and whether the threshold itself
fires; each difference is an attribute, so that a captured network computes what its library does.
Networks with a synaptic current are an integrator in front of a neuron: ``snn.li`` then
``snn.lif``.
"""

from __future__ import annotations

from typing import Literal

from imcc.ir.dialects.core import broadcast, tensor
from imcc.ir.dims import Dim
from imcc.ir.ops import Op, Value, attribute, operand, result
from imcc.ir.types import FLOATS, SpikesType, TensorType, Type

SEMANTICS = "imcc.ir.semantics.snn"


class Integrator(Op):
    """What leaks and integrates: the parameters that all neurons share."""

    x: Value = operand(TensorType, elements=FLOATS, doc="[T, ...], or [...] without a time axis")
    start: Value | None = operand(
        TensorType, elements=FLOATS, default=None, doc="state before the first step; else v_init"
    )
    leaks: Value | None = operand(
        TensorType, elements=FLOATS, default=None, doc="leak per element; broadcasts to one step"
    )
    gains: Value | None = operand(
        TensorType, elements=FLOATS, default=None, doc="gain per element; broadcasts to one step"
    )
    rests: Value | None = operand(
        TensorType, elements=FLOATS, default=None, doc="rest per element; broadcasts to one step"
    )
    time_axis: bool = attribute(default=True, doc="axis 0 of x is time; false: x is one step")
    leak: float = attribute(default=1.0, doc="l; ignored where leaks is given")
    leak_as: Literal["factor", "rate", "time_constant"] = attribute(default="factor")
    decay_input: bool = attribute(default=False, doc="the input is subject to the leak as well")
    rest: float = attribute(default=0.0, doc="the value that the state leaks to")
    gain: float = attribute(default=1.0, doc="g; ignored where gains is given")
    v_init: float = attribute(default=0.0, doc="state before the first step")

    @property
    def step_shape(self) -> tuple[Dim, ...]:
        """Shape of one time step."""
        shape = tensor(self.x).shape
        return shape[1:] if self.time_axis else shape

    def _check(self, *parameters: str) -> None:
        x, step = tensor(self.x), self.step_shape
        for name in ("start", "leaks", "gains", "rests", *parameters):
            value: Value | None = getattr(self, name)
            if value is None:
                continue
            kind = tensor(value)
            if kind.element != x.element:
                raise self.fail(f"{name} has elements {kind.element}, x has {x.element}")
            if broadcast(self, kind.shape, step) != step:
                raise self.fail(f"{name} is {kind}, larger than one step of {x}")
        if self.leak_as == "factor" and (self.rest != 0.0 or self.rests is not None):
            raise self.fail('a rest other than 0 needs leak_as = "rate" or "time_constant"')
        if self.leak_as == "time_constant" and self.leaks is None and self.leak == 0.0:
            raise self.fail("a time constant of 0 steps divides by zero")

    def _needs_time(self) -> TensorType:
        x = tensor(self.x)
        if self.time_axis and (x.rank < 1 or not isinstance(x.shape[0], int)):
            raise self.fail(
                f"{x} has no time axis of known size in front",
                help="give the number of time steps, or set time_axis = false for a single step",
            )
        return x


class LeakyIntegrator(Integrator, name="snn.li"):
    """Leaky integrator: a membrane that never fires, or the current of a synapse.

    With ``u = g x[t]``, the state v starts from ``start`` (or ``v_init``) and each step computes

    ================ ================================ =================================
    leak_as          decay_input = false              decay_input = true
    ================ ================================ =================================
    factor           ``v <- l v + u``                 ``v <- l (v + u)``
    rate             ``v <- v - (v - rest) l + u``    ``v <- v + (u - (v - rest)) l``
    time_constant    ``v <- v - (v - rest) / l + u``  ``v <- v + (u - (v - rest)) / l``
    ================ ================================ =================================

    and gives ``y[t] = v``. With ``read = "jump"`` the output is taken between jump and decay:
    ``y[t] = v + u``, then ``v <- y[t] - y[t] l`` (Pehle and Pedersen, Norse, 2021), for which
    ``leak_as`` must be ``rate``. ``v[t]`` is the state after each step. Both are shaped like ``x``.
    """

    example = (
        "%x: tensor<4xBx8xf32> => "
        '%y, %v = snn.li %x {leak = 0.2, leak_as = "rate", read = "jump"} '
        ": tensor<4xBx8xf32>, tensor<4xBx8xf32>"
    )

    read: Literal["state", "jump"] = attribute(default="state")
    y: Value = result(doc="what the next op sees, [T, ...]")
    v: Value = result(doc="the state after each step, [T, ...]")

    def infer(self) -> tuple[Type, ...]:
        """Both shaped like ``x``."""
        x = self._needs_time()
        return (x, x)

    def verify(self) -> None:
        """Parameters broadcast to one step, and the jump is read of a rate without rest."""
        self._check()
        if self.read == "jump":
            plain = self.rest == 0.0 and self.rests is None and not self.decay_input
            if self.leak_as != "rate" or not plain:
                raise self.fail('read = "jump" needs leak_as = "rate", no rest, no decay_input')


class Neuron(Integrator):
    """A neuron's parameters: what ``snn.lif`` and its gradient share."""

    thresholds: Value | None = operand(
        TensorType, elements=FLOATS, default=None, doc="threshold per element; broadcasts to a step"
    )
    threshold: float = attribute(default=1.0, doc="ignored where thresholds is given")
    fires_at: Literal["above", "threshold"] = attribute(default="threshold")
    max_spikes: int = attribute(default=1, minimum=0, doc="in one step; 0 is no limit")
    reset: Literal["subtract", "hard", "none"] = attribute(default="subtract")
    reset_at: Literal["present", "next", "next_with_input", "both"] = attribute(default="present")
    reset_value: float | None = attribute(
        default=None, doc="what is subtracted (none: the threshold) or set (none: 0)"
    )
    minimum: float | None = attribute(default=None, doc="lower bound of the membrane")
    surrogate: Literal[
        "atan",
        "fast_sigmoid",
        "sigmoid",
        "triangle",
        "exponential",
        "gaussian",
        "rectangle",
        "straight_through",
        "none",
    ] = attribute(default="none")
    surrogate_slope: float = attribute(default=1.0)
    surrogate_scale: float = attribute(default=1.0)
    detach_reset: bool = attribute(default=False)

    def verify(self) -> None:
        """Parameters broadcast to one step; counts reset at once by a positive threshold."""
        self._check("thresholds")
        if self.max_spikes != 1:
            if self.reset_at != "present":
                raise self.fail('counting neurons reset with reset_at = "present"')
            if self.thresholds is None and self.threshold <= 0.0:
                raise self.fail(f"a count needs a positive threshold, found {self.threshold}")
        delayed = self.reset_at != "present" and self.reset == "hard"
        if delayed and self.reset_value not in (None, 0.0):
            raise self.fail(f"a delayed hard reset is to 0, not {self.reset_value}")


class LeakyIntegrateAndFire(Neuron, name="snn.lif"):
    """Leaky integrate-and-fire neuron; with ``leak = 1`` as a factor it does not leak.

    Each step integrates, fires and resets. With ``u = g x[t]`` the membrane v becomes h:

    ================ ================================ =================================
    leak_as          decay_input = false              decay_input = true
    ================ ================================ =================================
    factor           ``h = l v + u``                  ``h = l (v + u)``
    rate             ``h = v - (v - rest) l + u``     ``h = v + (u - (v - rest)) l``
    time_constant    ``h = v - (v - rest) / l + u``   ``h = v + (u - (v - rest)) / l``
    ================ ================================ =================================

    ``s[t] = 1`` where ``h > threshold`` (``fires_at = "above"``) or ``h >= threshold``
    (``"threshold"``), else 0. With ``max_spikes`` n > 1, or 0 for no limit, s counts:
    ``s[t] = min(trunc(h / threshold), n)`` where h > 0.

    ``reset = "subtract"``: ``v = h - s a`` with a = ``reset_value`` or the threshold;
    ``reset = "hard"``: ``v = (1 - s) h + s reset_value``, for counts ``v = h`` where s = 0, else
    ``reset_value``; ``reset = "none"``: ``v = h``. When this happens is ``reset_at``:

    - ``present``: after firing, as above (Fang et al., SpikingJelly, 2023).
    - ``next``: at the start of the next step (Eshraghian et al., snnTorch, 2023). r = 1 where v is
      beyond the threshold; ``subtract``: ``h - r a`` fires, ``hard``: the leak sees
      ``(1 - r) v``. v[t] is h.
    - ``next_with_input``: as ``next``, but ``hard`` gives ``h - r h``: the input of the step that
      resets is lost too.
    - ``both``: as ``next``, then after firing ``v = h - (s - r) a``, for ``hard``
      ``v = h - (s - r) h``.

    At last ``v = max(v - minimum, 0) + minimum`` where ``minimum`` is given.

    The gradient of a spike in h is ``surrogate``'s, with ``d = surrogate_slope (h - threshold)``
    and ``c = surrogate_scale``: ``atan`` c / (1 + d^2), ``fast_sigmoid`` c / (1 + |d|)^2,
    ``sigmoid`` c S(d) (1 - S(d)), ``triangle`` c max(1 - |d|, 0), ``exponential`` c exp(-|d|),
    ``gaussian`` c exp(-d^2), ``rectangle`` c where |d| < 1, ``straight_through`` c, ``none`` 0.
    With ``detach_reset`` no gradient passes through the reset.

    ``spikes`` is shaped like ``x``, spikes unless s counts; ``v`` is the membrane after each step.
    """

    example = (
        "%x: tensor<4xBx8xf32> => "
        "%s, %v = snn.lif %x {leak = 2.0, "
        'leak_as = "time_constant", decay_input = true, reset = "hard"} '
        ": spikes<4xBx8>, tensor<4xBx8xf32>"
    )

    spikes: Value = result(doc="[T, ...]")
    v: Value = result(doc="the membrane after each step, [T, ...]")

    def infer(self) -> tuple[Type, ...]:
        """Both shaped like ``x``; spikes where at most one is fired in a step."""
        x = self._needs_time()
        fired = SpikesType(x.shape, x.element) if self.max_spikes == 1 else x
        return (fired, x)
