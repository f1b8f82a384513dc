"""A dense layer without activation, as the papers' heads begin."""

from __future__ import annotations

import keras

from keras_ssd.models.initializers import Initialization


def linear(
    inputs: keras.KerasTensor, units: int, name: str, dtype: str | keras.DTypePolicy
) -> keras.KerasTensor:
    """What a new dense layer makes of vectors; it starts uniform within 1 / sqrt(width in)."""
    width, initialization = inputs.shape[-1], Initialization()
    return keras.layers.Dense(
        units,
        kernel_initializer=initialization.dense_kernel(width),
        bias_initializer=initialization.bias_of_dense(width),
        dtype=dtype,
        name=name,
    )(inputs)
