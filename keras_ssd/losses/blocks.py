"""Some rows of a batch beside all of it: what losses that compare images are computed on."""

from __future__ import annotations

import dataclasses

import tensorflow as tf
from keras import ops

from keras_ssd.losses.precision import at_least_float32


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of a network's features, and the rows of the whole batch as columns.

    Attributes:
        rows: Float tensor `[R, D]`; 0 where an image takes no part.
        columns: Float tensor `[C, D]`; 0 where an image takes no part.
        own: The column that each row is, integers `[R]`.
        kept: 1 for the columns that take part, 0 for the others, `[C]` in the dtype of the rows.
    """

    rows: tf.Tensor
    columns: tf.Tensor
    own: tf.Tensor
    kept: tf.Tensor

    @property
    def kept_rows(self) -> tf.Tensor:
        """`[R]`: 1 for the rows that take part, 0 for the others."""
        return tf.gather(self.kept, self.own)

    @property
    def pairs(self) -> tf.Tensor:
        """`[R, C]`: 1 where row and column are two images that both take part, else 0."""
        columns = tf.range(tf.shape(self.kept)[0])
        different = tf.cast(self.own[:, None] != columns, self.kept.dtype)
        return different * self.kept_rows[:, None] * self.kept

    def mean_over_columns(self, entries: tf.Tensor) -> tf.Tensor:
        """`[R]` from `[R, C]`, whose columns that take no part are 0."""
        images = ops.cast(ops.sum(self.kept), entries.dtype)
        return tf.math.divide_no_nan(ops.sum(entries, axis=1), images)

    def mean_over_rows(self, values: tf.Tensor) -> tf.Tensor:
        """The mean of `[R]` over the rows that take part, 0 without any."""
        kept = ops.cast(self.kept_rows, values.dtype)
        return tf.math.divide_no_nan(ops.sum(values * kept), ops.sum(kept))


def whole_blocks(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None
) -> tuple[Block, Block]:
    """All rows of a batch, of both networks.

    Args:
        teacher: Float tensor `[B, ...]`.
        student: Float tensor `[B, ...]`.
        weights: `[B]`, or None for all ones.

    Raises:
        ValueError: If the numbers of rows differ.
        TypeError: If the features are integers.
    """
    both = rows_of(teacher, weights, "teacher"), rows_of(student, weights, "student")
    check_same_rows(*both)
    own = tf.range(tf.shape(both[0])[0])
    blocks = [Block(rows, rows, own, kept_of(rows, weights)) for rows in both]
    return blocks[0], blocks[1]


def rows_of(features: tf.Tensor, weights: tf.Tensor | None, name: str) -> tf.Tensor:
    """Features `[B, ...]` as rows `[B, D]` in float32 or float64; 0 where the weight is 0.

    Raises:
        ValueError: If the width of the rows is not known, or there is not one weight a row.
        TypeError: If the features are integers.
    """
    features = at_least_float32(features, name)
    width = features.shape[1:].num_elements()
    if width is None:
        raise ValueError(
            f"`{name}` must have a known shape but for the batch, got {tuple(features.shape)}: "
            "give images of one size."
        )
    rows = tf.reshape(features, [-1, width])
    return only_kept(rows, kept_of(rows, weights))


def only_kept(rows: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Rows `[R, D]`, 0 where `kept` is: what is NaN there reaches no value and no gradient."""
    return tf.where(kept[:, None] > 0, rows, tf.zeros_like(rows))


def kept_of(rows: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """1 for the rows of a weight above 0, 0 for the others, in the dtype of the rows."""
    if weights is None:
        return tf.ones(tf.shape(rows)[:1], rows.dtype)
    weights = tf.convert_to_tensor(weights)
    if not weights.shape.is_compatible_with(rows.shape[:1]):
        raise ValueError(
            f"`weights` must be one number an image, shape {tuple(rows.shape[:1])}, got "
            f"{tuple(weights.shape)}."
        )
    if not weights.dtype.is_floating:  # Booleans are weights, too
        weights = tf.cast(weights, tf.float32)
    return tf.cast(weights > 0, rows.dtype)


def check_same_rows(teacher: tf.Tensor, student: tf.Tensor) -> None:
    """Refuses features of different images."""
    if not teacher.shape[:1].is_compatible_with(student.shape[:1]):
        raise ValueError(
            f"Teacher and student must have the same images, got {teacher.shape[0]} and "
            f"{student.shape[0]} rows: give both the same rows."
        )


def check_same_width(teacher: tf.Tensor, student: tf.Tensor, name: str) -> None:
    """Refuses features of different widths; `name` is what they are called in the error."""
    if not teacher.shape[-1:].is_compatible_with(student.shape[-1:]):
        raise ValueError(
            f"The teacher's {name} have width {teacher.shape[-1]} and the student's "
            f"{student.shape[-1]}: give both a head of one width."
        )


def check_widths(rows: tf.Tensor, columns: tf.Tensor) -> None:
    """Refuses rows and columns of different widths."""
    if not rows.shape[-1:].is_compatible_with(columns.shape[-1:]):
        raise ValueError(
            f"Rows have width {rows.shape[-1]} and columns width {columns.shape[-1]}: compare "
            "vectors of one width."
        )
