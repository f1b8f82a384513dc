"""Divergences between the class distributions of a teacher and a student."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from keras import ops

from keras_ssd.losses.precision import at_least_float32

if TYPE_CHECKING:
    import tensorflow as tf


def kl_divergence(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """KL divergence from the student's softened distribution to the teacher's, times T squared.

    `T^2 * sum_c p_c (log p_c - log q_c)` with `p = softmax(teacher / T)` and
    `q = softmax(student / T)`. Differentiable in both arguments: exchange them for the reverse
    divergence, and stop the gradient of a teacher that must not learn.

    Args:
        teacher_logits: Float tensor `[R, C]`, before any softmax. A logit of -inf is a class of
            probability 0.
        student_logits: Float tensor `[R, C]`, before any softmax.
        temperature: Finite number > 0. 1 leaves the distributions alone.

    Returns:
        Tensor `[R]` in nats, float32 (float64 for float64 logits); 0 where the two agree.

    Raises:
        ValueError: If the shapes differ or `temperature` is no finite number > 0.
        TypeError: If the logits are integers.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2 (T squared keeps the size of the
    gradient about independent of T); `loss_kd` and `loss_tf` of Xu et al. 2020,
    arXiv:2006.07114, whose code uses the divergence where the paper writes the cross-entropy.
    Where the student gives probability 0 to what the teacher believes in, the value is very
    large but finite.
    """
    if not 0 < temperature < math.inf:  # also refuses NaN
        raise ValueError(f"`temperature` must be a finite number > 0, got {temperature}.")
    teacher = _log_probabilities(teacher_logits, "teacher_logits", temperature)
    student = _log_probabilities(student_logits, "student_logits", temperature)
    _check_same_shape(teacher, student)
    terms = ops.multiply(ops.exp(teacher), ops.subtract(teacher, student))
    return temperature**2 * ops.sum(terms, axis=-1)


def _log_probabilities(logits: tf.Tensor, name: str, temperature: float) -> tf.Tensor:
    scaled = at_least_float32(logits, name) / temperature
    # A finite floor for -inf: 0 * (-inf) would be NaN in the value and in the gradient.
    return ops.log_softmax(ops.maximum(scaled, -1e30), axis=-1)


def _check_same_shape(teacher: tf.Tensor, student: tf.Tensor) -> None:
    teacher_classes, student_classes = teacher.shape[-1], student.shape[-1]
    if not teacher.shape[-1:].is_compatible_with(student.shape[-1:]):
        raise ValueError(
            f"The teacher has {teacher_classes} classes and the student {student_classes}: soft "
            "labels need one set of classes; transfer of similarities does not."
        )
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "Teacher and student logits must have the same shape, got "
            f"{tuple(teacher.shape)} and {tuple(student.shape)}: give both the same rows."
        )
