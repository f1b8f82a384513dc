"""The VGG networks of CRD, SSKD and HSAKD: vgg8 to vgg19, with batch normalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.initializers import Initialization
from keras_ssd.models.network import Network

WIDTHS = (64, 128, 256, 512, 512)


@dataclasses.dataclass(frozen=True)
class VGG(Network):
    """Five groups of 3x3 convolutions with bias, of 64, 128, 256, 512 and 512 channels.

    A maximum of 2x2 comes before groups 1, 2 and 3. One comes before group 4 where the map has 8
    rows there: images of 64 rows in the authors' code, of 64 to 71 here, and none where the height
    is unknown. `stage_0` to `stage_4` are the groups after their last ReLU.

    Args:
        convolutions: How many convolutions each group has, ints > 0.

    Source: Simonyan and Zisserman 2015, arXiv:1409.1556, without the hidden dense layers, with
    batch normalisation, as in the code of Tian et al. 2020, arXiv:1910.10699.
    """

    convolutions: tuple[int, int, int, int, int]
    min_size = 8  # three maxima halve it
    classifier = "classifier"
    initialization = Initialization(dense="small", dense_bias="zeros")
    auxiliary_initialization = Initialization("pytorch")

    @property
    def unit_names(self) -> Sequence[str]:
        """The five groups."""
        return [f"block{group}" for group in range(5)]

    @property
    def stages(self) -> Mapping[int, str]:
        """Every group ends a stage; there is no stem before the first."""
        return {group: f"stage_{group}" for group in range(5)}

    @property
    def taps(self) -> Sequence[int]:
        """All groups but the fourth: of 32x32 images it gives maps of the size of the fifth."""
        return (0, 1, 2, 4)

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """Nothing."""
        return images

    def num_blocks(self, unit: int) -> int:
        """Its convolutions."""
        return self.convolutions[unit]

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
        """A convolution, the first one behind the maximum that comes before its group."""
        if reduce and (unit in (1, 2, 3) or (unit == 4 and x.shape[1] == 8)):
            x = layers.max_pool(x, 2, name=f"{name}.pool")
        x = layers.convolution(x, WIDTHS[unit], 3, use_bias=True, name=f"{name}.{3 * index}")
        x = layers.batch_norm(x, name=f"{name}.{3 * index + 1}")
        return layers.relu(x, name=output_name)

    def positions(self, units: Sequence[int], reduce: bool) -> Sequence[int]:
        """The authors' list has a place for every maximum and every last ReLU, too."""
        places: list[int] = []
        place = 0
        for unit in units:
            place += reduce and unit < 4
            places.append(place)
            place += 2
        return places


NETWORKS = {
    "vgg8": VGG((1, 1, 1, 1, 1)),
    "vgg11": VGG((1, 1, 2, 2, 2)),
    "vgg13": VGG((2, 2, 2, 2, 2)),
    "vgg16": VGG((2, 2, 3, 3, 3)),
    "vgg19": VGG((2, 2, 4, 4, 4)),
}
