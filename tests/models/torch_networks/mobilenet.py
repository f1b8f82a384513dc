"""MobileNetV2 of half the width, for small images."""

import torch
from torch import nn

from .networks import (
    AuxiliaryClassifiers,
    Outputs,
    convolution,
    pooled,
)

# expansion, width, repeats, stride of the first
SETTINGS = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
STEM, TAIL = 16, 1280
TAPPED = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    def __init__(self, width_in, width, stride, expansion):
        super().__init__()
        inner = expansion * width_in
        self.is_residual = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            convolution(width_in, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            convolution(inner, inner, 3, stride, groups=inner),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            convolution(inner, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return x + self.conv(x) if self.is_residual else self.conv(x)


def blocks_of(number, stride=None, width_in=None):
    """The blocks of one setting."""
    expansion, width, repeats, first_stride = SETTINGS[number]
    if width_in is None:
        width_in = SETTINGS[number - 1][1] if number else STEM
    first = InvertedResidual(width_in, width, stride or first_stride, expansion)
    others = [InvertedResidual(width, width, 1, expansion) for _ in range(repeats - 1)]
    return nn.Sequential(first, *others)


def tail():
    return nn.Sequential(convolution(SETTINGS[-1][1], TAIL, 1), nn.BatchNorm2d(TAIL))


class MobileNetV2(nn.Module):
    width = TAIL

    def __init__(self, num_classes, stem_stride=2):
        super().__init__()
        self.conv1 = nn.Sequential(convolution(3, STEM, 3, stem_stride), nn.BatchNorm2d(STEM))
        self.blocks = nn.ModuleList([blocks_of(number) for number in range(len(SETTINGS))])
        self.conv2 = tail()
        self.classifier = nn.Linear(TAIL, num_classes)

    def forward(self, images):
        x = torch.relu(self.conv1(images))
        stem, taps = x, []
        for number, blocks in enumerate(self.blocks):
            x = blocks(x)
            taps += [x] if number in TAPPED else []
        embedding = pooled(torch.relu(self.conv2(x)))
        return Outputs([stem, *taps], taps, embedding, self.classifier(embedding))

    def auxiliary_classifiers(self, width):
        extractors = [
            nn.Sequential(*[blocks_of(number) for number in range(tap + 1, len(SETTINGS))])
            for tap in TAPPED[:-1]
        ]
        last = nn.Sequential(blocks_of(5, stride=1, width_in=SETTINGS[-1][1]), blocks_of(6))
        return AuxiliaryClassifiers([*extractors, last], TAIL, width, {"conv2_": tail})


NETWORKS = {"mobilenet_v2": MobileNetV2}
