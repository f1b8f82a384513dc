"""How the papers' networks draw their first weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import keras


@dataclasses.dataclass(frozen=True)
class Initialization:
    """First weights of a network's convolutions and dense layers.

    Args:
        convolution: `"fan_out"`: normal, untruncated, standard deviation
            sqrt(2 / (k * k * channels out)), biases 0. `"pytorch"`: kernels and biases uniform
            within 1 / sqrt(fan in), PyTorch's default.
        dense: `"pytorch"`: kernels uniform within 1 / sqrt(width in). `"small"`: normal, standard
            deviation 0.01.
        dense_bias: `"pytorch"`: uniform within 1 / sqrt(width in). `"zeros"`: 0.

    Source: He et al. 2015, arXiv:1502.01852, equation 14; the code of CRD, SSKD and HSAKD.
    """

    convolution: Literal["fan_out", "pytorch"] = "fan_out"
    dense: Literal["pytorch", "small"] = "pytorch"
    dense_bias: Literal["pytorch", "zeros"] = "pytorch"

    def kernel(
        self, size: int, channels_in: int, channels_out: int, *, groups: int = 1
    ) -> keras.initializers.Initializer:
        """The initialiser of a convolution's kernel.

        Keras' own fans of a depthwise kernel are those of one channel and of all channels, so the
        numbers are written out.
        """
        if self.convolution == "pytorch":
            return uniform(size * size * channels_in // groups)
        deviation = math.sqrt(2 / (size * size * channels_out))
        return keras.initializers.RandomNormal(stddev=deviation)

    def convolution_bias(
        self, size: int, channels_in: int, *, groups: int = 1
    ) -> keras.initializers.Initializer:
        """The initialiser of a convolution's bias."""
        if self.convolution == "pytorch":
            return uniform(size * size * channels_in // groups)
        return keras.initializers.Zeros()

    def dense_kernel(self, width: int) -> keras.initializers.Initializer:
        """The initialiser of a dense layer's kernel; `width` are its inputs."""
        if self.dense == "small":
            return keras.initializers.RandomNormal(stddev=0.01)
        return uniform(width)

    def bias_of_dense(self, width: int) -> keras.initializers.Initializer:
        """The initialiser of a dense layer's bias; `width` are its inputs."""
        return keras.initializers.Zeros() if self.dense_bias == "zeros" else uniform(width)


def uniform(fan_in: int) -> keras.initializers.Initializer:
    """Uniform within 1 / sqrt(fan in), PyTorch's default for kernels and biases."""
    bound = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)
