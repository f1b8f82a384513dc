"""Losses that pull an image's two embeddings together and push those of other images apart."""

from __future__ import annotations

import tensorflow as tf
from keras import ops

from keras_ssd.arguments import check_temperature
from keras_ssd.losses.blocks import check_same_width, kept_of
from keras_ssd.losses.divergences import symmetric_kl_divergence
from keras_ssd.losses.labels import class_labels
from keras_ssd.losses.norms import SMALLEST_NORM, products, unit_vectors
from keras_ssd.losses.precision import NO_LOGIT, at_least_float32

_SHARE_EPSILON = 1e-10
_SCORE_EPSILON = 1e-7


def noise_contrastive_loss(
    teacher: tf.Tensor,
    student: tf.Tensor,
    labels: tf.Tensor,
    temperature: float = 0.1,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """The student's image should find the teacher's images of its class, and no others.

    `mean over i of [mean over j of i's class of -ln(S_ij + 1e-10) + mean over the other j of
    -ln(1 - S_ij + 1e-10)]`, where row i of S is the softmax over the batch of the cosines between
    the student's embedding i and the teacher's embeddings j, divided by T. The images of i's class
    are those of its label, itself included; where there are no others, the second mean is 0.

    Args:
        teacher: Float tensor `[B, D]`.
        student: Float tensor `[B, D]`. Its length does not matter from 1e-12 on; a zero vector has
            cosine 0 with all, and no gradient.
        labels: Integers `[B]`; -1 is unlabeled and takes no part.
        temperature: T, a finite number > 0.
        weights: `[B]`; an image of weight 0 takes no part, as if it were not there, and may be NaN.
            All weights above 0 are one. None: all take part.

    Returns:
        Scalar in nats, float32 (float64 for float64 input); 0 where no image takes part.

    Raises:
        ValueError: If shapes do not fit or `temperature` is no finite number > 0.
        TypeError: If the embeddings are integers, or the labels are none.

    Source: the baseline "NCE" of Ma et al. 2022 (arXiv:2211.13264) as their program computes it,
    after Chen et al. 2021, arXiv:2104.10955. Theirs is NaN where a batch holds one class alone.
    """
    taking_part = known_labels(labels, student, weights)
    values = noise_contrastive_rows(teacher, student, taking_part, taking_part, temperature)
    return _mean(values, taking_part)


def compositional_contrastive_loss(
    teacher: tf.Tensor,
    student: tf.Tensor,
    labels: tf.Tensor,
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    temperature: float = 0.1,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """`noise_contrastive_loss` plus the mean symmetric KL divergence of the class distributions.

    Args:
        teacher: Float tensor `[B, D]`.
        student: Float tensor `[B, D]`.
        labels: Integers `[B]`; -1 is unlabeled and takes no part.
        teacher_logits: Float tensor `[B, C]`, before any softmax.
        student_logits: Float tensor `[B, C]`, before any softmax.
        temperature: That of the cosines, a finite number > 0; that of the classes is 1.
        weights: As in `noise_contrastive_loss`.

    Returns:
        Scalar in nats, float32 (float64 for float64 input); 0 where no image takes part.

    Raises:
        ValueError: If shapes do not fit or `temperature` is no finite number > 0.
        TypeError: If embeddings or logits are integers, or the labels are none.

    Source: the baseline "CCL" of Ma et al. 2022 (arXiv:2211.13264) as their program computes it
    (which calls the divergence JSD; it is `symmetric_kl_divergence`), after Chen et al. 2021,
    arXiv:2104.10955, whose networks of sound and film are not used.
    """
    taking_part = known_labels(labels, student, weights)
    values = noise_contrastive_rows(teacher, student, taking_part, taking_part, temperature)
    divergences = symmetric_kl_divergence(teacher_logits, student_logits)
    return _mean(values, taking_part) + _mean(divergences, taking_part)


def contrastive_representation_loss(scores: tf.Tensor, num_images: int) -> tf.Tensor:
    """Tells an image's own score from the scores of K others, as many binary decisions.

    `-ln(P_0 / (P_0 + c + 1e-7)) - sum over k of ln(c / (P_k + c + 1e-7))` with `c = K / n`.

    Args:
        scores: Float tensor `[B, 1 + K]`, P > 0: in column 0 that of the positive, then those of
            the negatives, all divided by a constant that makes `n P` about 1 on average.
        num_images: n, the number of images that negatives are drawn from.

    Returns:
        Tensor `[B]` in nats, float32 (float64 for float64 scores).

    Raises:
        ValueError: If there are no negatives or `num_images` is not > 0.
        TypeError: If the scores are integers.

    Source: Tian et al. 2020, arXiv:1910.10699, equation 18, and the authors' code (`ContrastLoss`),
    which divides the sum by B.
    """
    scores = at_least_float32(scores, "scores")
    if scores.shape.rank != 2 or scores.shape[1] is None or scores.shape[1] < 2:
        raise ValueError(
            "`scores` must be [batch, 1 + negatives] with at least one negative, got shape "
            f"{tuple(scores.shape)}."
        )
    if not num_images > 0:
        raise ValueError(f"`num_images` must be > 0, got {num_images}.")
    noise = (scores.shape[1] - 1) / num_images
    own = scores[:, 0]
    # A quotient would be as far out of range as the score is small, and its gradient twice.
    positive = ops.log(own + (noise + _SCORE_EPSILON)) - ops.log(own)
    # The terms are as small as K / n is large: a logarithm of about 1 would round them away.
    return positive + ops.sum(ops.log1p((scores[:, 1:] + _SCORE_EPSILON) / noise), axis=1)


def known_labels(
    labels: tf.Tensor, embeddings: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """The labels as int32 `[B]`, -1 where an image takes no part."""
    labels = class_labels(labels, embeddings)
    return tf.where(kept_of(tf.convert_to_tensor(embeddings), weights) > 0, labels, -1)


def noise_contrastive_rows(
    teacher: tf.Tensor,
    student: tf.Tensor,
    teacher_labels: tf.Tensor,
    student_labels: tf.Tensor,
    temperature: float = 0.1,
) -> tf.Tensor:
    """The value of each row of `noise_contrastive_loss`, for some rows beside all columns.

    Args:
        teacher: Float tensor `[C, D]`, of all images.
        student: Float tensor `[R, D]`, of some of them.
        teacher_labels: int32 `[C]`, -1 for an image that takes no part.
        student_labels: int32 `[R]`, -1 for an image that takes no part.
        temperature: T, a finite number > 0.

    Returns:
        Tensor `[R]`; meaningless for an image that takes no part, but finite.
    """
    check_temperature(temperature)
    teacher, student = at_least_float32(teacher, "teacher"), at_least_float32(student, "student")
    check_same_width(teacher, student, "embeddings")
    is_column = teacher_labels >= 0
    cosines = products(
        unit_vectors(_zero_unless(student_labels >= 0, student), smallest_norm=SMALLEST_NORM),
        unit_vectors(_zero_unless(is_column, teacher), smallest_norm=SMALLEST_NORM),
    )
    nothing = tf.constant(NO_LOGIT, cosines.dtype)
    # Not that of Keras, which warns where there is one column.
    shares = tf.nn.softmax(tf.where(is_column, cosines / temperature, nothing), axis=-1)
    same = is_column & (student_labels[:, None] == teacher_labels)
    found = -ops.log(shares + _SHARE_EPSILON)
    # A share may be rounded to just above 1.
    avoided = -ops.log(ops.maximum(1 - shares, 0) + _SHARE_EPSILON)
    return _mean_where(same, found) + _mean_where(is_column & ~same, avoided)


def _zero_unless(chosen: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.where(chosen[:, None], rows, tf.zeros_like(rows))


def _mean_where(chosen: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
    """Mean of the chosen entries of each row, 0 without any."""
    total = ops.sum(tf.where(chosen, entries, tf.zeros_like(entries)), axis=1)
    return tf.math.divide_no_nan(total, ops.sum(ops.cast(chosen, entries.dtype), axis=1))


def _mean(values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean over the rows that take part, 0 without any."""
    return _mean_where((labels >= 0)[None], values[None])[0]
