"""The precision that losses are computed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import ops

if TYPE_CHECKING:
    import tensorflow as tf

NO_LOGIT = -1e30  # finite, so that 0 times it stays 0; its softmax is exactly 0


def at_least_float32(values: tf.Tensor, name: str = "values") -> tf.Tensor:
    """Casts half precision to float32 and leaves float32 and float64 alone.

    Args:
        values: Float tensor of any shape.
        name: What to call `values` in the error.

    Returns:
        Tensor of the same shape, float32 or float64.

    Raises:
        TypeError: If `values` are no floating-point numbers.

    Source: Xu et al. 2020, arXiv:2006.07114, names no precision; sums of squares of wide
    projections overflow float16, and its logits lose the ranks that selection reads.
    """
    values = ops.convert_to_tensor(values)
    dtype = keras.backend.standardize_dtype(values.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise TypeError(
            f"`{name}` must be floating point, got {dtype}: pass logits or projections, not labels."
        )
    return ops.cast(values, "float32") if dtype in ("float16", "bfloat16") else values
