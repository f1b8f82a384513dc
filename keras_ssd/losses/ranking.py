"""Which rows a teacher is right enough about to teach them: error level ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from keras_ssd.losses.precision import at_least_float32

if TYPE_CHECKING:
    import tensorflow as tf


def label_rank(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """How many columns have a strictly larger score than the label's: 0 where the teacher is right.

    Args:
        scores: Float tensor `[R, C]`: logits or similarities.
        labels: Integer tensor `[R]` of columns. What lies outside 0..C-1 (an unlabeled row is -1)
            is moved to the nearest column: give such rows `valid=0` in `keep_mask`.

    Returns:
        int32 tensor `[R]` in 0..C-1, without gradient.

    Raises:
        TypeError: If `scores` are integers or `labels` are not.
        ValueError: If `labels` is not one column a row.

    Source: Xu et al. 2020, arXiv:2006.07114, "error level ranking". The authors' code sorts each
    row and looks the label up, which makes the rank of equal scores arbitrary; here equal scores
    never push the label down.
    """
    scores = at_least_float32(scores, "scores")
    labels = _integers(labels, "labels")
    if not labels.shape.is_compatible_with(scores.shape[:-1]):
        raise ValueError(
            f"`labels` must be one column a row, got shape {tuple(labels.shape)} for scores of "
            f"shape {tuple(scores.shape)}: turn one-hot labels into integers first."
        )
    labels = ops.clip(ops.cast(labels, "int32"), 0, ops.shape(scores)[-1] - 1)
    of_label = ops.take_along_axis(scores, ops.expand_dims(labels, -1), axis=-1)
    larger = scores > of_label
    return ops.sum(ops.cast(larger, "int32"), axis=-1)


def keep_mask(ranks: tf.Tensor, ratio: float, valid: tf.Tensor | None = None) -> tf.Tensor:
    """Marks the rows to learn from: all of rank 0 and the best-ranked `ratio` of the others.

    Of W rows with a rank above 0, `floor(ratio * W)` are kept (the product in float64): those of
    the smallest rank, and among equal ranks those that come first. With several replicas `ranks`
    are those of the global batch.

    Args:
        ranks: Integer tensor `[N]`, >= 0, from `label_rank`.
        ratio: Number in 0..1. 1 keeps every valid row, 0 only those of rank 0.
        valid: Tensor `[N]` of zeros and ones; rows of 0 are neither kept nor counted.

    Returns:
        float32 tensor `[N]` of zeros and ones, without gradient; all zeros if nothing is kept.

    Raises:
        ValueError: If `ratio` lies outside 0..1.
        TypeError: If `ranks` are no integers.

    Source: Xu et al. 2020, arXiv:2006.07114, "selective transfer". The authors' code leaves the
    choice among equal ranks to an unstable sort.
    """
    if not 0 <= ratio <= 1:  # also refuses NaN
        raise ValueError(f"`ratio` must lie in 0..1, got {ratio}.")
    ranks = ops.cast(_integers(ranks, "ranks"), "int64")
    size = ops.shape(ranks)[0]
    valid = ops.ones_like(ranks, "bool") if valid is None else ops.cast(valid, "bool")
    correct = ops.logical_and(valid, ranks <= 0)
    wrong = ops.logical_and(valid, ranks > 0)

    keys = ranks * ops.cast(size, "int64") + ops.arange(size, dtype="int64")  # all different
    last = ops.full_like(keys, np.iinfo(np.int64).max)
    in_order = ops.sort(ops.where(wrong, keys, last))
    kept = _share(ops.sum(ops.cast(wrong, "int32")), ratio, ranks.shape[0])
    # With one key in front that no row has, entry k is the key of the k-th row kept.
    last_kept = ops.take(ops.concatenate([ops.full((1,), -1, "int64"), in_order], axis=0), kept)
    kept_wrong = ops.logical_and(wrong, keys <= last_kept)
    return ops.cast(ops.logical_or(correct, kept_wrong), "float32")


def _share(count: tf.Tensor, ratio: float, largest: int | None) -> tf.Tensor:
    """`floor(ratio * count)` of the float64 product; float32 has other values for some counts."""
    if largest is None:
        return ops.cast(ops.floor(ops.cast(count, "float64") * ratio), "int32")
    # TPUs have no float64: a table made here serves where the number of rows is known.
    table = np.floor(np.arange(largest + 1, dtype="float64") * ratio).astype("int32")
    return ops.take(table, count)


def _integers(values: tf.Tensor, name: str) -> tf.Tensor:
    values = ops.convert_to_tensor(values)
    dtype = keras.backend.standardize_dtype(values.dtype)
    if not keras.backend.is_int_dtype(dtype):
        raise TypeError(f"`{name}` must be integers, got {dtype}: cast them first.")
    return values
