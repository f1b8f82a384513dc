"""Auxiliary classifiers of any functional network, which repeat its layers behind each tap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
from absl import logging

from keras_ssd.heads.copies import Copies, RepetitionError
from keras_ssd.heads.main_path import MainPath
from keras_ssd.heads.stages import find_taps
from keras_ssd.layers.structure import flat_layers
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.bottleneck_resnet import bottleneck
from keras_ssd.models.initializers import Initialization
from keras_ssd.models.network import AUXILIARY


class Segments:
    """A network cut into segments at its taps, and what repeats them.

    Attributes:
        taps: Paths of the layers at whose outputs the classifiers begin, from shallow to deep.

    Source: Yang et al. 2021, arXiv:2107.13715, section 3.1, for networks of any kind.
    """

    def __init__(self, name: str, path: MainPath, taps: Sequence[str], ends: Sequence[int]) -> None:
        self.taps = list(taps)
        self._name = name
        self._path = path
        self._ends = list(ends)  # indices of the calls that give the tapped maps

    @classmethod
    def of(cls, network: keras.Model, taps: Sequence[str] | None = None) -> Segments:
        """Cut a network.

        Args:
            network: A functional model with the logits `(rows, classes)` among its outputs.
            taps: Paths of two layers or more that all ways from the images to the logits pass, from
                shallow to deep, nested ones as `backbone/block_3`. By default they are found.

        Raises:
            ValueError: If the taps do not exist, cannot be found, or cannot be cut at.
        """
        if any(getattr(x, "data_format", None) == "channels_first" for x in flat_layers(network)):
            raise ValueError(
                f"Model {network.name!r} has layers with data_format='channels_first': auxiliary "
                "classifiers need channels last."
            )
        taps = find_taps(network) if taps is None else _checked(taps)
        path = MainPath.of(network, taps)
        return cls(network.name, path, taps, _ends(path, taps))

    def auxiliary_logits(self, tap: keras.KerasTensor, head: int, width: int) -> keras.KerasTensor:
        """Apply an auxiliary classifier of fresh layers to the map that it begins at.

        All but the last repeat what lies between their tap and the pooling before the logits; the
        last one repeats what lies between the last two taps without reducing the size, and then
        what lies behind its tap. Where a layer cannot be made again it is a small classifier, which
        is not the paper's.

        Args:
            tap: The output of layer `taps[head - 1]`, a symbolic tensor.
            head: From 1, the shallowest, to `len(taps)`.
            width: Classes times views.

        Returns:
            The joint logits, a symbolic tensor `(rows, width)`, float32 (float64 in float64).

        Raises:
            ValueError: If a layer cannot be made again where there are no maps but vectors in rows.
        """
        layers = Blocks(self._policy(head), Initialization())
        try:
            x = self._repeated(tap, head)
        except RepetitionError as error:
            if len(tap.shape) != 4:
                raise ValueError(
                    f"Auxiliary classifier {head} of {self._name!r} cannot repeat the network: "
                    f"{error}. Choose other `taps=`, or mend the layer's `get_config`."
                ) from error
            logging.warning(
                "Auxiliary classifier %d of %r is a small one and not the paper's: %s.",
                *(head, self._name, error),
            )
            x = self._small(layers, tap, head)
        pooling = {3: keras.layers.GlobalAveragePooling1D, 4: keras.layers.GlobalAveragePooling2D}
        pool = pooling[len(x.shape)](dtype=layers.wide_dtype, name=f"{AUXILIARY}pool{head}")
        return layers.dense(pool(x), width, name=f"{AUXILIARY}fc{head}")

    def _policy(self, head: int) -> keras.DTypePolicy:
        """The dtype policy of the last layer up to the tap, which an operation may have given."""
        calls = self._path.calls[: self._ends[head - 1] + 1]
        return [x.layer.dtype_policy for x in calls if isinstance(x.layer, keras.layers.Layer)][-1]

    def _repeated(self, x: keras.KerasTensor, head: int) -> keras.KerasTensor:
        copies = Copies(f"{AUXILIARY}{head}.")
        first = self._ends[head - 1]
        if head == len(self._ends):
            x = copies.repeat_in_one_size(*self._path.between(self._ends[-2], first), x)
        return copies.repeat(*self._path.between(first, self._path.pooled), x)

    def _small(self, layers: Blocks, x: keras.KerasTensor, head: int) -> keras.KerasTensor:
        """A residual block for each further tap, or one without stride behind the last."""
        further = self._ends[head:]
        for index, end in enumerate(further or self._ends[-1:]):
            name = f"{AUXILIARY}{head}.small.{index}"
            x = bottleneck(
                layers,
                x,
                math.ceil(self._path.stops[end].shape[-1] / 4),
                stride=2 if further else 1,
                name=name,
                projection_name=f"{name}.projection",
                output_name=f"{name}.output",
            )
        return x


def _checked(taps: Sequence[str]) -> Sequence[str]:
    if not isinstance(taps, (list, tuple)) or len(taps) < 2:
        raise ValueError(
            f"`taps` must be a list of two layers or more, got {taps!r}: the last classifier "
            "repeats what lies between the last two."
        )
    repeated = [path for index, path in enumerate(taps) if path in taps[:index]]
    if repeated:
        raise ValueError(f"Tap {repeated[0]!r} is given twice: name each layer once.")
    return taps


def _ends(path: MainPath, taps: Sequence[str]) -> list[int]:
    """The indices of the calls that give the tapped maps."""
    places = {id(tensor): index for index, tensor in path.stops.items()}
    ends: dict[int, str] = {}
    for name, tensor in zip(taps, path.tapped, strict=True):
        if id(tensor) not in places:
            raise ValueError(
                f"Layer {name!r} cannot be tapped: all ways from the images to the pooling before "
                "the logits must pass its output, a map (rows, height, width, channels)."
            )
        first = ends.setdefault(places[id(tensor)], name)
        if first != name:
            raise ValueError(f"Taps {first!r} and {name!r} are one map: name one of them.")
    if list(ends) != sorted(ends):
        ordered = [ends[index] for index in sorted(ends)]
        raise ValueError(f"`taps` must go from shallow to deep, {ordered}, got {list(taps)}.")
    return list(ends)
