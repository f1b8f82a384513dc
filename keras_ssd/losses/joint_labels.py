"""Labels over classes x views, and what joint logits say of the class alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from keras import ops

from keras_ssd.losses.precision import at_least_float32

if TYPE_CHECKING:
    import tensorflow as tf

Rule = Literal["sum_logits", "marginal", "known_rotation"]


def joint_labels(labels: tf.Tensor, num_views: int) -> tf.Tensor:
    """The joint label of every view of every image: `num_views * class + view`.

    Args:
        labels: Integer tensor `[B]` of classes (-1: unlabeled), or float tensor `[B, C]` of one-hot
            or soft rows.
        num_views: V > 0, the views of an image.

    Returns:
        Integers `[B * V]` in 0..C*V-1, image-major (-1 for every view of an unlabeled image), or
        distributions `[B * V, C * V]`.

    Source: Yang et al. 2021, arXiv:2107.13715, section 3.1; the order is that of the authors' code.
    """
    if len(labels.shape) == 2:
        views = ops.eye(num_views, dtype=labels.dtype)
        joint = labels[:, None, :, None] * views[None, :, None, :]  # [B, V, C, V]
        return ops.reshape(joint, [-1, labels.shape[-1] * num_views])
    labels = ops.cast(labels, "int32")[:, None]
    views = ops.arange(num_views, dtype="int32")[None, :]
    return ops.reshape(ops.where(labels < 0, -1, num_views * labels + views), [-1])


def class_scores(joint_logits: tf.Tensor, num_views: int, rule: Rule = "sum_logits") -> tf.Tensor:
    """Scores of the classes from joint logits; the largest one is the predicted class.

    Args:
        joint_logits: Float tensor `[B * V, C * V]`, image-major, before any softmax.
        num_views: V > 0, the views of an image.
        rule: `"sum_logits"` adds the V logits of a class (the authors' program); `"marginal"` is
            the log of the sum of their probabilities; `"known_rotation"` takes the column of the
            view that the row is known to be.

    Returns:
        Tensor `[B * V, C]`, float32 (float64 for float64 logits). The softmax of `"marginal"` is
        p(class), that of `"known_rotation"` p(class | view).

    Raises:
        ValueError: If the rule is unknown or the width is no multiple of `num_views`.

    Source: the evaluation of https://github.com/winycg/HSAKD for `"sum_logits"`.
    """
    by_class = _by_class(joint_logits, num_views)
    if rule == "sum_logits":
        return ops.sum(by_class, axis=-1)
    if rule == "marginal":
        width = joint_logits.shape[-1]
        joint = ops.log_softmax(ops.reshape(by_class, [-1, width]), axis=-1)
        return ops.logsumexp(_by_class(joint, num_views), axis=-1)
    if rule == "known_rotation":
        by_image = ops.reshape(by_class, [-1, num_views, *by_class.shape[1:]])
        own = ops.eye(num_views, dtype="bool")[None, :, None, :]  # -inf times 0 would be NaN
        scores = ops.sum(ops.where(own, by_image, ops.zeros_like(by_image)), axis=-1)
        return ops.reshape(scores, [-1, by_class.shape[1]])
    raise ValueError(f"`rule` must be one of {list(get_args(Rule))}, got {rule!r}.")


def view_scores(joint_logits: tf.Tensor, num_views: int) -> tf.Tensor:
    """The log of the probability of each view, whatever the class: `[B * V, V]`.

    Args:
        joint_logits: Float tensor `[B * V, C * V]`, before any softmax.
        num_views: V > 0, the views of an image.
    """
    joint = ops.log_softmax(at_least_float32(joint_logits, "joint_logits"), axis=-1)
    return ops.logsumexp(_by_class(joint, num_views), axis=1)


def _by_class(joint_logits: tf.Tensor, num_views: int) -> tf.Tensor:
    """`[R, C * V]` as `[R, C, V]`."""
    joint_logits = at_least_float32(joint_logits, "joint_logits")
    classes, rest = divmod(joint_logits.shape[-1], num_views)
    if rest:
        raise ValueError(
            f"Joint logits must have a column for each class and each of {num_views} views, got "
            f"{joint_logits.shape[-1]} columns."
        )
    return ops.reshape(joint_logits, [-1, classes, num_views])
