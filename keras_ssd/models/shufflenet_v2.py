"""The ShuffleNetV2 of CRD, SSKD and HSAKD."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.initializers import Initialization
from keras_ssd.models.network import Network


@dataclasses.dataclass(frozen=True)
class ShuffleNetV2(Network):
    """Three stages whose blocks work on half of the channels, and a 1x1 convolution to 1024.

    `stage_0` is the stem after its ReLU, `stage_1` to `stage_3` are the stages after the last
    channel shuffle.

    Args:
        blocks: Blocks of each stage, ints > 0, the one that halves height and width included.
        widths: Channels of each stage.

    Source: Ma et al. 2018, arXiv:1807.11164, at size 1x. As in the code of Tian et al. 2020,
    arXiv:1910.10699, the stem is a 1x1 convolution without stride.
    """

    blocks: tuple[int, int, int] = (4, 8, 4)
    widths: tuple[int, int, int] = (116, 232, 464)
    min_size = 8  # the strides of the stages multiply to 8
    classifier = "linear"
    initialization = Initialization("pytorch")
    auxiliary_initialization = initialization

    @property
    def unit_names(self) -> Sequence[str]:
        """The three stages."""
        return ("layer1", "layer2", "layer3")

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """One 1x1 convolution."""
        return _pointwise(layers, images, 24, name="conv1", norm="bn1", output_name="stage_0")

    def num_blocks(self, unit: int) -> int:
        """Those of the stage."""
        return self.blocks[unit]

    def block(
        self,
        layers: Blocks,
        x: keras.KerasTensor,
        unit: int,
        index: int,
        *,
        name: str,
        output_name: str,
        reduce: bool,
    ) -> keras.KerasTensor:
        """The first block of a stage halves height and width."""
        block = f"{name}.{index}"
        if index == 0:
            stride = 2 if reduce else 1
            x = _first_block(layers, x, self.widths[unit], stride=stride, name=block)
        else:
            x = _block(layers, x, name=block)
        return layers.shuffle(x, 2, name=output_name)

    def tail(self, layers: Blocks, x: keras.KerasTensor, names: Sequence[str]) -> keras.KerasTensor:
        """A 1x1 convolution to 1024 channels."""
        name, norm = names
        return _pointwise(layers, x, 1024, name=name, norm=norm, output_name=f"{norm}.relu")

    def tail_names(self) -> Sequence[str]:
        """Convolution and normalisation."""
        return ("conv2", "bn2")

    def auxiliary_tail_names(self, head: int, num_units: int) -> Sequence[str]:
        """They follow the stages in one list."""
        return [f"block_extractor{head}.{num_units + index}" for index in (0, 1)]


def _first_block(
    layers: Blocks, x: keras.KerasTensor, width: int, *, stride: int, name: str
) -> keras.KerasTensor:
    """Two branches from the same input, each of half the width."""
    left = layers.depthwise(x, stride=stride, name=f"{name}.conv1")
    left = layers.batch_norm(left, name=f"{name}.bn1")
    left = _numbered(layers, left, width // 2, 2, name=name)
    right = _numbered(layers, x, width // 2, 3, name=name)
    right = layers.depthwise(right, stride=stride, name=f"{name}.conv4")
    right = layers.batch_norm(right, name=f"{name}.bn4")
    right = _numbered(layers, right, width // 2, 5, name=name)
    return layers.concatenate(left, right, name=f"{name}.concatenate")


def _block(layers: Blocks, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """The first half of the channels as it is, the second behind three convolutions."""
    kept, y = layers.split(x, name=f"{name}.split")
    width = y.shape[-1]
    y = _numbered(layers, y, width, 1, name=name)
    y = layers.batch_norm(layers.depthwise(y, name=f"{name}.conv2"), name=f"{name}.bn2")
    y = _numbered(layers, y, width, 3, name=name)
    return layers.concatenate(kept, y, name=f"{name}.concatenate")


def _numbered(
    layers: Blocks, x: keras.KerasTensor, width: int, number: int, *, name: str
) -> keras.KerasTensor:
    """The pointwise convolution of a block that has this number."""
    return _pointwise(
        layers,
        x,
        width,
        name=f"{name}.conv{number}",
        norm=f"{name}.bn{number}",
        output_name=f"{name}.relu{number}",
    )


def _pointwise(
    layers: Blocks, x: keras.KerasTensor, width: int, *, name: str, norm: str, output_name: str
) -> keras.KerasTensor:
    """A 1x1 convolution, normalised and activated."""
    x = layers.batch_norm(layers.convolution(x, width, 1, name=name), name=norm)
    return layers.relu(x, name=output_name)


NETWORKS = {"shufflenet_v2": ShuffleNetV2()}
