"""Similarities between rows of projections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_ssd.losses.blocks import check_widths
from keras_ssd.losses.norms import products, unit_vectors
from keras_ssd.losses.precision import at_least_float32

if TYPE_CHECKING:
    import tensorflow as tf

SMALLEST_NORM = 1e-8  # the default of `torch.nn.CosineSimilarity`, which the authors used
NO_COLUMN = -1e9  # finite, so that 0 * log 0 stays 0; its softmax is exactly 0


def cosine_similarity(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Cosine of the angle between every row and every column.

    `<a, b> / (max(|a|, 1e-8) * max(|b|, 1e-8))`, as a matrix product of normalised vectors.
    A zero vector has similarity 0 to everything.

    Args:
        rows: Float tensor `[R, D]`.
        columns: Float tensor `[C, D]`.

    Returns:
        Tensor `[R, C]` in -1..1 (up to rounding), float32 (float64 for float64 input).

    Raises:
        ValueError: If the widths of the vectors differ.
        TypeError: If the vectors are integers.

    Source: Xu et al. 2020, arXiv:2006.07114, the matrix A of the self-supervision task. The
    authors' code divides a broadcast `[R, D, C]` product by the norms; same values. The gradient
    at a zero vector is 0 here, there it is of size 1e8.
    """
    rows, columns = at_least_float32(rows, "rows"), at_least_float32(columns, "columns")
    check_widths(rows, columns)
    return products(
        unit_vectors(rows, smallest_norm=SMALLEST_NORM),
        unit_vectors(columns, smallest_norm=SMALLEST_NORM),
    )
