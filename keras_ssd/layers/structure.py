"""What a network is made of: its layers in order, and whether it normalises its images itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

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
    if not isinstance(network, keras.Model):
        return None
    changing = (layer for layer in inner_layers(network) if not isinstance(layer, _KEEPS_VALUES))
    first = next(changing, None)
    if isinstance(first, _NORMALISES):
        return True
    certain = hasattr(network, "outputs") and first is not None
    return False if certain and not isinstance(first, keras.layers.Lambda) else None
