"""The residual networks of ImageNet: resnet18, resnet34 and resnet50."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.bottleneck_resnet import bottleneck
from keras_ssd.models.network import Network
from keras_ssd.models.resnet import basic_block


@dataclasses.dataclass(frozen=True)
class ImageNetResNet(Network):
    """Four stages behind a stem that divides height and width by 4.

    `stage_0` is the stem after its pooling, `stage_1` to `stage_4` are the stages after their ReLU.

    Args:
        blocks: Blocks of each stage, ints > 0.
        bottlenecks: Whether the blocks are bottlenecks, four times as wide, or basic ones.

    Source: He et al. 2016, arXiv:1512.03385, table 1, as torchvision has them: the stride of a
    bottleneck is in its 3x3 convolution.
    """

    blocks: tuple[int, int, int, int]
    bottlenecks: bool = False
    min_size = 32  # the strides multiply to 32

    @property
    def unit_names(self) -> Sequence[str]:
        """The four stages."""
        return ("layer1", "layer2", "layer3", "layer4")

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """A 7x7 convolution and a maximum, both of stride 2."""
        x = layers.convolution(images, 64, 7, stride=2, name="conv1")
        x = layers.relu(layers.batch_norm(x, name="bn1"), name="relu1")
        x = layers.pad(x, 1, name="pool.padding")  # behind a ReLU 0 is as good as minus infinity
        return layers.max_pool(x, 3, name="stage_0")

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
        block = basic_block
        if self.bottlenecks:
            block = functools.partial(bottleneck, projection_name=f"{name}.{index}.downsample")
        return block(
            layers,
            x,
            64 * 2**unit,
            stride=2 if reduce and unit > 0 else 1,
            name=f"{name}.{index}",
            output_name=output_name,
        )


NETWORKS = {
    "resnet18_imagenet": ImageNetResNet((2, 2, 2, 2)),
    "resnet34_imagenet": ImageNetResNet((3, 4, 6, 3)),
    "resnet50_imagenet": ImageNetResNet((3, 4, 6, 3), bottlenecks=True),
}
