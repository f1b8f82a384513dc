"""The CIFAR residual networks of CRD and SSKD: resnet8 to resnet110, wide and narrow ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.initializers import Initialization
from keras_ssd.models.network import Network


@dataclasses.dataclass(frozen=True)
class ResNet(Network):
    """A residual network of three stages of basic blocks, depth 6 * `blocks` + 2.

    `stage_0` is the stem after its ReLU, `stage_1` to `stage_3` are the stages after theirs.

    Args:
        blocks: Int > 0, basic blocks a stage.
        widths: Channels of the stem and of the three stages.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2, with a projection where the shape changes
    (their option B); the "x4" networks: Tian et al. 2020, arXiv:1910.10699, appendix.
    """

    blocks: int
    widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    min_size = 4  # the strides of the stages multiply to 4
    auxiliary_initialization = Initialization(dense_bias="zeros")

    @property
    def unit_names(self) -> Sequence[str]:
        """The three stages."""
        return ("layer1", "layer2", "layer3")

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """One convolution."""
        x = layers.convolution(images, self.widths[0], 3, name="conv1")
        return layers.relu(layers.batch_norm(x, name="bn1"), name="stage_0")

    def num_blocks(self, unit: int) -> int:
        """As many in every stage."""
        return self.blocks

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
        """The first block of the second and third stage halves height and width."""
        return basic_block(
            layers,
            x,
            self.widths[unit + 1],
            stride=2 if reduce and unit > 0 else 1,
            name=f"{name}.{index}",
            output_name=output_name,
        )


def basic_block(
    layers: Blocks, x: keras.KerasTensor, width: int, *, stride: int, name: str, output_name: str
) -> keras.KerasTensor:
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes."""
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = layers.convolution(x, width, 1, stride=stride, name=f"{name}.downsample.0")
        shortcut = layers.batch_norm(shortcut, name=f"{name}.downsample.1")
    x = layers.convolution(x, width, 3, stride=stride, name=f"{name}.conv1")
    x = layers.relu(layers.batch_norm(x, name=f"{name}.bn1"), name=f"{name}.relu1")
    x = layers.batch_norm(layers.convolution(x, width, 3, name=f"{name}.conv2"), name=f"{name}.bn2")
    return layers.relu(layers.add(x, shortcut, name=f"{name}.add"), name=output_name)


WIDE = (32, 64, 128, 256)
HALF = (8, 8, 16, 32)

NETWORKS = {
    "resnet8": ResNet(1),
    "resnet14": ResNet(2),
    "resnet20": ResNet(3),
    "resnet32": ResNet(5),
    "resnet44": ResNet(7),
    "resnet56": ResNet(9),
    "resnet110": ResNet(18),
    "resnet8x4": ResNet(1, WIDE),
    "resnet32x4": ResNet(5, WIDE),
    "resnet14x05": ResNet(2, HALF),
    "resnet20x05": ResNet(3, HALF),
    "resnet20x0375": ResNet(3, (6, 6, 12, 24)),
}
