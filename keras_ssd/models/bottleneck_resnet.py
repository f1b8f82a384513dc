"""The ResNet50 of CRD, SSKD and HSAKD for small images, and its block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.network import Network


@dataclasses.dataclass(frozen=True)
class BottleneckResNet(Network):
    """Four stages of bottleneck blocks behind a stem that keeps the size.

    `stage_0` is the stem after its ReLU, `stage_1` to `stage_4` are the stages after theirs.

    Args:
        blocks: Bottleneck blocks of each stage, ints > 0.

    Source: He et al. 2016, arXiv:1512.03385, table 1, with the stride in the 3x3 convolution and a
    3x3 stem without stride or pooling, as in the code of Tian et al. 2020, arXiv:1910.10699.
    """

    blocks: tuple[int, int, int, int]
    min_size = 8  # the strides of the stages multiply to 8
    classifier = "linear"

    @property
    def unit_names(self) -> Sequence[str]:
        """The four stages."""
        return ("layer1", "layer2", "layer3", "layer4")

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """One convolution."""
        x = layers.convolution(images, 64, 3, name="conv1")
        return layers.relu(layers.batch_norm(x, name="bn1"), name="stage_0")

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
        """The first block of all stages but the first halves height and width."""
        return bottleneck(
            layers,
            x,
            64 * 2**unit,
            stride=2 if reduce and unit > 0 else 1,
            name=f"{name}.{index}",
            projection_name=f"{name}.{index}.shortcut",
            output_name=output_name,
        )


def bottleneck(
    layers: Blocks,
    x: keras.KerasTensor,
    width: int,
    *,
    stride: int,
    name: str,
    projection_name: str,
    output_name: str,
) -> keras.KerasTensor:
    """1x1, 3x3 and 1x1 convolution, the last one to 4 * `width`, beside a shortcut.

    The shortcut is projected where the shape changes.
    """
    shortcut = x
    if stride > 1 or x.shape[-1] != 4 * width:
        shortcut = layers.convolution(x, 4 * width, 1, stride=stride, name=f"{projection_name}.0")
        shortcut = layers.batch_norm(shortcut, name=f"{projection_name}.1")
    x = layers.convolution(x, width, 1, name=f"{name}.conv1")
    x = layers.relu(layers.batch_norm(x, name=f"{name}.bn1"), name=f"{name}.relu1")
    x = layers.convolution(x, width, 3, stride=stride, name=f"{name}.conv2")
    x = layers.relu(layers.batch_norm(x, name=f"{name}.bn2"), name=f"{name}.relu2")
    x = layers.convolution(x, 4 * width, 1, name=f"{name}.conv3")
    x = layers.batch_norm(x, name=f"{name}.bn3")
    return layers.relu(layers.add(x, shortcut, name=f"{name}.add"), name=output_name)


NETWORKS = {"resnet50": BottleneckResNet((3, 4, 6, 3))}
