"""How the papers' networks draw their first weights."""

from __future__ import annotations

import math

import keras


def convolution_kernel() -> keras.initializers.Initializer:
    """Normal, untruncated, standard deviation sqrt(2 / (k * k * channels out)).

    Source: He et al. 2015, arXiv:1502.01852, equation 14; CRD's and SSKD's code.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def dense_kernel() -> keras.initializers.Initializer:
    """Uniform between -1/sqrt(width in) and 1/sqrt(width in), PyTorch's default."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def dense_bias(width: int) -> keras.initializers.Initializer:
    """Uniform between -1/sqrt(width) and 1/sqrt(width), PyTorch's default.

    Args:
        width: Int > 0, the inputs of the layer that the bias belongs to.
    """
    bound = 1 / math.sqrt(width)
    return keras.initializers.RandomUniform(-bound, bound)
