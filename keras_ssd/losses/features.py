"""Losses that compare the features of a teacher and a student image by image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from keras import ops

from keras_ssd.arguments import is_number
from keras_ssd.losses.norms import SMALLEST_NORM, unit_vectors
from keras_ssd.losses.pooling import adaptive_average_pooling, of_one_size
from keras_ssd.losses.precision import at_least_float32

if TYPE_CHECKING:
    import tensorflow as tf

_SMALLEST_VARIANCE = 1e-5
_LEVELS = (4, 2, 1)


def hint_loss(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of two embeddings or feature maps.

    `mean over the entries of (s - t)^2`. A student of another shape needs a trainable regressor in
    front (`heads.with_connector`).

    Args:
        teacher: Float tensor `[B, ...]`.
        student: Float tensor of the same shape.

    Returns:
        Tensor `[B]`, at least 0, float32 (float64 for float64 input).

    Raises:
        ValueError: If the shapes differ.
        TypeError: If the features are integers.

    Source: Romero et al. 2015, arXiv:1412.6550, equation 3, as the code of CRD computes it (the
    paper has half the sum over the entries).
    """
    teacher, student = _both(teacher, student)
    return _row_mean(ops.square(ops.subtract(student, teacher)))


def attention_loss(teacher: tf.Tensor, student: tf.Tensor, power: float = 2.0) -> tf.Tensor:
    """Mean squared difference of two spatial attention maps.

    A map is `A = normalize(mean over channels of |f|^power)`, normalised over all positions of an
    image; the value is the mean over positions of `(A_s - A_t)^2`. The larger feature map is pooled
    to the size of the smaller one first. The numbers of channels may differ. Differentiable in both
    arguments; where a map is 0 throughout its attention is 0, and so is its gradient.

    Args:
        teacher: Float tensor `[B, H, W, C]` of known H and W.
        student: Float tensor `[B, H', W', C']` of known H' and W'.
        power: Finite number >= 1.

    Returns:
        Tensor `[B]`, at least 0, float32 (float64 for float64 maps). A positive factor on either
        map changes nothing.

    Raises:
        ValueError: If the maps have no four dimensions, their size is not known or `power` is no
            finite number >= 1.
        TypeError: If the maps are integers.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, as the code of CRD computes it: there
    `f^power`, which keeps the signs of odd powers. The paper takes the norm of the difference.
    """
    check_power(power)
    teacher, student = of_one_size(teacher, student)
    difference = ops.subtract(_attention(student, power), _attention(teacher, power))
    return _row_mean(ops.square(difference))


def check_power(power: float) -> float:
    """Refuses powers of an attention map that are no finite number >= 1."""
    if not (is_number(power) and 1 <= power < math.inf):
        raise ValueError(f"`power` must be a finite number >= 1, got {power!r}.")
    return float(power)


def hierarchical_context_loss(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of two maps, at full size and pooled to 4x4, 2x2 and 1x1.

    `(mse(full) + mse(4x4) / 2 + mse(2x2) / 4 + mse(1x1) / 8) / (1 + 1/2 + 1/4 + 1/8)`. Only levels
    smaller than the map, in both axes, are used, and the weights halve from one that is used to the
    next. For embeddings it is `hint_loss`.

    Args:
        teacher: Float tensor `[B, H, W, C]` of known H and W, or `[B, D]`.
        student: Float tensor of the same shape.

    Returns:
        Tensor `[B]`, at least 0, float32 (float64 for float64 input).

    Raises:
        ValueError: If the shapes differ, or the size of the maps is not known.
        TypeError: If the features are integers.

    Source: Chen et al. 2021, arXiv:2104.09044, the hierarchical context loss of ReviewKD, and the
    authors' code, which looks at the height alone.
    """
    teacher, student = _both(teacher, student)
    difference = ops.subtract(student, teacher)
    total, weights = _row_mean(ops.square(difference)), 1.0
    if len(difference.shape) == 2:
        return total
    smallest = min(size or 0 for size in difference.shape[1:3])  # an unknown one is refused below
    levels = [level for level in _LEVELS if level < smallest or not smallest]
    for depth, level in enumerate(levels, start=1):
        pooled = adaptive_average_pooling(difference, level, level)
        total = total + _row_mean(ops.square(pooled)) / 2**depth
        weights += 1 / 2**depth
    return total / weights


def partial_l2_loss(teacher: tf.Tensor, student: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """Squared difference of pre-activations, where it matters behind a ReLU with a margin.

    An entry of a channel with margin m < 0 counts `(s - m)^2` if `s > m` and `t <= m`; `(s - t)^2`
    if `t > 0`, or if `m < t <= 0` and `s > t`; else 0. So a student may stay below a teacher that
    the ReLU silences.

    Args:
        teacher: Float tensor `[B, ..., C]`, in front of the ReLU.
        student: Float tensor of the same shape.
        margin: Float tensor `[C]`, below 0: in the paper the mean of the teacher's negative values
            of each channel, told by its batch normalisation.

    Returns:
        Tensor `[B]`, the **sum** over the entries, float32 (float64 for float64 input).

    Raises:
        ValueError: If the shapes differ, or there is not one margin a channel.
        TypeError: If an argument holds integers.

    Source: Heo et al. 2019, arXiv:1904.01866, equations 2 and 3, and the authors' code, which
    weights the stage i of n by `2^-(n - 1 - i)` and everything by 1e-3.
    """
    teacher, student = _both(teacher, student)
    margin = _of_channels(margin, "margin", teacher)
    target = ops.maximum(teacher, margin)
    # What does not count is named, because a comparison with NaN is False: NaN counts.
    silent = ops.logical_and(ops.less_equal(teacher, 0), ops.less_equal(student, target))
    difference = ops.where(silent, ops.zeros_like(student), student - target)
    squares = ops.square(difference)
    return ops.sum(squares, axis=tuple(range(1, len(squares.shape))))


def variational_information_loss(
    teacher: tf.Tensor, mean: tf.Tensor, log_scale: tf.Tensor
) -> tf.Tensor:
    """Negative log likelihood of the teacher's features under a Gaussian that the student predicts.

    `mean over the entries of ((mean - t)^2 / v + ln v) / 2` with the variance
    `v = softplus(log_scale) + 1e-5` of each channel, without the constant `ln(2 pi) / 2`. It can
    be negative.

    Args:
        teacher: Float tensor `[B, ..., C]`.
        mean: Float tensor of the same shape: what a trainable head of the student predicts.
        log_scale: Float tensor `[C]`, trained with it. The paper's code begins at
            `ln(exp(5 - 1e-5) - 1)` = 4.993229, where v = 5.

    Returns:
        Tensor `[B]` in nats an entry, float32 (float64 for float64 input).

    Raises:
        ValueError: If the shapes differ, or there is not one scale a channel.
        TypeError: If an argument holds integers.

    Source: Ahn et al. 2019, arXiv:1904.05835, equation 4, and the code of CRD, whose softplus
    overflows above 88.
    """
    teacher, mean = _both(teacher, mean, "mean")
    variance = ops.softplus(_of_channels(log_scale, "log_scale", teacher)) + _SMALLEST_VARIANCE
    errors = ops.square(ops.subtract(mean, teacher))
    return _row_mean((errors / variance + ops.log(variance)) / 2)


def _attention(maps: tf.Tensor, power: float) -> tf.Tensor:
    """`[B, H, W]`, of norm 1."""
    energies = ops.mean(ops.power(ops.abs(maps), power), axis=-1)
    return unit_vectors(energies, (1, 2), SMALLEST_NORM)


def _row_mean(values: tf.Tensor) -> tf.Tensor:
    return ops.mean(values, axis=tuple(range(1, len(values.shape))))


def _both(
    teacher: tf.Tensor, student: tf.Tensor, name: str = "student"
) -> tuple[tf.Tensor, tf.Tensor]:
    teacher = at_least_float32(teacher, "teacher")
    student = at_least_float32(student, name)
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            f"`teacher` and `{name}` must have one shape, got {tuple(teacher.shape)} and "
            f"{tuple(student.shape)}: give the student a connector (`with_connector`) to the shape "
            "of the teacher's features."
        )
    return teacher, student


def _of_channels(values: tf.Tensor, name: str, features: tf.Tensor) -> tf.Tensor:
    values = at_least_float32(values, name)
    if tuple(values.shape) != (features.shape[-1],):
        raise ValueError(
            f"`{name}` must hold one number a channel, shape ({features.shape[-1]},), got "
            f"{tuple(values.shape)}."
        )
    return ops.cast(values, features.dtype)
