"""The layers that the papers' networks are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_ssd.layers import BatchNormalization, ChannelShuffle, ChannelSplit, GroupedConv2D
from keras_ssd.models.initializers import Initialization


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Makes and applies the layers of one network, all in one dtype policy.

    Args:
        policy: The dtype policy of every layer but the first and the last ones, which compute in
            `wide_dtype`: the normalisation, the pooling and the classifier.
        initialization: How first weights are drawn.
        synchronized_batch_norm: Whether statistics are those of the batch of all replicas.
    """

    policy: keras.dtype_policies.DTypePolicy
    initialization: Initialization
    synchronized_batch_norm: bool = False

    @property
    def wide_dtype(self) -> str:
        """`float32`, or `float64` in a network of that precision."""
        return "float64" if self.policy.compute_dtype == "float64" else "float32"

    def images(self, shape: Sequence[int | None]) -> keras.KerasTensor:
        """The input `(batch, *shape)`: arrays of integers or floats, cast without loss."""
        return keras.Input(shape, dtype=self.wide_dtype, name="images")

    def normalize(
        self, images: keras.KerasTensor, mean: Sequence[float], std: Sequence[float]
    ) -> keras.KerasTensor:
        """(images / 255 - mean) / std, a channel at a time."""
        scale = 1 / np.asarray(std, "float64")  # a list would pass through float32
        return keras.layers.Rescaling(
            scale / 255,
            offset=-np.asarray(mean, "float64") * scale,
            dtype=self.wide_dtype,
            name="normalization",
        )(images)

    def convolution(
        self,
        x: keras.KerasTensor,
        filters: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        use_bias: bool = False,
        name: str,
    ) -> keras.KerasTensor:
        """A convolution; (kernel_size - 1) / 2 zeros on all four sides, as in PyTorch."""
        x, padding = self._padded(x, kernel_size, stride, name)
        channels = x.shape[-1]
        layer = keras.layers.Conv2D if groups == 1 else GroupedConv2D
        return layer(
            filters,
            kernel_size,
            strides=stride,
            padding=padding,
            groups=groups,
            use_bias=use_bias,
            kernel_initializer=self.initialization.kernel(
                kernel_size, channels, filters, groups=groups
            ),
            bias_initializer=self.initialization.convolution_bias(
                kernel_size, channels, groups=groups
            ),
            dtype=self.policy,
            name=name,
        )(x)

    def depthwise(self, x: keras.KerasTensor, *, stride: int = 1, name: str) -> keras.KerasTensor:
        """A 3x3 convolution of each channel by itself, without bias; padded as `convolution`."""
        x, padding = self._padded(x, 3, stride, name)
        channels = x.shape[-1]
        return keras.layers.DepthwiseConv2D(
            3,
            strides=stride,
            padding=padding,
            use_bias=False,
            depthwise_initializer=self.initialization.kernel(
                3, channels, channels, groups=channels
            ),
            dtype=self.policy,
            name=name,
        )(x)

    def _padded(
        self, x: keras.KerasTensor, kernel_size: int, stride: int, name: str
    ) -> tuple[keras.KerasTensor, str]:
        # "same" pads only the right and the bottom where the stride is 2 and the size is even.
        if stride == 1 or kernel_size == 1:
            return x, "same"
        return self.pad(x, kernel_size // 2, name=f"{name}.padding"), "valid"

    def pad(self, x: keras.KerasTensor, size: int, *, name: str) -> keras.KerasTensor:
        """`size` zeros on all four sides."""
        return keras.layers.ZeroPadding2D(size, dtype=self.policy, name=name)(x)

    def batch_norm(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """Batch normalisation with the papers' constants: momentum 0.9, epsilon 1e-5."""
        return BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            synchronized=self.synchronized_batch_norm,
            dtype=self.policy,
            name=name,
        )(x)

    def end(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """`x` itself, under a name, where no layer without weights ends a stage."""
        # The name: Keras cannot save an `Identity` that was given a policy.
        return keras.layers.Identity(dtype=self.policy.name, name=name)(x)

    def add(self, x: keras.KerasTensor, y: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """The sum of two maps of one shape."""
        return keras.layers.Add(dtype=self.policy, name=name)([x, y])

    def concatenate(
        self, x: keras.KerasTensor, y: keras.KerasTensor, *, name: str
    ) -> keras.KerasTensor:
        """The channels of `x`, then those of `y`."""
        return keras.layers.Concatenate(dtype=self.policy, name=name)([x, y])

    def split(
        self, x: keras.KerasTensor, *, name: str
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """The first and the second half of the channels."""
        return ChannelSplit(dtype=self.policy, name=name)(x)

    def shuffle(self, x: keras.KerasTensor, groups: int, *, name: str) -> keras.KerasTensor:
        """The channels of all groups in turn."""
        return ChannelShuffle(groups, dtype=self.policy, name=name)(x)

    def relu(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """max(x, 0)."""
        return keras.layers.ReLU(dtype=self.policy, name=name)(x)

    def max_pool(self, x: keras.KerasTensor, size: int, *, name: str) -> keras.KerasTensor:
        """The maxima of windows, 2 apart."""
        return keras.layers.MaxPooling2D(size, strides=2, dtype=self.policy, name=name)(x)

    def average_pool(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """The means of 3x3 windows, 2 apart, with a zero on all four sides that counts."""
        x = self.pad(x, 1, name=f"{name}.padding")
        return keras.layers.AveragePooling2D(3, strides=2, dtype=self.policy, name=name)(x)

    def pool(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """The mean over all positions of a map, `(batch, channels)`."""
        return keras.layers.GlobalAveragePooling2D(dtype=self.wide_dtype, name=name)(x)

    def dense(self, x: keras.KerasTensor, units: int, *, name: str) -> keras.KerasTensor:
        """A classifier: a dense layer with bias."""
        width = x.shape[-1]
        return keras.layers.Dense(
            units,
            kernel_initializer=self.initialization.dense_kernel(width),
            bias_initializer=self.initialization.bias_of_dense(width),
            dtype=self.wide_dtype,
            name=name,
        )(x)
