"""Layers that move channels about."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ssd")
class ChannelShuffle(keras.layers.Layer):
    """Deals the channels of `groups` equal groups out in turn, so that groups mix.

    With C channels, output channel `k * groups + j` is input channel `j * C / groups + k`. Another
    shuffle, with C / groups groups, undoes it.

    Args:
        groups: Int > 0 that divides the number of channels.
        **kwargs: What every Keras layer takes.

    Raises:
        TypeError: If `groups` is no integer.
        ValueError: If `groups` is not positive, or, when the layer is built, the channels cannot be
            divided by it.

    Source: Zhang et al. 2018, arXiv:1707.01083, section 3.1.
    """

    def __init__(self, groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(groups, int):
            raise TypeError(f"`groups` must be an integer, got {groups!r}.")
        if groups < 1:
            raise ValueError(f"`groups` must be 1 or more, got {groups}.")
        self.groups = groups

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Checks the number of channels."""
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"The channels of {self.name!r} must be known and divisible by its {self.groups} "
                f"groups, got {channels}."
            )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Shuffle the last axis of `(..., channels)`."""
        channels = inputs.shape[-1]
        groups = ops.reshape(inputs, (-1, self.groups, channels // self.groups))
        return ops.reshape(ops.transpose(groups, (0, 2, 1)), ops.shape(inputs))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable(package="keras_ssd")
class ChannelSplit(keras.layers.Layer):
    """The first and the second half of the channels, as two outputs.

    Args:
        **kwargs: What every Keras layer takes.

    Raises:
        ValueError: When the layer is built, if the number of channels is odd.

    Source: Ma et al. 2018, arXiv:1807.11164, section 3.2.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Checks the number of channels."""
        channels = input_shape[-1]
        if channels is None or channels % 2:
            raise ValueError(
                f"The channels of {self.name!r} must be known and even, got {channels}."
            )

    def call(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Split the last axis of `(..., channels)`."""
        half = inputs.shape[-1] // 2
        return inputs[..., :half], inputs[..., half:]

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Half the channels, twice."""
        *places, channels = input_shape
        half = (*places, channels and channels // 2)
        return half, half

    def get_config(self) -> dict[str, Any]:
        """The arguments of every layer, a policy object included, which Keras' default refuses."""
        return super().get_config()
