"""What a network is made of: its layers in order, and whether it normalises its images itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.layers.functional import is_functional
from keras_ssd.layers.image_preprocessing import ImagePreprocessing

_NORMALISES = (keras.layers.Rescaling, keras.layers.Normalization)
_KEEPS_VALUES = (
    keras.layers.CenterCrop,
    keras.layers.Cropping2D,
    keras.layers.RandomCrop,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.Resizing,
    keras.layers.ZeroPadding2D,
)
_TAKES_NORMALISED = (
    keras.layers.AveragePooling2D,
    keras.layers.Conv2D,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.MaxPooling2D,
    keras.layers.SeparableConv2D,
)


def inner_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model in order, nested and frozen models opened, inputs left out."""
    for layer in model.layers:
        inner = layer.frozen.model if isinstance(layer, FrozenBackbone) else layer
        if isinstance(inner, keras.Model):
            yield from inner_layers(inner)
        elif not isinstance(inner, keras.layers.InputLayer):
            yield inner


def flat_layers(network: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A network and all layers inside it, those of custom layers too."""
    return network._flatten_layers()  # Keras has no public walk that enters custom layers


def policy_of(network: keras.Model) -> keras.DTypePolicy:
    """The dtype policy of the first layer with weights: a loaded model has lost its own."""
    policies = (layer.dtype_policy for layer in inner_layers(network) if layer.weights)
    return next(policies, network.dtype_policy)


def takes_raw_images(network: Any) -> bool | None:
    """Whether a network takes raw images, 0 to 255, and normalises them in its first layer.

    Args:
        network: Any network; nested and frozen models are looked into, and what leaves the values
            as they are (resizing, cropping, padding, flips) is passed over.

    Returns:
        True; False where a convolution, a dense layer or pooling comes first; None where anything
        else may do anything to the images: a function, an operation, a layer of another kind, the
        `call` of a subclassed model.
    """
    first = next(_changing_values(network), None)
    if isinstance(first, (*_NORMALISES, ImagePreprocessing)):
        return True
    return False if isinstance(first, _TAKES_NORMALISED) else None


def check_image_size(owner: str, wanted: Any, given: Any) -> None:
    """Refuses images that do not fit.

    Args:
        owner: What takes them.
        wanted: The shape of the images that it takes, rows first.
        given: The shape of those that come.

    Raises:
        ValueError: If the two differ where both are known.
    """
    wanted, given = tf.TensorShape(wanted), tf.TensorShape(given)
    if not given.is_compatible_with(wanted):
        size, other = tuple(wanted[1:]), tuple(given[1:])
        advice = "give images of as many channels, by a function as `preprocessing`"
        if len(size) == len(other) == 3 and size[0] == other[2]:
            advice = (
                "it takes channels first, so give `preprocessing=lambda images: "
                "tf.transpose(images, [0, 3, 1, 2])`, after a resize if need be"
            )
        if wanted[3:].is_compatible_with(given[3:]):
            advice = (
                "make them with `preprocessing` (of a Distiller `teacher_preprocessing`), such as "
                f"`preprocessing=keras_ssd.layers.ImagePreprocessing({size[:2]})`"
            )
        raise ValueError(f"{owner} takes images {size}, got {other}: {advice}.")


def normalization_of(network: Any) -> keras.layers.Layer | None:
    """The `Rescaling` or `Normalization` layer that images meet first of all, None without one."""
    first = next(_operations(network), None)
    return first if isinstance(first, _NORMALISES) else None


def standardizes(layer: keras.layers.Layer | None) -> bool:
    """Whether a layer has a mean and a deviation for each channel, and not one scale for all."""
    return isinstance(layer, keras.layers.Normalization) or (
        isinstance(layer, keras.layers.Rescaling) and np.ndim(layer.scale) > 0
    )


def compute_dtypes(layers: Iterable[Any]) -> list[str]:
    """The precisions that layers with weights compute in, sorted; models are no layers."""
    return sorted(
        {
            layer.compute_dtype
            for layer in layers
            if isinstance(layer, keras.layers.Layer)
            and layer.weights
            and not isinstance(layer, keras.Model)
        }
    )


def _changing_values(network: Any) -> Iterator[Any]:
    return (each for each in _operations(network) if not isinstance(each, _KEEPS_VALUES))


def _operations(network: Any) -> Iterator[Any]:
    """Layers and operations in order, inputs left out; none where only a call tells."""
    if isinstance(network, FrozenBackbone):
        network = network.frozen.model
    if not is_functional(network):
        yield network
        return
    inside = network.layers if isinstance(network, keras.Sequential) else network.operations
    for operation in inside:
        if isinstance(operation, (keras.Model, FrozenBackbone)):
            yield from _operations(operation)
        elif not isinstance(operation, keras.layers.InputLayer):
            yield operation
