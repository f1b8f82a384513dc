"""Gradients of several replicas, and of single terms."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.collectives import all_sum, num_replicas
from keras_ssd.losses import at_least_float32


def shared_gradients(
    gradients: list[tf.Tensor], optimizer: keras.optimizers.Optimizer
) -> list[tf.Tensor]:
    """Makes clipping and the loss-scale check see the gradients of the global batch.

    Keras sums gradients over replicas after it has clipped them and after it has looked for an
    overflow: an overflow on one replica would reach every weight, and a norm would be clipped a
    replica at a time. So the gradients are summed and clipped here and divided by the number of
    replicas, which leaves Keras nothing to clip, one answer to its check everywhere, and a sum that
    gives them back.

    Args:
        gradients: This replica's gradients (of the scaled loss).
        optimizer: The optimizer that will apply them.

    Returns:
        Gradients for `optimizer.apply`; the same ones on one replica, or where the optimizer
        neither clips nor scales.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    scales = inner is not optimizer or inner.loss_scale_factor is not None
    if num_replicas() == 1 or not (scales or _clips(inner)):
        return gradients
    total = all_sum([tf.convert_to_tensor(gradient) for gradient in gradients])
    scale = optimizer.dynamic_scale if inner is not optimizer else inner.loss_scale_factor
    total = _clip(total, inner, 1.0 if scale is None else tf.convert_to_tensor(scale))
    return [gradient / num_replicas() for gradient in total]


def whole_gradient(
    tape: tf.GradientTape, value: tf.Tensor, variables: Sequence[keras.Variable]
) -> list[np.ndarray | None]:
    """The gradient of a scalar, scaled on the way as far as float16 can bear it.

    Args:
        tape: A persistent tape that has seen the scalar.
        value: The scalar.
        variables: What to differentiate by.

    Returns:
        An array a variable, float32 or float64; None where the scalar does not depend on it.
    """
    for scale in (2.0**12, 2.0**6, 1.0):
        gradients = tape.gradient(value, variables, output_gradients=tf.cast(scale, value.dtype))
        arrays = [  # sparse ones (of an `Embedding`) become dense
            None if g is None else at_least_float32(tf.convert_to_tensor(g)).numpy() / scale
            for g in gradients
        ]
        if all(np.isfinite(array).all() for array in arrays if array is not None):
            break
    return arrays


def _clips(optimizer: keras.optimizers.Optimizer) -> bool:
    return any(map(_acts, (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)))


def _acts(limit: float | None) -> bool:
    return limit is not None and limit > 0  # Keras takes 0 for no limit


def _clip(
    gradients: list[tf.Tensor],
    optimizer: keras.optimizers.Optimizer,
    scale: tf.Tensor | float,
) -> list[tf.Tensor]:
    def limit_for(gradient: tf.Tensor, limit: float) -> tf.Tensor:
        # `tf.cast(0.1, tf.float64)` would pass through float32.
        return tf.constant(limit, gradient.dtype) * tf.cast(scale, gradient.dtype)

    if _acts(optimizer.clipnorm):
        return [tf.clip_by_norm(g, limit_for(g, optimizer.clipnorm)) for g in gradients]
    if _acts(optimizer.global_clipnorm):
        limit = limit_for(gradients[0], optimizer.global_clipnorm)
        return tf.clip_by_global_norm(gradients, limit)[0]
    if _acts(optimizer.clipvalue):
        limits = [limit_for(g, optimizer.clipvalue) for g in gradients]
        clipped = [
            tf.clip_by_value(g, -limit, limit) for g, limit in zip(gradients, limits, strict=True)
        ]
        # An overflow must stay one: the loss-scale check comes later.
        return [
            tf.where(tf.math.is_finite(g), c, g) for g, c in zip(gradients, clipped, strict=True)
        ]
    return gradients
