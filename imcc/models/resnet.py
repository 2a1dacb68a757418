"""ResNet-20 for images of 32 x 32 (He et al., CVPR 2016), with projections where sizes change."""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        made = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        result: Tensor = (made + self.around(x)).relu()
        return result


def resnet20(classes: int = 10) -> nn.Module:
    """Class scores of ``[B, 3, 32, 32]``: 16, 32 and 64 channels, three blocks each."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    layers.append(nn.ReLU())
    channels = 16
    for width in (16, 32, 64):
        for place in range(3):
            layers.append(BasicBlock(channels, width, 2 if place == 0 and width > 16 else 1))
            channels = width
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    return nn.Sequential(*layers, *pool)
