"""Norms that are safe at zero and hide no NaN: of zero comes 0 without a gradient, of NaN NaN."""

from __future__ import annotations

import tensorflow as tf
from keras import ops

# What centring leaves of a constant vector, relative to it, is not more than this rounding.
ROUNDING = {"float32": 1e-6, "float64": 1e-12}
SMALLEST_NORM = 1e-12  # the default of `torch.nn.functional.normalize`


def safe_root(squares: tf.Tensor) -> tf.Tensor:
    """The square root, with a gradient of 0 at 0.

    Args:
        squares: Float tensor of any shape, at least 0.
    """
    is_zero = squares == 0  # not `> 0`, which would make 0 of NaN
    # Twice, because the gradient of a root at 0 is infinite even where it is not chosen.
    root = ops.sqrt(tf.where(is_zero, tf.ones_like(squares), squares))
    return tf.where(is_zero, tf.zeros_like(squares), root)


def unit_vectors(
    vectors: tf.Tensor, axis: int | tuple[int, ...] = -1, smallest_norm: float = 0.0
) -> tf.Tensor:
    """Vectors divided by their norm; zero vectors stay, with a gradient of 0.

    Args:
        vectors: Float tensor of any shape, float32 or float64.
        axis: The axis, or axes, that a vector lies along.
        smallest_norm: What the norm is taken to be where it is less.
    """
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    is_zero = squares == 0
    norms = safe_root(ops.maximum(squares, smallest_norm**2) if smallest_norm else squares)
    norms = tf.where(is_zero, tf.ones_like(norms), norms)
    return tf.where(is_zero, tf.zeros_like(vectors), vectors / norms)


def products(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Inner products `[R, C]` of rows `[R, D]` and columns `[C, D]`."""
    return ops.matmul(rows, ops.transpose(columns))
