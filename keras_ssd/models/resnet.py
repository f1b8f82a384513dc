"""The CIFAR residual networks of CRD and SSKD: resnet8 to resnet110, wide and narrow ones."""

from __future__ import annotations

import dataclasses

import keras

from keras_ssd.models.blocks import Blocks


@dataclasses.dataclass(frozen=True)
class ResNet:
    """A residual network of three stages of basic blocks, depth 6 * `blocks` + 2.

    Layers with weights carry the authors' names (`conv1`, `layer2.0.downsample.0`); `stage_0` is
    the stem after its ReLU, `stage_1` to `stage_3` are the stages after theirs.

    Args:
        blocks: Int > 0, basic blocks a stage.
        widths: Channels of the stem and of the three stages.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2, with a projection where the shape changes
    (their option B); the "x4" networks: Tian et al. 2020, arXiv:1910.10699, appendix.
    """

    blocks: int
    widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    min_size = 4  # the strides of the stages multiply to 4

    def __call__(
        self, layers: Blocks, images: keras.KerasTensor, num_classes: int
    ) -> keras.KerasTensor:
        """Apply the network to normalised images.

        Args:
            layers: Makes the layers.
            images: Symbolic tensor `(batch, height, width, channels)`.
            num_classes: Int > 0.

        Returns:
            The logits, a symbolic tensor `(batch, num_classes)`.
        """
        x = layers.convolution(images, self.widths[0], 3, name="conv1")
        x = layers.relu(layers.batch_norm(x, name="bn1"), name="stage_0")
        for stage in (1, 2, 3):
            for index in range(self.blocks):
                last = index == self.blocks - 1
                x = _basic_block(
                    layers,
                    x,
                    self.widths[stage],
                    stride=2 if stage > 1 and index == 0 else 1,
                    name=f"layer{stage}.{index}",
                    output_name=f"stage_{stage}" if last else f"layer{stage}.{index}.relu2",
                )
        return layers.logits(layers.embedding(x), num_classes)


def _basic_block(
    layers: Blocks, x: keras.KerasTensor, width: int, *, stride: int, name: str, output_name: str
) -> keras.KerasTensor:
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
