"""The ShuffleNet (version 1, three groups) of CRD, SSKD and HSAKD."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.initializers import Initialization
from keras_ssd.models.network import Network

GROUPS = 3
STEM_WIDTH = 24


@dataclasses.dataclass(frozen=True)
class ShuffleNetV1(Network):
    """Three stages of units of grouped 1x1 convolutions with a channel shuffle between them.

    `stage_0` is the stem after its ReLU, `stage_1` to `stage_3` are the stages after theirs.

    Args:
        blocks: Units of each stage, ints > 0.
        widths: Channels of each stage.

    Source: Zhang et al. 2018, arXiv:1707.01083. As in the code of Tian et al. 2020,
    arXiv:1910.10699, the stem is a 1x1 convolution without stride, and a ReLU follows the depthwise
    convolution, too.
    """

    blocks: tuple[int, int, int] = (4, 8, 4)
    widths: tuple[int, int, int] = (240, 480, 960)
    min_size = 8  # the strides of the stages multiply to 8
    classifier = "linear"
    initialization = Initialization("pytorch")
    auxiliary_initialization = Initialization(dense_bias="zeros")

    @property
    def unit_names(self) -> Sequence[str]:
        """The three stages."""
        return ("layer1", "layer2", "layer3")

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """One 1x1 convolution."""
        x = layers.convolution(images, STEM_WIDTH, 1, name="conv1")
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
        """The first block of a stage halves height and width."""
        return _block(
            layers,
            x,
            self.widths[unit],
            stride=2 if reduce else 1,
            name=f"{name}.{index}",
            output_name=output_name,
        )


def _block(
    layers: Blocks, x: keras.KerasTensor, width: int, *, stride: int, name: str, output_name: str
) -> keras.KerasTensor:
    """A bottleneck beside its input, which is added, or pooled and put behind where it strides."""
    branch_width = width if stride == 1 else width - x.shape[-1]
    groups = 1 if x.shape[-1] == STEM_WIDTH else GROUPS
    y = layers.convolution(x, branch_width // 4, 1, groups=groups, name=f"{name}.conv1")
    y = layers.relu(layers.batch_norm(y, name=f"{name}.bn1"), name=f"{name}.relu1")
    if groups > 1:
        y = layers.shuffle(y, groups, name=f"{name}.shuffle")
    y = layers.depthwise(y, stride=stride, name=f"{name}.conv2")
    y = layers.relu(layers.batch_norm(y, name=f"{name}.bn2"), name=f"{name}.relu2")
    y = layers.convolution(y, branch_width, 1, groups=GROUPS, name=f"{name}.conv3")
    y = layers.batch_norm(y, name=f"{name}.bn3")
    if stride == 1:
        y = layers.add(y, x, name=f"{name}.add")
    else:
        shortcut = layers.average_pool(x, name=f"{name}.shortcut")
        y = layers.concatenate(y, shortcut, name=f"{name}.concatenate")
    return layers.relu(y, name=output_name)


NETWORKS = {"shufflenet_v1": ShuffleNetV1()}
