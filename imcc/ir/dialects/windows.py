"""Shape rules shared by ops that slide a window: convolutions and pooling of any dialect."""

from __future__ import annotations

from collections.abc import Sequence

from imcc.ir.dims import Dim
from imcc.ir.ops import Op, attribute
from imcc.ir.types import TensorType


def check_window(op: Op, x: TensorType, weight: TensorType, groups: int) -> None:
    """Channels fit: ``x [..., C, spatial]`` and ``weight [N, C/groups, kernel]``."""
    spatial = weight.rank - 2
    if spatial < 1 or x.rank < spatial + 1:
        raise op.fail(f"{x} and weight {weight} do not fit a convolution")
    channels, outputs = x.shape[-spatial - 1], weight.shape[0]
    if not (isinstance(channels, int) and isinstance(outputs, int)):
        raise op.fail("channels must have a known size")
    if channels % groups or outputs % groups or weight.shape[1] != channels // groups:
        raise op.fail(
            f"weight {weight} needs {weight.shape[1]} channels for each of {groups} groups, "
            f"the input has {channels}"
        )


def windowed_shape(
    op: Op,
    x: TensorType,
    kernel: Sequence[Dim],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels: Dim | None = None,
    ceil_mode: bool = False,
) -> tuple[Dim, ...]:
    """The output shape: ``floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1``.

    ``channels`` replaces the channel axis. With ``ceil_mode`` the division rounds up, and a last
    window that would start in the padding is dropped, as torch does.
    """
    count = len(kernel)
    if not len(stride) == len(padding) == len(dilation) == count:
        raise op.fail(f"stride, padding and dilation need {count} numbers each")
    if x.rank < count + 1:
        raise op.fail(f"{x} has too few axes for a window over {count}")
    sizes: list[Dim] = []
    for size, k, s, p, d in zip(x.shape[-count:], kernel, stride, padding, dilation, strict=True):
        if not (isinstance(size, int) and isinstance(k, int)):
            raise op.fail(f"a window needs known sizes, found {size}")
        room = size + 2 * p - d * (k - 1) - 1
        made = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (made - 1) * s >= size + p:
            made -= 1
        if room < 0 or made < 1:
            raise op.fail(f"a window of {k} (dilation {d}) does not fit size {size}, padding {p}")
        sizes.append(made)
    channel = x.shape[-count - 1] if channels is None else channels
    return (*x.shape[: -count - 1], channel, *sizes)


class ConvolutionWindow(Op):
    """How a convolution slides: what ``nn.conv`` and ``quant.conv`` share.

    One number for each spatial axis, one to three axes, the last ones of the input.
    """

    stride: tuple[int, ...] = attribute(minimum=1)
    padding: tuple[int, ...] = attribute(minimum=0)
    dilation: tuple[int, ...] = attribute(minimum=1)
    groups: int = attribute(default=1, minimum=1)

    def output_shape(self, x: TensorType, weight: TensorType) -> tuple[Dim, ...]:
        """``[..., N, spatial]`` for a weight ``[N, C / groups, kernel]``."""
        if not 1 <= len(self.stride) <= 3:
            raise self.fail(f"has {len(self.stride)} spatial axes, 1 to 3 are supported")
        check_window(self, x, weight, self.groups)
        return windowed_shape(
            self, x, weight.shape[2:], self.stride, self.padding, self.dilation, weight.shape[0]
        )
