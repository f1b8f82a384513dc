"""What a network is made of: its layers in order, and whether it normalises its images itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_ssd.layers.frozen_backbone import FrozenBackbone

_NORMALISES = (keras.layers.Rescaling, keras.layers.Normalization)
_KEEPS_VALUES = (keras.layers.Resizing, keras.layers.CenterCrop)


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


def takes_raw_images(network: Any) -> bool | None:
    """Whether a network takes raw images, 0 to 255, and normalises them in its first layer.

    Args:
        network: Any network; nested and frozen models are looked into, and what leaves the values
            as they are (resizing, cropping) is passed over.

    Returns:
        True, False, or None where a function, a `Lambda` or the `call` of a subclassed model may do
        anything to the images.
    """
    if normalization_of(network) is not None:
        return True
    first = _first_that_changes_values(network)
    certain = hasattr(network, "outputs") and first is not None
    return False if certain and not isinstance(first, keras.layers.Lambda) else None


def normalization_of(network: Any) -> keras.layers.Layer | None:
    """The `Rescaling` or `Normalization` layer that a network begins with, None without one."""
    first = _first_that_changes_values(network)
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


def _first_that_changes_values(network: Any) -> keras.layers.Layer | None:
    if not isinstance(network, keras.Model):
        return None
    return next((x for x in inner_layers(network) if not isinstance(x, _KEEPS_VALUES)), None)
