"""Wide residual networks, whose blocks normalise before they convolve."""

import functools

import torch
from torch import nn

from .networks import (
    AuxiliaryClassifiers,
    Outputs,
    convolution,
    pooled,
)


class Block(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = convolution(width_in, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.convShortcut = None
        if width_in != width:
            self.convShortcut = convolution(width_in, width, 1, stride)

    def forward(self, x):
        activated = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


class Stage(nn.Module):
    def __init__(self, blocks, width_in, width, stride):
        super().__init__()
        first = Block(width_in, width, stride)
        others = [Block(width, width, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(first, *others)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, factor, num_classes):
        super().__init__()
        self.blocks = (depth - 4) // 6
        self.widths = widths = (16, 16 * factor, 32 * factor, 64 * factor)
        self.conv1 = convolution(3, 16, 3)
        self.block1 = Stage(self.blocks, widths[0], widths[1], 1)
        self.block2 = Stage(self.blocks, widths[1], widths[2], 2)
        self.block3 = Stage(self.blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.width = widths[3]
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, images):
        stages = [self.conv1(images)]
        for block in (self.block1, self.block2, self.block3):
            stages.append(block(stages[-1]))
        embedding = pooled(torch.relu(self.bn1(stages[-1])))
        return Outputs(stages, stages[1:], embedding, self.fc(embedding))

    def auxiliary_classifiers(self, width):
        blocks, (_, first, second, third) = self.blocks, self.widths
        extractors = [
            nn.Sequential(Stage(blocks, first, second, 2), Stage(blocks, second, third, 2)),
            nn.Sequential(Stage(blocks, second, third, 2)),
            nn.Sequential(Stage(blocks, third, third, 1)),
        ]
        return AuxiliaryClassifiers(extractors, third, width, {"bn": lambda: nn.BatchNorm2d(third)})


NETWORKS = {
    f"wrn_{depth}_{factor}": functools.partial(WideResNet, depth, factor)
    for depth in (16, 40)
    for factor in (1, 2)
}
