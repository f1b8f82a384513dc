"""The half-width MobileNetV2 of CRD, SSKD and HSAKD."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.initializers import Initialization
from keras_ssd.models.network import Network

SETTINGS = (  # expansion, channels, blocks, stride of the first
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class MobileNetV2(Network):
    """Seven runs of inverted residual blocks between a stem and a 1x1 convolution to 1280.

    `stage_0` is the stem after its ReLU; `stage_1` to `stage_4` are the second, third, fifth and
    seventh run, which end without one.

    Args:
        stem_stride: 2, as CRD and SSKD run it, or 1, as HSAKD does.

    Source: Sandler et al. 2018, arXiv:1801.04381, at width 0.5. As in the code of Tian et al. 2020,
    arXiv:1910.10699, the ReLU has no upper bound, a block without expansion has its first
    convolution all the same, the second run keeps the size, and widths are not rounded to multiples
    of 8.
    """

    stem_stride: int = 2
    min_size = 8  # the strides of the runs multiply to 8
    classifier = "classifier"
    initialization = Initialization(dense="small", dense_bias="zeros")
    auxiliary_initialization = initialization

    @property
    def unit_names(self) -> Sequence[str]:
        """The seven runs."""
        return [f"blocks.{run}" for run in range(len(SETTINGS))]

    @property
    def stages(self) -> Mapping[int, str]:
        """The runs at whose ends the size is reduced next, and the last."""
        return {run: f"stage_{stage}" for stage, run in enumerate(self.taps, 1)}

    @property
    def taps(self) -> Sequence[int]:
        """The second, third, fifth and seventh run."""
        return (1, 2, 4, 6)

    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """One convolution."""
        x = layers.convolution(images, 16, 3, stride=self.stem_stride, name="conv1.0")
        return layers.relu(layers.batch_norm(x, name="conv1.1"), name="stage_0")

    def num_blocks(self, unit: int) -> int:
        """Those of the run."""
        return SETTINGS[unit][2]

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
        """An inverted residual block of the width of its run."""
        expansion, width, _, stride = SETTINGS[unit]
        return _inverted_residual(
            layers,
            x,
            width,
            expansion=expansion,
            stride=stride if reduce else 1,
            name=f"{name}.{index}.conv",
            output_name=output_name,
        )

    def tail(self, layers: Blocks, x: keras.KerasTensor, names: Sequence[str]) -> keras.KerasTensor:
        """A 1x1 convolution to 1280 channels."""
        convolution, norm = names
        x = layers.batch_norm(layers.convolution(x, 1280, 1, name=convolution), name=norm)
        return layers.relu(x, name=f"{norm}.relu")

    def tail_names(self) -> Sequence[str]:
        """Convolution and normalisation."""
        return ("conv2.0", "conv2.1")

    def auxiliary_tail_names(self, head: int, num_units: int) -> Sequence[str]:
        """The same for each classifier."""
        return (f"conv2_{head}.0", f"conv2_{head}.1")


def _inverted_residual(
    layers: Blocks,
    x: keras.KerasTensor,
    width: int,
    *,
    expansion: int,
    stride: int,
    name: str,
    output_name: str,
) -> keras.KerasTensor:
    """Widen, filter each channel, narrow; added to the input where the shapes agree."""
    y = layers.convolution(x, expansion * x.shape[-1], 1, name=f"{name}.0")
    y = layers.relu(layers.batch_norm(y, name=f"{name}.1"), name=f"{name}.2")
    y = layers.depthwise(y, stride=stride, name=f"{name}.3")
    y = layers.relu(layers.batch_norm(y, name=f"{name}.4"), name=f"{name}.5")
    y = layers.batch_norm(layers.convolution(y, width, 1, name=f"{name}.6"), name=f"{name}.7")
    if stride == 1 and x.shape[-1] == width:
        return layers.add(x, y, name=output_name)
    return layers.end(y, name=output_name)


NETWORKS = {"mobilenet_v2": MobileNetV2()}
