"""Write `resnet_torch_reference.npz`: what PyTorch computes, in float64 (torch 2.13.0).

    python tests/models/make_torch_reference.py

The networks are written here from the description of the CIFAR residual networks, with the module
names of https://github.com/HobbitLong/RepDistiller.
"""

import numpy as np
import torch
from test_torch_reference import OUTPUTS, STORED, reference_images, reference_weights, sample
from torch import nn

WIDTHS = {"resnet8": (16, 16, 32, 64), "resnet8x4": (32, 64, 128, 256)}


class BasicBlock(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            projection = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet8(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = nn.Sequential(BasicBlock(widths[0], widths[1], 1))
        self.layer2 = nn.Sequential(BasicBlock(widths[1], widths[2], 2))
        self.layer3 = nn.Sequential(BasicBlock(widths[2], widths[3], 2))
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(widths[3], 100)

    def forward(self, x):
        maps = [torch.relu(self.bn1(self.conv1(x)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        embedding = torch.flatten(self.avgpool(maps[-1]), 1)
        return [*(m.permute(0, 2, 3, 1) for m in maps), embedding, self.fc(embedding)]


def outputs(name):
    network = ResNet8(WIDTHS[name]).double().eval()
    shapes = {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    weights = reference_weights(shapes)
    network.load_state_dict({key: torch.from_numpy(w) for key, w in weights.items()})
    with torch.no_grad():
        values = network(torch.from_numpy(reference_images()).permute(0, 3, 1, 2))
    return {
        f"{name}/{layer}": sample(value.numpy())
        for layer, value in zip(OUTPUTS, values, strict=True)
    }


if __name__ == "__main__":
    np.savez_compressed(STORED, **{k: v for name in WIDTHS for k, v in outputs(name).items()})
