"""Labels that losses of several classes take."""

from __future__ import annotations

import tensorflow as tf


def class_labels(labels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Labels as int32, one a row.

    Raises:
        TypeError: If they are no integers.
        ValueError: If there is not one a row.
    """
    labels, rows = tf.convert_to_tensor(labels), tf.convert_to_tensor(rows)
    if not labels.dtype.is_integer:
        raise TypeError(f"`labels` must be integers [batch], got {labels.dtype.name}.")
    if labels.shape.rank != 1 or not labels.shape.is_compatible_with(rows.shape[:1]):
        raise ValueError(
            f"`labels` must be one class a row, shape {tuple(rows.shape[:1])}, got "
            f"{tuple(labels.shape)}: take the argmax of one-hot rows."
        )
    return tf.cast(labels, tf.int32)
