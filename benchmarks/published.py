"""The published SSKD training step in PyTorch, for the benchmark alone.

It does what the authors' script does with one batch, in eager PyTorch as there: the teacher's
forward in inference mode without gradient, the student's in training mode, four losses with rows
chosen by `argsort` and index lists, backward, SGD. Two things favour this step: where the numbers
stay the same the faster way is taken (channels last, fused SGD, cosines as a matrix product), and
the rows are there already, rotated and normalised, because the authors' loader makes them in
processes of its own; the TensorFlow step makes its views itself.

Source: Xu et al. 2020, arXiv:2006.07114, and the settings of https://github.com/xuguodong03/SSKD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

_VIEWS = 4
_MEAN = (0.5071, 0.4866, 0.4409)
_STD = (0.2675, 0.2565, 0.2761)
_WIDTHS = {
    "": (16, 16, 32, 64),
    "4": (32, 64, 128, 256),
    "05": (8, 8, 16, 32),
    "0375": (6, 6, 12, 24),
}
_Outputs = tuple[torch.Tensor, torch.Tensor]  # logits and projections, a row for each view


def published_step(
    teacher: str,
    student: str,
    precision: Literal["float32", "bfloat16"],
    images: int = 64,
    num_classes: int = 100,
) -> Callable[[], None]:
    """A function that runs one whole training step on the same random images each time.

    Args:
        teacher: Name of a CIFAR residual network, such as "resnet56" or "resnet32x4".
        student: Likewise.
        precision: "bfloat16" is autocast around both forwards; weights and losses stay float32.
        images: Int > 0, images a step; every image is four rows.
        num_classes: Int > 0.

    Returns:
        A function without arguments; when it returns, the student is updated.

    Raises:
        ValueError: If a name or the precision is unknown.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"`precision` must be 'float32' or 'bfloat16', got {precision!r}.")
    networks = _network(teacher, num_classes).eval(), _network(student, num_classes).train()
    optimizer = _optimizer(networks[1])
    rows = _rows(images)
    labels = torch.randint(num_classes, [images])

    def step() -> None:
        optimizer.zero_grad()
        _loss(*networks, rows, labels, precision).backward()
        optimizer.step()

    return step


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Identity()
        if stride != 1 or width_in != width:
            projection = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        x += shortcut
        return functional.relu(x, inplace=True)


class _ResNet(nn.Module):
    """Depth 6 * `blocks` + 2, with the authors' names of modules."""

    def __init__(self, blocks: int, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(blocks, widths[0], widths[1], stride=1)
        self.layer2 = self._stage(blocks, widths[1], widths[2], stride=2)
        self.layer3 = self._stage(blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)

    @staticmethod
    def _stage(blocks: int, width_in: int, width: int, stride: int) -> nn.Sequential:
        further = [_Block(width, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(_Block(width_in, width, stride), *further)

    def forward(self, x: torch.Tensor) -> _Outputs:
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        embedding = functional.avg_pool2d(x, 8).flatten(1)
        return self.fc(embedding), embedding


class _WithProjection(nn.Module):
    def __init__(self, backbone: _ResNet) -> None:
        super().__init__()
        width = backbone.fc.in_features
        self.backbone = backbone
        self.proj_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width)
        )

    def forward(self, x: torch.Tensor) -> _Outputs:
        logits, embedding = self.backbone(x)
        return logits.float(), self.proj_head(embedding).float()


def _network(name: str, num_classes: int) -> _WithProjection:
    depth, _, factor = name.removeprefix("resnet").partition("x")
    if not depth.isdecimal() or int(depth) % 6 != 2 or factor not in _WIDTHS:
        raise ValueError(
            f"`teacher` and `student` must be CIFAR residual networks, got {name!r}: give a name "
            "such as 'resnet56' or 'resnet32x4'."
        )
    network = _ResNet(int(depth) // 6, _WIDTHS[factor], num_classes)
    return _WithProjection(network).to(memory_format=torch.channels_last)


def _optimizer(student: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True
    )


def _rows(images: int) -> torch.Tensor:
    """Random images, four rotations each, image-major: normalised, channels last."""
    pixels = torch.randint(256, [images, 3, 32, 32], dtype=torch.uint8)
    views = torch.stack([torch.rot90(pixels, turns, (2, 3)) for turns in range(_VIEWS)], dim=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    rows = (views.flatten(0, 1) / 255 - mean) / std
    return rows.contiguous(memory_format=torch.channels_last)


def _loss(
    teacher: nn.Module, student: nn.Module, rows: torch.Tensor, labels: torch.Tensor, precision: str
) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logits, projections = student(rows)
        with torch.no_grad():
            teacher_logits, teacher_projections = teacher(rows)
    plain = torch.arange(len(rows)) % _VIEWS == 0
    label_of_row = labels.repeat_interleave(_VIEWS - 1)
    own_column = torch.arange(len(labels)).repeat_interleave(_VIEWS - 1)
    similarities = _similarities(projections, plain)
    teacher_similarities = _similarities(teacher_projections, plain)
    by_label = _kept(teacher_logits[~plain], label_of_row, ratio=1.0)
    by_image = _kept(teacher_similarities, own_column, ratio=0.75)
    return (
        0.1 * functional.cross_entropy(logits[plain], labels)
        + 0.9 * _divergence(teacher_logits[plain], logits[plain], 4.0)
        + 2.7 * _divergence(teacher_logits[~plain][by_label], logits[~plain][by_label], 4.0)
        + 10.0 * _divergence(teacher_similarities[by_image], similarities[by_image], 0.5)
    )


def _similarities(projections: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Cosines `[3 * images, images]`; the authors broadcast to `[3 * images, width, images]`."""
    unit = functional.normalize(projections, eps=1e-8)
    return unit[~plain] @ unit[plain].T


def _kept(scores: torch.Tensor, targets: torch.Tensor, ratio: float) -> torch.Tensor:
    """Indices of the rows that are right, and of the best-ranked share of the others."""
    in_order = scores.argsort(dim=1, descending=True)
    ranks = (in_order == targets[:, None]).long().argmax(dim=1)
    wrong = int(ranks.count_nonzero())
    kept = len(ranks) - wrong + int(wrong * ratio)
    return ranks.argsort()[:kept].sort().values


def _divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    target = functional.softmax(teacher / temperature, dim=1)
    log_student = functional.log_softmax(student / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, target, reduction="batchmean")
