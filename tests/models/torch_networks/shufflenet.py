"""ShuffleNet V1 of 3 groups and ShuffleNet V2 of size 1, for small images."""

import torch
from torch import nn

from .networks import (
    AuxiliaryClassifiers,
    Outputs,
    convolution,
    pooled,
    shuffled,
)

STEM = 24
REPEATS = (4, 8, 4)
WIDTHS_1 = (STEM, 240, 480, 960)
WIDTHS_2 = (STEM, 116, 232, 464)
TAIL_2 = 1024
GROUPS = 3


class UnitV1(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.stride = stride
        self.groups = 1 if width_in == STEM else GROUPS
        branch = width - width_in if stride == 2 else width
        middle = branch // 4
        self.conv1 = convolution(width_in, middle, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = convolution(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = convolution(middle, branch, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x):
        y = shuffled(torch.relu(self.bn1(self.conv1(x))), self.groups)
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return torch.relu(y + x)
        shortcut = nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=True)
        return torch.relu(torch.cat([y, shortcut], 1))


class DownUnitV2(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        half = width // 2
        self.conv1 = convolution(width_in, width_in, 3, stride, groups=width_in)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv2 = convolution(width_in, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(width_in, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = convolution(half, half, 3, stride, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x):
        left = self.bn1(self.conv1(x))
        left = torch.relu(self.bn2(self.conv2(left)))
        right = torch.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = torch.relu(self.bn5(self.conv5(right)))
        return shuffled(torch.cat([left, right], 1), 2)


class BasicUnitV2(nn.Module):
    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.conv1 = convolution(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x):
        passed, y = x.chunk(2, 1)
        y = torch.relu(self.bn1(self.conv1(y)))
        y = self.bn2(self.conv2(y))
        y = torch.relu(self.bn3(self.conv3(y)))
        return shuffled(torch.cat([passed, y], 1), 2)


class ShuffleNet(nn.Module):
    """What the two have in common; a subclass adds its `width`, `tail` and `stage`."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = convolution(3, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (self.stage(number) for number in (1, 2, 3))
        self.linear = nn.Linear(self.width, num_classes)

    def forward(self, images):
        stages = [torch.relu(self.bn1(self.conv1(images)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            stages.append(stage(stages[-1]))
        embedding = pooled(self.tail(stages[-1]))
        return Outputs(stages, stages[1:], embedding, self.linear(embedding))

    def auxiliary_classifiers(self, width):
        extractors = [
            nn.Sequential(self.stage(2), self.stage(3), *self.tail_modules()),
            nn.Sequential(self.stage(3), *self.tail_modules()),
            nn.Sequential(self.stage(3, reduce=False), *self.tail_modules()),
        ]
        return AuxiliaryClassifiers(extractors, self.width, width)


class ShuffleNetV1(ShuffleNet):
    width = WIDTHS_1[-1]

    def stage(self, number, reduce=True):
        width = WIDTHS_1[number]
        first = UnitV1(WIDTHS_1[number - 1], width, 2) if reduce else UnitV1(width, width, 1)
        others = [UnitV1(width, width, 1) for _ in range(REPEATS[number - 1] - 1)]
        return nn.Sequential(first, *others)

    def tail(self, x):
        return x

    def tail_modules(self):
        return []


class ShuffleNetV2(ShuffleNet):
    width = TAIL_2

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.conv2, self.bn2, _ = self.tail_modules()

    def stage(self, number, reduce=True):
        width = WIDTHS_2[number]
        first = (
            DownUnitV2(WIDTHS_2[number - 1], width, 2) if reduce else DownUnitV2(width, width, 1)
        )
        return nn.Sequential(first, *[BasicUnitV2(width) for _ in range(REPEATS[number - 1] - 1)])

    def tail(self, x):
        return torch.relu(self.bn2(self.conv2(x)))

    def tail_modules(self):
        return [convolution(WIDTHS_2[-1], TAIL_2, 1), nn.BatchNorm2d(TAIL_2), nn.ReLU()]


NETWORKS = {"shufflenet_v1": ShuffleNetV1, "shufflenet_v2": ShuffleNetV2}
