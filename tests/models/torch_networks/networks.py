"""What every network of the papers has in PyTorch: a backbone, and heads beside it."""

import typing

import torch
from torch import nn


class Outputs(typing.NamedTuple):
    """What a network computes; maps are `(rows, channels, height, width)`."""

    stages: list  # f0, f1, ... as the papers number them
    taps: list  # what the auxiliary classifiers begin at
    embedding: torch.Tensor
    logits: torch.Tensor
    auxiliary_logits: list = []  # noqa: RUF012  # a named tuple takes no factory
    projection: torch.Tensor | None = None


class WithAuxiliaryClassifiers(nn.Module):
    """HSAKD's networks `<name>_aux`."""

    def __init__(self, backbone, auxiliary_classifier):
        super().__init__()
        self.backbone = backbone
        self.auxiliary_classifier = auxiliary_classifier

    def forward(self, images):
        outputs = self.backbone(images)
        return outputs._replace(auxiliary_logits=self.auxiliary_classifier(outputs.taps))


class WithProjection(nn.Module):
    """SSKD's wrapper."""

    def __init__(self, backbone, width):
        super().__init__()
        self.backbone = backbone
        self.proj_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, images):
        outputs = self.backbone(images)
        return outputs._replace(projection=self.proj_head(outputs.embedding))


class AuxiliaryClassifiers(nn.Module):
    """Heads 1, 2, ...: the repeated units, what the family puts behind them, pooling, dense layer.

    Args:
        extractors: The body of each head.
        width_in: Channels that each dense layer takes.
        width: Channels that it gives.
        tails: From the name of a module, without the head's number, to a function that makes it;
            each head gets one of its own.
    """

    def __init__(self, extractors, width_in, width, tails=None):
        super().__init__()
        self.tails = dict(tails or {})
        self.heads = range(1, len(extractors) + 1)
        for head, extractor in zip(self.heads, extractors, strict=True):
            setattr(self, f"block_extractor{head}", extractor)
            for name, make in self.tails.items():
                setattr(self, f"{name}{head}", make())
            setattr(self, f"fc{head}", nn.Linear(width_in, width))

    def forward(self, taps):
        return [self.logits(head, tap) for head, tap in zip(self.heads, taps, strict=True)]

    def logits(self, head, x):
        x = getattr(self, f"block_extractor{head}")(x)
        for name in self.tails:
            x = torch.relu(getattr(self, f"{name}{head}")(x))
        return getattr(self, f"fc{head}")(pooled(x))


def pooled(x):
    return x.mean((2, 3))


def convolution(width_in, width, size, stride=1, groups=1, bias=False):
    """Padded by the same number on all four sides, so that stride 1 keeps the size."""
    return nn.Conv2d(width_in, width, size, stride, size // 2, groups=groups, bias=bias)


def shuffled(x, groups):
    """Channel `k * groups + j` is channel `j * n + k` of `x`, n channels a group."""
    rows, channels, height, width = x.shape
    x = x.reshape(rows, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(rows, channels, height, width)
