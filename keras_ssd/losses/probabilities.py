"""Class scores that a softmax has made probabilities of, where logits are needed."""

from __future__ import annotations

import tensorflow as tf

_OFF = 1e-2  # as far as bfloat16 rounds


def are_probabilities(scores: tf.Tensor) -> tf.Tensor:
    """Whether no score of `[..., C]` is negative and each C of them sum to 1 (to 1 %)."""
    scores = tf.cast(scores, tf.float32)
    sum_to_1 = tf.abs(tf.reduce_sum(scores, axis=-1) - 1) < _OFF
    return tf.reduce_all(scores >= 0) & tf.reduce_all(sum_to_1)
