"""The residual networks of ImageNet: resnet18, resnet34 and resnet50."""

from __future__ import annotations

import dataclasses
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

    def unit(
        self,
        layers: Blocks,
        x: keras.KerasTensor,
        unit: int,
        *,
        name: str,
        output_name: str,
        reduce: bool = True,
    ) -> keras.KerasTensor:
        """A stage; the first block of all but the first halves height and width."""
        last = self.blocks[unit] - 1
        for index in range(last + 1):
            x = self._block(
                layers,
                x,
                64 * 2**unit,
                stride=2 if reduce and unit > 0 and index == 0 else 1,
                name=f"{name}.{index}",
                output_name=output_name if index == last else f"{name}.{index}.output",
            )
        return x

    def _block(
        self,
        layers: Blocks,
        x: keras.KerasTensor,
        width: int,
        *,
        stride: int,
        name: str,
        output_name: str,
    ) -> keras.KerasTensor:
        if not self.bottlenecks:
            return basic_block(layers, x, width, stride=stride, name=name, output_name=output_name)
        return bottleneck(
            layers,
            x,
            width,
            stride=stride,
            name=name,
            projection_name=f"{name}.downsample",
            output_name=output_name,
        )


NETWORKS = {
    "resnet18_imagenet": ImageNetResNet((2, 2, 2, 2)),
    "resnet34_imagenet": ImageNetResNet((3, 4, 6, 3)),
    "resnet50_imagenet": ImageNetResNet((3, 4, 6, 3), bottlenecks=True),
}
