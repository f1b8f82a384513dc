"""Divergences between the class distributions of a teacher and a student."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from keras import ops

from keras_ssd.arguments import check_temperature
from keras_ssd.losses.precision import NO_LOGIT, at_least_float32

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
    teacher, student = _both(teacher_logits, student_logits, temperature)
    return temperature**2 * _divergence(teacher, student)


def symmetric_kl_divergence(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """Half the sum of the KL divergences in both directions, times T squared.

    `T^2 * sum_c (p_c - q_c) (log p_c - log q_c) / 2` with `p = softmax(teacher / T)` and
    `q = softmax(student / T)` (Jeffreys' divergence, halved). It has no upper bound, and its
    gradient does not vanish where the two contradict each other.

    Args:
        teacher_logits: Float tensor `[R, C]`, before any softmax. A logit of -inf is a class of
            probability 0; -inf on both sides is a class that is not there.
        student_logits: Float tensor `[R, C]`, before any softmax.
        temperature: Finite number > 0. 1 leaves the distributions alone.

    Returns:
        Tensor `[R]` in nats, float32 (float64 for float64 logits); 0 where the two agree.

    Raises:
        ValueError: If the shapes differ or `temperature` is no finite number > 0.
        TypeError: If the logits are integers.

    Source: what the programs of SSLD compute (Cui et al. 2021, arXiv:2103.05959; `JSDivLoss` and
    later `DMLLoss` of PaddleClas), which the authors call an improved JS divergence. They add 1e-12
    (first 1e-10) to the probabilities: the value then stays below 27.6 (23.0) and the gradient is 0
    where both are sure of different classes.
    """
    teacher, student = _both(teacher_logits, student_logits, temperature)
    difference = ops.subtract(ops.exp(teacher), ops.exp(student))
    terms = ops.multiply(difference, ops.subtract(teacher, student))
    return temperature**2 / 2 * ops.sum(terms, axis=-1)


def jensen_shannon_divergence(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """Mean KL divergence of both distributions from their mixture, times T squared.

    `T^2 * (KL(p || m) + KL(q || m)) / 2` with `p = softmax(teacher / T)`,
    `q = softmax(student / T)` and `m = (p + q) / 2`. At most `T^2 ln 2`, and where the two nearly
    agree **a quarter of `symmetric_kl_divergence`**: exchanging one for the other changes the step
    by a factor of about 4.

    Args:
        teacher_logits: Float tensor `[R, C]`, before any softmax. A logit of -inf is a class of
            probability 0; -inf on both sides is a class that is not there.
        student_logits: Float tensor `[R, C]`, before any softmax.
        temperature: Finite number > 0. 1 leaves the distributions alone.

    Returns:
        Tensor `[R]` in nats, float32 (float64 for float64 logits); 0 where the two agree.

    Raises:
        ValueError: If the shapes differ or `temperature` is no finite number > 0.
        TypeError: If the logits are integers.

    Source: Lin 1991, *Divergence Measures Based on the Shannon Entropy*. SSLD has its name, its
    programs never computed it: see `symmetric_kl_divergence`.
    """
    teacher, student = _both(teacher_logits, student_logits, temperature)
    mixture = ops.subtract(ops.logaddexp(teacher, student), math.log(2))
    total = ops.add(_divergence(teacher, mixture), _divergence(student, mixture))
    return temperature**2 / 2 * total


def soft_cross_entropy(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """Cross-entropy of the student with the teacher's distribution; no factor T squared.

    `-sum_c p_c log q_c` with `p = softmax(teacher / T)` and `q = softmax(student / T)`: the KL
    divergence plus the teacher's entropy, so with the same gradient in the student's logits.

    Args:
        teacher_logits: Float tensor `[R, C]`, before any softmax. A logit of -inf is a class of
            probability 0; -inf on both sides is a class that is not there.
        student_logits: Float tensor `[R, C]`, before any softmax.
        temperature: Finite number > 0. 1 leaves the distributions alone.

    Returns:
        Tensor `[R]` in nats, float32 (float64 for float64 logits); the teacher's entropy where the
        two agree.

    Raises:
        ValueError: If the shapes differ or `temperature` is no finite number > 0.
        TypeError: If the logits are integers.

    Source: the newer recipes of PaddleClas called "ssld" (`CELoss` with soft labels).
    """
    teacher, student = _both(teacher_logits, student_logits, temperature)
    return ops.negative(ops.sum(ops.multiply(ops.exp(teacher), student), axis=-1))


def _both(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """The logarithms of both distributions."""
    check_temperature(temperature)
    teacher = _log_probabilities(teacher_logits, "teacher_logits", temperature)
    student = _log_probabilities(student_logits, "student_logits", temperature)
    _check_same_shape(teacher, student)
    return teacher, student


def _divergence(of: tf.Tensor, from_: tf.Tensor) -> tf.Tensor:
    """KL divergence of one distribution from another, both as logarithms."""
    return ops.sum(ops.multiply(ops.exp(of), ops.subtract(of, from_)), axis=-1)


def _log_probabilities(logits: tf.Tensor, name: str, temperature: float) -> tf.Tensor:
    scaled = at_least_float32(logits, name) / temperature
    # A finite floor for -inf: 0 * (-inf) would be NaN in the value and in the gradient.
    return ops.log_softmax(ops.maximum(scaled, NO_LOGIT), axis=-1)


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
