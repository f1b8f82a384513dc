"""Cross-entropy with labels: the loss that needs no teacher."""

from __future__ import annotations

import tensorflow as tf
from keras import ops

from keras_ssd.losses.precision import at_least_float32


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Cross-entropy of each row with its label.

    Args:
        labels: Integer tensor `[R]` of classes, or float tensor `[R, C]` of distributions. Integers
            outside 0..C-1 are moved to the nearest class: give such rows no weight.
        logits: Float tensor `[R, C]`, before any softmax.
        label_smoothing: Share in 0..1 of the target that is spread evenly over the classes.

    Returns:
        Tensor `[R]` in nats, float32 (float64 for float64 logits).

    Raises:
        TypeError: If the logits are integers.

    Source: `loss_ce` and the loss of the projection head in Xu et al. 2020, arXiv:2006.07114; label
    smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    log_probabilities = ops.log_softmax(at_least_float32(logits, "logits"), axis=-1)
    if len(labels.shape) == 2:
        targets = ops.cast(labels, log_probabilities.dtype)
        values = -ops.sum(targets * log_probabilities, axis=-1)
    else:
        classes = ops.clip(ops.cast(labels, "int32"), 0, ops.shape(logits)[-1] - 1)
        # Not `take_along_axis`: its gradient has operations of unknown shape.
        values = -tf.gather(log_probabilities, classes, batch_dims=1)
    if label_smoothing:
        even = -ops.mean(log_probabilities, axis=-1)
        values = (1 - label_smoothing) * values + label_smoothing * even
    return values
