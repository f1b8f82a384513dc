"""Residual networks: CIFAR's of basic blocks, ResNet50 with CIFAR's stem, and ImageNet's."""

import functools

import torch
from torch import nn

from .networks import (
    AuxiliaryClassifiers,
    Outputs,
    convolution,
    pooled,
)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, width_in, width, stride, projection):
        super().__init__()
        self.conv1 = convolution(width_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.projection = add_projection(self, projection, width_in, width, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.projection(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, width_in, width, stride, projection):
        super().__init__()
        self.conv1 = convolution(width_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.projection = add_projection(self, projection, width_in, 4 * width, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.projection(x))


def add_projection(block, name, width_in, width, stride):
    """The shortcut as a function; where the shape changes it is a module of this name."""
    if stride == 1 and width_in == width:
        return lambda x: x
    module = nn.Sequential(convolution(width_in, width, 1, stride), nn.BatchNorm2d(width))
    block.add_module(name, module)
    return lambda x: module(x)


class ResNet(nn.Module):
    """Stages of blocks; the first block of each stage but the first halves the size."""

    def __init__(self, block, blocks, widths, num_classes, *, projection, classifier, imagenet):
        super().__init__()
        stem, *widths = widths
        self.imagenet, self.classifier = imagenet, classifier
        if imagenet:
            self.conv1 = convolution(3, stem, 7, 2)
        else:
            self.conv1 = convolution(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stage_names = [f"layer{number}" for number in range(1, len(widths) + 1)]
        self.make_stage = functools.partial(stage_of, block, blocks, [stem, *widths], projection)
        for number, name in enumerate(self.stage_names, 1):
            setattr(self, name, self.make_stage(number, stride=1 if number == 1 else 2))
        self.width = widths[-1] * block.expansion
        setattr(self, classifier, nn.Linear(self.width, num_classes))

    def forward(self, images):
        x = torch.relu(self.bn1(self.conv1(images)))
        if self.imagenet:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        stages = [x]
        for name in self.stage_names:
            stages.append(getattr(self, name)(stages[-1]))
        embedding = pooled(stages[-1])
        logits = getattr(self, self.classifier)(embedding)
        return Outputs(stages, stages[1:], embedding, logits)

    def auxiliary_classifiers(self, width):
        last = len(self.stage_names)
        extractors = [
            nn.Sequential(
                *[self.make_stage(number, stride=2) for number in range(tap + 1, last + 1)]
            )
            for tap in range(1, last)
        ]
        repeated = self.make_stage(last, stride=1, width_in=self.width)
        return AuxiliaryClassifiers([*extractors, nn.Sequential(repeated)], self.width, width)


def stage_of(block, blocks, widths, projection, number, *, stride, width_in=None):
    """Stage `number` (from 1); `widths` begins with the stem's."""
    width = widths[number]
    if width_in is None:
        width_in = widths[0] if number == 1 else widths[number - 1] * block.expansion
    first = block(width_in, width, stride, projection)
    others = [
        block(width * block.expansion, width, 1, projection) for _ in range(blocks[number - 1] - 1)
    ]
    return nn.Sequential(first, *others)


def cifar(depth, *widths):
    blocks = [(depth - 2) // 6] * 3
    return functools.partial(
        ResNet, BasicBlock, blocks, widths, projection="downsample", classifier="fc", imagenet=False
    )


def imagenet(block, *blocks):
    widths = (64, 64, 128, 256, 512)
    return functools.partial(
        ResNet, block, blocks, widths, projection="downsample", classifier="fc", imagenet=True
    )


NETWORKS = {
    **{f"resnet{depth}": cifar(depth, 16, 16, 32, 64) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": cifar(depth, 32, 64, 128, 256) for depth in (8, 32)},
    **{f"resnet{depth}x05": cifar(depth, 8, 8, 16, 32) for depth in (14, 20)},
    "resnet20x0375": cifar(20, 6, 6, 12, 24),
    "resnet50": functools.partial(
        ResNet,
        Bottleneck,
        (3, 4, 6, 3),
        (64, 64, 128, 256, 512),
        projection="shortcut",
        classifier="linear",
        imagenet=False,
    ),
    "resnet18_imagenet": imagenet(BasicBlock, 2, 2, 2, 2),
    "resnet34_imagenet": imagenet(BasicBlock, 3, 4, 6, 3),
    "resnet50_imagenet": imagenet(Bottleneck, 3, 4, 6, 3),
}
