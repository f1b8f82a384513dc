"""Adaptive average pooling of feature maps to a fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from keras import ops

from keras_ssd.losses.precision import at_least_float32

if TYPE_CHECKING:
    import tensorflow as tf


def adaptive_average_pooling(maps: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Means over bins that cover a map evenly, whatever its size.

    Bin i of h over H rows holds the rows `floor(i H / h)` to `ceil((i + 1) H / h) - 1`; bins
    overlap where h does not divide H. The same holds for columns. It is a product with one fixed
    matrix an axis.

    Args:
        maps: Float tensor `[B, H, W, C]` of known H and W.
        height: Bins down the map, at least 1. More than H repeats rows.
        width: Bins across the map, at least 1.

    Returns:
        Tensor `[B, height, width, C]`, float32 (float64 for float64 maps); `maps` themselves where
        they have that size.

    Raises:
        ValueError: If the maps have no four dimensions, or their size is not known.
        TypeError: If the maps are integers.

    Source: `torch.nn.functional.adaptive_avg_pool2d`, with which the code of CRD and ReviewKD makes
    maps of different size comparable.
    """
    maps = at_least_float32(maps, "maps")
    size = _size(maps)
    if size[0] != height:
        maps = ops.einsum("ij,bjwc->biwc", _means(size[0], height, maps.dtype), maps)
    if size[1] != width:
        maps = ops.einsum("ij,bhjc->bhic", _means(size[1], width, maps.dtype), maps)
    return maps


def of_one_size(teacher: tf.Tensor, student: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Both maps pooled to the smaller height and the smaller width of the two.

    Args:
        teacher: Float tensor `[B, H, W, C]` of known H and W.
        student: Float tensor `[B, H', W', C']` of known H' and W'.

    Raises:
        ValueError: If the maps have no four dimensions, or their size is not known.
        TypeError: If the maps are integers.
    """
    height, width = map(min, _size(teacher), _size(student))
    return (
        adaptive_average_pooling(teacher, height, width),
        adaptive_average_pooling(student, height, width),
    )


def _size(maps: tf.Tensor) -> tuple[int, int]:
    shape = tuple(maps.shape)
    if len(shape) != 4 or None in shape[1:3]:
        raise ValueError(
            "Feature maps must have the shape (batch, height, width, channels) with a known height "
            f"and width, got {shape}: name an output in front of the pooling, of images of one "
            "size."
        )
    return shape[1], shape[2]


def _means(size: int, bins: int, dtype: tf.DType) -> tf.Tensor:
    """The matrix `[bins, size]` that takes the mean of each bin."""
    matrix = np.zeros((bins, size))
    for i in range(bins):
        first, end = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:end] = 1 / (end - first)
    return ops.convert_to_tensor(matrix, dtype)
