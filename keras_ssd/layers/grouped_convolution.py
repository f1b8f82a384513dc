"""Keras' grouped convolution, fast on a CPU."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ssd")
class GroupedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with `groups`, a convolution for each group.

    Arguments, weights, config and results are those of Keras' layer, and so is the code where there
    is a GPU or TPU. On a CPU Keras' layer compiles every grouped convolution for itself with XLA,
    which is slow to start and several times as slow to run; in eager code it compiles at every
    call.

    Args:
        *args: As of `keras.layers.Conv2D`.
        **kwargs: As of `keras.layers.Conv2D`.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The convolutions of all groups, on a CPU one behind the other."""
        if any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
            return super().convolution_op(inputs, kernel)
        axis = -1 if self.data_format == "channels_last" else 1
        pairs = zip(
            ops.split(inputs, self.groups, axis=axis),
            ops.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        convolution = super().convolution_op
        return ops.concatenate([convolution(*pair) for pair in pairs], axis=axis)
