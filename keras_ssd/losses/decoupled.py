"""Soft labels taken apart: label and other classes (DKD), relations in rows and columns (DIST)."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from keras_ssd.arguments import check_not_negative, check_temperature
from keras_ssd.losses.blocks import kept_of, only_kept
from keras_ssd.losses.divergences import kl_divergence
from keras_ssd.losses.labels import class_labels
from keras_ssd.losses.norms import ROUNDING, safe_root
from keras_ssd.losses.precision import NO_LOGIT, at_least_float32

_CORRELATION_EPSILON = 1e-8


def decoupled_divergence(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    labels: tf.Tensor,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    temperature: float = 4.0,
) -> tf.Tensor:
    """KL divergence of the label against the rest, and among the rest, with a weight each.

    `T^2 (target_weight * KL(b_t || b_s) + other_weight * KL(o_t || o_s))` with the two
    probabilities `b = [p_y, 1 - p_y]` and the softmax `o` over the classes other than the label y,
    all at temperature T. `kl_divergence` is the same with the weights 1 and `1 - p_y` of the
    teacher. With two classes the second part is 0.

    Args:
        teacher_logits: Float tensor `[B, C]`, before any softmax. A logit of -inf is a class of
            probability 0.
        student_logits: Float tensor `[B, C]`, before any softmax.
        labels: Integers `[B]`. Those outside 0..C-1 are moved to the nearest class: give such rows
            no weight.
        target_weight: Weight of the first part (alpha in the paper).
        other_weight: Weight of the second part (beta in the paper).
        temperature: Finite number > 0.

    Returns:
        Tensor `[B]` in nats, float32 (float64 for float64 logits); 0 where the two agree.

    Raises:
        ValueError: If shapes do not fit, a weight is no finite number >= 0, or `temperature` none
            > 0.
        TypeError: If the logits are integers, or the labels are none.

    Source: Zhao et al. 2022, arXiv:2203.08679, equation 7. The authors' code takes logarithms of
    probabilities and is NaN for logits about 100 apart; here all is computed of logarithms.
    """
    check_not_negative("target_weight", target_weight)
    check_not_negative("other_weight", other_weight)
    labels = class_labels(labels, teacher_logits)
    teacher_parts = _decoupled(teacher_logits, "teacher_logits", labels, temperature)
    student_parts = _decoupled(student_logits, "student_logits", labels, temperature)
    other = kl_divergence(teacher_parts[1], student_parts[1], temperature)
    target = kl_divergence(teacher_parts[0], student_parts[0])  # the parts are divided by T already
    return target_weight * temperature**2 * target + other_weight * other


def class_relation_loss(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float = 1.0,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """How little the student's probabilities correlate with the teacher's, by image and by class.

    `T^2 (inter_weight * (1 - mean of rho over the images) + intra_weight * (1 - mean of rho over
    the classes))`, where rho is the Pearson correlation `sum(a b) / (|a| |b| + 1e-8)` of centred
    probabilities at temperature T: of an image over the classes, and of a class over the images. It
    is 0 where one of the two is constant, so with one image the second part is `intra_weight`.

    Args:
        teacher_logits: Float tensor `[B, C]`, before any softmax.
        student_logits: Float tensor `[B, C]`, before any softmax.
        inter_weight: Weight of the part by image (beta in the paper).
        intra_weight: Weight of the part by class (gamma in the paper).
        temperature: Finite number > 0.
        weights: `[B]`; an image of weight 0 takes no part, as if it were not there, and may be NaN.
            All weights above 0 are one. None: all take part.

    Returns:
        Scalar, float32 (float64 for float64 logits); 0 where no image takes part.

    Raises:
        ValueError: If shapes do not fit or `temperature` is no finite number > 0.
        TypeError: If the logits are integers.

    Source: Huang et al. 2022, arXiv:2205.10536, equations 9 to 11, and the authors' code.
    """
    check_not_negative("inter_weight", inter_weight)
    check_not_negative("intra_weight", intra_weight)
    teacher = at_least_float32(teacher_logits, "teacher_logits")
    student = at_least_float32(student_logits, "student_logits")
    kept = kept_of(student, weights)
    teacher, student = only_kept(teacher, kept), only_kept(student, kept)
    rows = kept * image_relations(teacher, student, temperature)
    inter = tf.math.divide_no_nan(ops.sum(rows), ops.sum(kept))
    intra = class_relations(teacher, student, temperature, kept)
    intra = tf.where(ops.sum(kept) > 0, intra, tf.zeros_like(intra))
    return inter_weight * inter + intra_weight * intra


def image_relations(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """`T^2 (1 - rho)` of each image over the classes, `[B]`; see `class_relation_loss`."""
    teacher, student = _probabilities(teacher_logits, student_logits, temperature)
    weights = ops.ones_like(teacher)
    return temperature**2 * (1 - _correlation(teacher, student, weights, axis=1))


def class_relations(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    temperature: float = 1.0,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """`T^2 (1 - mean of rho)` of the classes over the images, a scalar; see `class_relation_loss`.

    Rho is 0 for all classes where no image takes part.
    """
    teacher, student = _probabilities(teacher_logits, student_logits, temperature)
    kept = kept_of(teacher, weights)[:, None] * ops.ones_like(teacher)
    return temperature**2 * (1 - ops.mean(_correlation(teacher, student, kept, axis=0)))


def _decoupled(
    logits: tf.Tensor, name: str, labels: tf.Tensor, temperature: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits `[B, 2]` of label and rest, divided by T, and `[B, C]` of the rest as they were."""
    check_temperature(temperature)
    logits = ops.maximum(at_least_float32(logits, name), NO_LOGIT)
    classes = ops.shape(logits)[-1]
    is_label = tf.range(classes) == ops.clip(labels, 0, classes - 1)[:, None]
    nothing = tf.constant(NO_LOGIT, logits.dtype)
    others = tf.where(is_label, nothing, logits)
    target = ops.sum(tf.where(is_label, logits, tf.zeros_like(logits)), axis=-1)
    rest = ops.logsumexp(others / temperature, axis=-1)
    return ops.stack([target / temperature, rest], axis=-1), others


def _probabilities(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float
) -> tuple[tf.Tensor, tf.Tensor]:
    check_temperature(temperature)
    teacher = at_least_float32(teacher_logits, "teacher_logits")
    student = at_least_float32(student_logits, "student_logits")
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "Teacher and student logits must have the same shape, got "
            f"{tuple(teacher.shape)} and {tuple(student.shape)}: give both the same rows and one "
            "set of classes."
        )
    teacher = ops.cast(teacher, student.dtype)
    return tf.nn.softmax(teacher / temperature), tf.nn.softmax(student / temperature)


def _correlation(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor, axis: int
) -> tf.Tensor:
    """Pearson correlation along an axis over the entries of weight 1.

    For a constant it is 0, with a gradient of 0: what rounding leaves of it has no direction.
    """
    count = ops.sum(weights, axis=axis, keepdims=True)
    rounding = ROUNDING[keras.backend.standardize_dtype(student.dtype)]

    def centred(values: tf.Tensor) -> tf.Tensor:
        values = tf.where(weights > 0, values, tf.zeros_like(values))
        mean = tf.math.divide_no_nan(ops.sum(values, axis=axis, keepdims=True), count)
        values_centred = weights * (values - mean)
        of_all = ops.sum(ops.square(values), axis=axis, keepdims=True)
        left = ops.sum(ops.square(values_centred), axis=axis, keepdims=True)
        return tf.where(left <= rounding**2 * of_all, tf.zeros_like(values), values_centred)

    def norm(values: tf.Tensor) -> tf.Tensor:
        return safe_root(ops.sum(ops.square(values), axis=axis))

    teacher, student = centred(teacher), centred(student)
    product = ops.sum(teacher * student, axis=axis)
    return product / (norm(teacher) * norm(student) + _CORRELATION_EPSILON)
