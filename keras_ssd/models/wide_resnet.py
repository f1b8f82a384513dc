"""The wide residual networks of CRD, SSKD and HSAKD: wrn_16_1 to wrn_40_2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.initializers import Initialization
from keras_ssd.models.network import Network


@dataclasses.dataclass(frozen=True)
class WideResNet(Network):
    """A pre-activation residual network of three stages, depth 6 * `blocks` + 4.

    `stage_0` is the raw convolution of the stem, `stage_1` to `stage_3` are the raw sums after the
    stages; the embedding is taken after the last normalisation and ReLU.

    Args:
        blocks: Int > 0, blocks a stage.
        factor: Int > 0, how much wider than 16, 32 and 64 channels the stages are.

    Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146, without dropout.
    """

    blocks: int
    factor: int
    min_size = 4  # the strides of the stages multiply to 4
    initialization = Initialization(dense_bias="zeros")
    auxiliary_initialization = initialization

    @property
    def unit_names(self) -> Sequence[str]:
        """The three stages."""
        return ("block1", "block2", "block3")

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """One convolution, neither normalised nor activated."""
        return layers.end(layers.convolution(images, 16, 3, name="conv1"), name="stage_0")

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
        return _block(
            layers,
            x,
            16 * 2**unit * self.factor,
            stride=2 if reduce and unit > 0 else 1,
            name=f"{name}.layer.{index}",
            output_name=output_name,
        )

    def tail(self, layers: Blocks, x: keras.KerasTensor, names: Sequence[str]) -> keras.KerasTensor:
        """Normalisation and ReLU."""
        (name,) = names
        return layers.relu(layers.batch_norm(x, name=name), name=f"{name}.relu")

    def tail_names(self) -> Sequence[str]:
        """The last normalisation is called `bn1`."""
        return ("bn1",)

    def auxiliary_tail_names(self, head: int, num_units: int) -> Sequence[str]:
        """One normalisation a classifier."""
        return (f"bn{head}",)


def _block(
    layers: Blocks, x: keras.KerasTensor, width: int, *, stride: int, name: str, output_name: str
) -> keras.KerasTensor:
    """Normalisation, ReLU and 3x3 convolution, twice, beside a shortcut.

    The shortcut is the raw input, or where the width changes a projection of the activated one.
    """
    activated = layers.relu(layers.batch_norm(x, name=f"{name}.bn1"), name=f"{name}.relu1")
    shortcut = x
    if x.shape[-1] != width:
        shortcut = layers.convolution(
            activated, width, 1, stride=stride, name=f"{name}.convShortcut"
        )
    y = layers.convolution(activated, width, 3, stride=stride, name=f"{name}.conv1")
    y = layers.relu(layers.batch_norm(y, name=f"{name}.bn2"), name=f"{name}.relu2")
    y = layers.convolution(y, width, 3, name=f"{name}.conv2")
    return layers.add(shortcut, y, name=output_name)


NETWORKS = {
    "wrn_16_1": WideResNet(2, 1),
    "wrn_16_2": WideResNet(2, 2),
    "wrn_40_1": WideResNet(6, 1),
    "wrn_40_2": WideResNet(6, 2),
}
