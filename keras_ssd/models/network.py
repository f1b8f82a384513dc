"""A network of the papers as a run of units, and the auxiliary classifiers that repeat them."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import keras

from keras_ssd.models.blocks import Blocks
from keras_ssd.models.initializers import Initialization

AUXILIARY = "auxiliary_classifier."  # the authors' module of all auxiliary classifiers


class Network(abc.ABC):
    """Stem, units, tail, pooling, classifier.

    A unit is what the authors keep under one name, such as a stage; the layer that ends it is
    `stage_k` where the papers read features there. Layers with weights carry the authors' names.

    Attributes:
        min_size: Smallest height and width of an image.
        classifier: The authors' name of the layer `logits`.
        initialization: First weights of the network.
        auxiliary_initialization: First weights of its auxiliary classifiers.
    """

    min_size: int
    classifier = "fc"
    initialization = Initialization()
    auxiliary_initialization = Initialization()

    @property
    @abc.abstractmethod
    def unit_names(self) -> Sequence[str]:
        """The authors' names of the units."""

    @property
    def stages(self) -> Mapping[int, str]:
        """From a unit to the name of the stage that ends with it."""
        return {unit: f"stage_{unit + 1}" for unit in range(len(self.unit_names))}

    @property
    def taps(self) -> Sequence[int]:
        """The units at whose ends the spatial size is reduced next, and the last unit.

        An auxiliary classifier begins at each of them.
        """
        return range(len(self.unit_names))

    @abc.abstractmethod
    def stem(self, layers: Blocks, images: keras.KerasTensor) -> keras.KerasTensor:
        """What comes before the units; its last layer, if there is any, is `stage_0`."""

    @abc.abstractmethod
    def num_blocks(self, unit: int) -> int:
        """How many blocks a unit has."""

    @abc.abstractmethod
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
        """Apply fresh layers of one block.

        Args:
            layers: Makes the layers.
            x: Symbolic tensor `(batch, height, width, channels)` of any width.
            unit: Which unit.
            index: Which of its blocks.
            name: What the names of the unit's layers with weights begin with.
            output_name: Name of the block's last layer, which has no weights.
            reduce: Whether the block reduces the spatial size where the unit does so in the
                network. Otherwise all strides are 1 and nothing is pooled.
        """

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
        """Apply fresh layers of one unit; its first block alone reduces the spatial size.

        Args:
            layers: Makes the layers.
            x: Symbolic tensor `(batch, height, width, channels)` of any width.
            unit: Which unit.
            name: What the names of its layers with weights begin with.
            output_name: Name of its last layer, which has no weights.
            reduce: Whether the unit reduces the spatial size as it does in the network. Otherwise
                all strides are 1 and nothing is pooled.
        """
        last = self.num_blocks(unit) - 1
        for index in range(last + 1):
            x = self.block(
                layers,
                x,
                unit,
                index,
                name=name,
                output_name=output_name if index == last else f"{name}.{index}.output",
                reduce=reduce and index == 0,
            )
        return x

    def tail(self, layers: Blocks, x: keras.KerasTensor, names: Sequence[str]) -> keras.KerasTensor:
        """What comes between the last unit and the pooling: nothing, in most networks."""
        return x

    def tail_names(self) -> Sequence[str]:
        """Names of the tail's layers with weights in the network."""
        return ()

    def auxiliary_tail_names(self, head: int, num_units: int) -> Sequence[str]:
        """The same in auxiliary classifier `head` (from 1) of `num_units` units."""
        return ()

    def positions(self, units: Sequence[int], reduce: bool) -> Sequence[int]:
        """The places of units in the authors' list of an auxiliary classifier's modules."""
        return range(len(units))

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
        x = self.stem(layers, images)
        for unit, name in enumerate(self.unit_names):
            output_name = self.stages.get(unit, f"{name}.output")
            x = self.unit(layers, x, unit, name=name, output_name=output_name)
        x = self.tail(layers, x, self.tail_names())
        return layers.dense(layers.pool(x, name="embedding"), num_classes, name="logits")

    def auxiliary_logits(
        self, layers: Blocks, tap: keras.KerasTensor, head: int, width: int
    ) -> keras.KerasTensor:
        """Apply an auxiliary classifier of fresh layers to the feature map that it begins at.

        All but the last repeat the units that follow their tap; the last one repeats the units of
        its own spatial size without reducing it.

        Args:
            layers: Makes the layers.
            tap: The output of unit `taps[head - 1]`, `(batch, height, width, channels)`.
            head: From 1, the shallowest, to `len(taps)`.
            width: Classes times views.

        Returns:
            The joint logits, a symbolic tensor `(batch, width)`.

        Source: Yang et al. 2021, arXiv:2107.13715, section 3.1, and the authors' code.
        """
        is_last = head == len(self.taps)
        first = self.taps[head - 2 if is_last else head - 1] + 1
        units = range(first, len(self.unit_names))
        modules = f"{AUXILIARY}block_extractor{head}"
        x = tap
        for unit, position in zip(units, self.positions(units, not is_last), strict=True):
            name = f"{modules}.{position}"
            x = self.unit(
                layers, x, unit, name=name, output_name=f"{name}.output", reduce=not is_last
            )
        names = self.auxiliary_tail_names(head, len(units))
        x = self.tail(layers, x, [f"{AUXILIARY}{name}" for name in names])
        x = layers.pool(x, name=f"{AUXILIARY}pool{head}")
        return layers.dense(x, width, name=f"{AUXILIARY}fc{head}")
