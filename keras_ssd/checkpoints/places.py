"""Where the arrays of a PyTorch network have their places in a Keras network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.models import network_of

CLASSIFIER = "fc"  # of a model that is no network of `models.build`

DENSE = (1, 0)
CONVOLUTION = (2, 3, 1, 0)  # grouped ones, too: their output channels have one order
DEPTHWISE = (2, 3, 0, 1)
VECTOR = (0,)


class Place(NamedTuple):
    """A weight and the order of PyTorch's axes in it."""

    variable: keras.Variable
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array in PyTorch."""
        return tuple(self.variable.shape[axis] for axis in np.argsort(self.axes))


def places(model: keras.Model) -> dict[str, Place]:
    """The place of every weight of a network, by its name in the authors' code.

    The weights of a `layers.FrozenBackbone` are its copies.

    Args:
        model: A network of `models.build`, or one with heads around it.

    Raises:
        ValueError: If a layer has no counterpart in that code, or two layers have one name.
    """
    network = network_of(model)
    classifier = CLASSIFIER if network is None else network.classifier
    found: dict[str, Place] = {}
    for layer, copies in _layers(model, {}):
        module = classifier if layer.name == "logits" else layer.name
        for array, variable, axes in _weights(layer):
            name = f"{module}.{array}"
            if name in found:
                raise ValueError(
                    f"Two layers of {model.name!r} are called {layer.name!r}: load or write the "
                    "two networks by themselves."
                )
            found[name] = Place(copies.get(id(variable), variable), axes)
    return found


def _layers(
    model: keras.Model, copies: Mapping[int, keras.Variable]
) -> Iterator[tuple[keras.layers.Layer, Mapping[int, keras.Variable]]]:
    """The layers of a model, frozen models opened, and from the id of a variable to its copy."""
    for layer in model.layers:
        if not isinstance(layer, FrozenBackbone):
            yield layer, copies
            continue
        frozen = layer.frozen
        inner = {
            id(original): copies.get(id(copy), copy)
            for original, copy in zip(frozen.originals, frozen.variables, strict=True)
        }
        yield from _layers(frozen.model, inner)


def _weights(
    layer: keras.layers.Layer,
) -> Iterator[tuple[str, keras.Variable, tuple[int, ...]]]:
    """What PyTorch calls the arrays of a layer, its variables, and their axes."""
    if isinstance(layer, keras.layers.BatchNormalization):
        yield "weight", layer.gamma, VECTOR
        yield "bias", layer.beta, VECTOR
        yield "running_mean", layer.moving_mean, VECTOR
        yield "running_var", layer.moving_variance, VECTOR
    elif (axes := _kernel_axes(layer)) is not None:
        yield "weight", layer.kernel, axes
        if layer.use_bias:
            yield "bias", layer.bias, VECTOR
    elif layer.weights:
        raise ValueError(
            f"The layer {layer.name!r} ({type(layer).__name__}) has no counterpart in the papers' "
            "code: load or write the weights of the network of `models.build` that is inside (of "
            "two peers each by itself), or before it is nested."
        )


def _kernel_axes(layer: keras.layers.Layer) -> tuple[int, ...] | None:
    if isinstance(layer, keras.layers.Dense):
        return DENSE
    if isinstance(layer, keras.layers.Conv2D):
        return CONVOLUTION
    if isinstance(layer, keras.layers.DepthwiseConv2D) and layer.depth_multiplier == 1:
        return DEPTHWISE
    return None
