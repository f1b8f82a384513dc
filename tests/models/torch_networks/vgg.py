"""VGG with batch normalisation and without its wide dense layers."""

import functools

import torch
from torch import nn

from .networks import (
    AuxiliaryClassifiers,
    Outputs,
    convolution,
    pooled,
)

WIDTHS = (64, 128, 256, 512, 512)


def group(width_in, width, convolutions):
    """A group without its last ReLU, which stands outside."""
    modules = []
    for index in range(convolutions):
        modules.append(convolution(width if index else width_in, width, 3, bias=True))
        modules.append(nn.BatchNorm2d(width))
        modules.append(nn.ReLU())
    return nn.Sequential(*modules[:-1])


class VGG(nn.Module):
    def __init__(self, convolutions, num_classes):
        super().__init__()
        self.convolutions = convolutions
        self.block0 = self.group(0, 3)
        for number in range(1, 5):
            setattr(self, f"block{number}", self.group(number))
        self.width = WIDTHS[-1]
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)

    def group(self, number, width_in=None):
        width_in = WIDTHS[number - 1] if width_in is None else width_in
        return group(width_in, WIDTHS[number], self.convolutions[number])

    def forward(self, images):
        x, stages = images, []
        for number in range(5):
            stages.append(torch.relu(getattr(self, f"block{number}")(x)))
            is_pooled = number < 3 or (number == 3 and images.shape[2] == 64)
            x = nn.functional.max_pool2d(stages[-1], 2) if is_pooled else stages[-1]
        embedding = pooled(x)
        taps = [stages[number] for number in (0, 1, 2, 4)]
        return Outputs(stages, taps, embedding, self.classifier(embedding))

    def auxiliary_classifiers(self, width):
        extractors = [self.extractor(first) for first in (1, 2, 3)]
        last = nn.Sequential(self.group(3, WIDTHS[-1]), nn.ReLU(), self.group(4), nn.ReLU())
        return AuxiliaryClassifiers([*extractors, last], WIDTHS[-1], width)

    def extractor(self, first):
        """Groups `first` to 4; group 4 works in the size of group 3."""
        modules = []
        for number in range(first, 5):
            modules += [nn.MaxPool2d(2)] if number < 4 else []
            modules += [self.group(number), nn.ReLU()]
        return nn.Sequential(*modules)


NETWORKS = {
    "vgg8": functools.partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": functools.partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": functools.partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": functools.partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": functools.partial(VGG, (2, 2, 4, 4, 4)),
}
