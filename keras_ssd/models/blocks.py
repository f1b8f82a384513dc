"""The layers that the papers' networks are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_ssd.layers import BatchNormalization
from keras_ssd.models import initializers


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Makes and applies the layers of one network, all in one dtype policy.

    Args:
        policy: The dtype policy of every layer but the first and the last ones, which compute in
            `wide_dtype`: the normalisation, the pooling and the classifier.
        synchronized_batch_norm: Whether statistics are those of the batch of all replicas.
    """

    policy: keras.dtype_policies.DTypePolicy
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
        self, x: keras.KerasTensor, filters: int, kernel_size: int, *, stride: int = 1, name: str
    ) -> keras.KerasTensor:
        """A convolution without bias; (kernel_size - 1) / 2 zeros on all four sides, as in PyTorch.

        "same" pads only the right and the bottom where the stride is 2 and the size is even.
        """
        pad = kernel_size // 2 if stride > 1 else 0
        if pad:
            x = keras.layers.ZeroPadding2D(pad, dtype=self.policy, name=f"{name}.padding")(x)
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=stride,
            padding="valid" if pad else "same",
            use_bias=False,
            kernel_initializer=initializers.convolution_kernel(),
            dtype=self.policy,
            name=name,
        )(x)

    def batch_norm(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """Batch normalisation with the papers' constants: momentum 0.9, epsilon 1e-5."""
        return BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            synchronized=self.synchronized_batch_norm,
            dtype=self.policy,
            name=name,
        )(x)

    def add(self, x: keras.KerasTensor, y: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """The sum of two maps of one shape."""
        return keras.layers.Add(dtype=self.policy, name=name)([x, y])

    def relu(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """max(x, 0)."""
        return keras.layers.ReLU(dtype=self.policy, name=name)(x)

    def embedding(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """The mean over all positions of a map, `(batch, channels)`, in the layer `embedding`."""
        return keras.layers.GlobalAveragePooling2D(dtype=self.wide_dtype, name="embedding")(x)

    def logits(self, embedding: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
        """The classifier, a dense layer `logits` with PyTorch's default initialisation."""
        return keras.layers.Dense(
            num_classes,
            kernel_initializer=initializers.dense_kernel(),
            bias_initializer=initializers.dense_bias(embedding.shape[-1]),
            dtype=self.wide_dtype,
            name="logits",
        )(embedding)
