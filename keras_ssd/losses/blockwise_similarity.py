"""Softmax over the similarities of rows with columns, a block of columns at a time.

The whole matrix is never there: the forward keeps a running logarithm of the sum of exponentials
(Milakov and Gimelshein 2018, arXiv:1805.02867), the gradient computes each block again. Memory is
that of one block instead of all columns, for 8 matrix products (ranks included) instead of 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from keras_ssd.losses.blocks import check_widths
from keras_ssd.losses.norms import unit_vectors
from keras_ssd.losses.precision import at_least_float32
from keras_ssd.losses.similarity import NO_COLUMN, SMALLEST_NORM

_State = tuple[tf.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Similarities:
    """Cosines of rows with columns that can be had in blocks.

    Attributes:
        rows: Unit vectors `[R, D]`.
        columns: Unit vectors `[N, block, D]`.
        kept: Booleans `[N, block]`: the columns that take part.
    """

    rows: tf.Tensor
    columns: tf.Tensor
    kept: tf.Tensor

    @classmethod
    def of(
        cls, rows: tf.Tensor, columns: tf.Tensor, valid: tf.Tensor | None, columns_per_block: int
    ) -> Similarities:
        """Cuts columns into blocks, the last one filled up with columns that take no part.

        Args:
            rows: Float tensor `[R, D]`.
            columns: Float tensor `[C, D]`.
            valid: `[C]`, above 0 for the columns that take part; None: all.
            columns_per_block: At least 1.
        """
        rows, columns = at_least_float32(rows, "rows"), at_least_float32(columns, "columns")
        check_widths(rows, columns)
        valid = tf.ones(tf.shape(columns)[:1]) if valid is None else valid
        block = min(columns_per_block, columns.shape[0] or columns_per_block)
        missing = -(tf.shape(columns)[0] if columns.shape[0] is None else columns.shape[0]) % block
        columns = tf.pad(unit_vectors(columns, smallest_norm=SMALLEST_NORM), [[0, missing], [0, 0]])
        return cls(
            unit_vectors(rows, smallest_norm=SMALLEST_NORM),
            tf.reshape(columns, [-1, block, rows.shape[1]]),  # gathered columns know no width
            tf.reshape(tf.pad(valid > 0, [[0, missing]]), [-1, block]),
        )

    def cosines(self, block: tf.Tensor) -> tf.Tensor:
        """The cosines `[R, block]` of one block; those of columns that take no part are -1e9."""
        products = tf.matmul(self.rows, tf.gather(self.columns, block), transpose_b=True)
        no_column = tf.constant(NO_COLUMN, products.dtype)
        return tf.where(tf.gather(self.kept, block), products, no_column)

    def is_own(self, block: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
        """`[R, block]`: whether a column of a block is the row's own, `own` integers `[R]`."""
        width = self.columns.shape[1]
        return own[:, None] == block * width + tf.range(width)

    def cast(self, dtype: tf.DType) -> Similarities:
        """The same in another precision."""
        rows, columns = tf.cast(self.rows, dtype), tf.cast(self.columns, dtype)
        return dataclasses.replace(self, rows=rows, columns=columns)

    def over_blocks(self, add: Callable[..., _State], *start: tf.Tensor) -> _State:
        """What `add(block, *state)` makes of a start, block after block."""
        blocks = self.columns.shape[0] or tf.shape(self.columns)[0]
        found: _State = tf.while_loop(
            lambda block, *_: block < blocks,
            lambda block, *state: (block + 1, *add(block, *state)),
            (tf.constant(0), *start),
            parallel_iterations=1,  # more would hold several blocks at a time
        )
        return found[1:]

    def per_row(self, value: float) -> tf.Tensor:
        """A number for each row, `[R]`."""
        return tf.fill(tf.shape(self.rows)[:1], tf.constant(value, self.rows.dtype))

    def constant(
        self, rows: tf.Tensor | None = None, columns: tf.Tensor | None = None
    ) -> Similarities:
        """The same, of these rows and columns if given, and no gradient goes through its loops."""
        rows = tf.stop_gradient(self.rows if rows is None else rows)
        columns = tf.stop_gradient(self.columns if columns is None else columns)
        return dataclasses.replace(self, rows=rows, columns=columns)


def blockwise_rank(similarities: Similarities, own: tf.Tensor) -> tf.Tensor:
    """`label_rank` of each row's own column: how many columns are strictly more similar.

    Args:
        similarities: Of R rows with C columns.
        own: The column of each row, integers `[R]`.

    Returns:
        int32 tensor `[R]`, without gradient.
    """

    def of_own(block: tf.Tensor, found: tf.Tensor) -> _State:
        is_own = similarities.is_own(block, own)
        return (found + _sum_where(is_own, similarities.cosines(block)),)

    # From the same products as all others, so that equal columns have equal cosines.
    (cosines,) = similarities.over_blocks(of_own, similarities.per_row(0.0))

    def larger(block: tf.Tensor, count: tf.Tensor) -> _State:
        more = similarities.cosines(block) > cosines[:, None]
        return (count + tf.reduce_sum(tf.cast(more, tf.int32), axis=1),)

    return similarities.over_blocks(larger, tf.zeros_like(cosines, tf.int32))[0]


def blockwise_divergence(
    teacher: Similarities, student: Similarities, temperature: float
) -> tf.Tensor:
    """`kl_divergence` of the softmaxes over the columns, times T squared.

    Args:
        teacher: Of R rows with C columns; a constant.
        student: Of the same rows and columns, with blocks of one size.
        temperature: Finite number > 0.

    Returns:
        Tensor `[R]` in nats, float32 (float64 for float64 input); differentiable once.
    """
    is_wide = tf.float64 in (teacher.rows.dtype, student.rows.dtype)
    wider = tf.float64 if is_wide else tf.float32
    teacher, student = teacher.constant().cast(wider), student.cast(wider)
    zero, low = student.per_row(0.0), student.per_row(student.rows.dtype.min)

    @tf.custom_gradient
    def values(rows: tf.Tensor, columns: tf.Tensor) -> tuple[tf.Tensor, Callable[..., _State]]:
        learning = student.constant(rows, columns)

        def add(block: tf.Tensor, *state: tf.Tensor) -> _State:
            highest, total, gap, students_highest, students_total = state
            target = teacher.cosines(block) / temperature
            logits = learning.cosines(block) / temperature
            highest, shrunk, powers = _powers(target, highest)
            gaps = tf.reduce_sum(powers * (target - logits), axis=1)
            total, gap = total * shrunk + tf.reduce_sum(powers, axis=1), gap * shrunk + gaps
            students_highest, shrunk, powers = _powers(logits, students_highest)
            students_total = students_total * shrunk + tf.reduce_sum(powers, axis=1)
            return highest, total, gap, students_highest, students_total

        highest, total, gap, *students = student.over_blocks(add, low, zero, zero, low, zero)
        targets_sum = highest + tf.math.log(total)  # the logarithms of both sums
        logits_sum = students[0] + tf.math.log(students[1])

        def gradient(upstream: tf.Tensor) -> _State:
            def of_cosines(block: tf.Tensor) -> tf.Tensor:
                target = tf.exp(teacher.cosines(block) / temperature - targets_sum[:, None])
                found = tf.exp(learning.cosines(block) / temperature - logits_sum[:, None])
                return temperature * upstream[:, None] * (found - target)

            return _gradients(learning, of_cosines)

        return temperature**2 * (gap / total - (targets_sum - logits_sum)), gradient

    found: tf.Tensor = values(student.rows, student.columns)
    return found


def blockwise_cross_entropy(
    similarities: Similarities, own: tf.Tensor, temperature: float
) -> tf.Tensor:
    """`cross_entropy` of each row's own column under the softmax over the columns.

    Args:
        similarities: Of R rows with C columns.
        own: The column of each row, integers `[R]`.
        temperature: Finite number > 0 that the cosines are divided by.

    Returns:
        Tensor `[R]` in nats, float32 (float64 for float64 input); differentiable once.
    """
    zero, low = similarities.per_row(0.0), similarities.per_row(similarities.rows.dtype.min)

    @tf.custom_gradient
    def values(rows: tf.Tensor, columns: tf.Tensor) -> tuple[tf.Tensor, Callable[..., _State]]:
        learning = similarities.constant(rows, columns)

        def add(
            block: tf.Tensor, highest: tf.Tensor, total: tf.Tensor, of_own: tf.Tensor
        ) -> _State:
            cosines = learning.cosines(block)
            highest, shrunk, powers = _powers(cosines / temperature, highest)
            total = total * shrunk + tf.reduce_sum(powers, axis=1)
            return highest, total, of_own + _sum_where(learning.is_own(block, own), cosines)

        highest, total, of_own = similarities.over_blocks(add, low, zero, zero)
        logits_sum = highest + tf.math.log(total)

        def gradient(upstream: tf.Tensor) -> _State:
            def of_cosines(block: tf.Tensor) -> tf.Tensor:
                found = tf.exp(learning.cosines(block) / temperature - logits_sum[:, None])
                target = tf.cast(learning.is_own(block, own), found.dtype)
                return upstream[:, None] / temperature * (found - target)

            return _gradients(learning, of_cosines)

        return logits_sum - of_own / temperature, gradient

    found: tf.Tensor = values(similarities.rows, similarities.columns)
    return found


def _powers(logits: tf.Tensor, highest: tf.Tensor) -> _State:
    """The highest logit so far, what sums shrink by for it, and exponentials relative to it."""
    higher = tf.maximum(highest, tf.reduce_max(logits, axis=1))
    return higher, tf.exp(highest - higher), tf.exp(logits - higher[:, None])


def _sum_where(chosen: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Sums `[R]` of the chosen of `[R, block]`, 0 where there is none."""
    return tf.reduce_sum(tf.where(chosen, values, tf.zeros_like(values)), axis=1)


def _gradients(similarities: Similarities, of_cosines: Callable[[tf.Tensor], tf.Tensor]) -> _State:
    """Gradients of rows and columns, from those of each block's cosines `[R, block]`."""

    def add(block: tf.Tensor, of_rows: tf.Tensor, of_columns: tf.Tensor) -> _State:
        cosines = of_cosines(block)
        kept = tf.gather(similarities.kept, block)
        cosines = tf.where(kept, cosines, tf.zeros_like(cosines))
        of_rows += tf.matmul(cosines, tf.gather(similarities.columns, block))
        of_block = tf.matmul(cosines, similarities.rows, transpose_a=True)
        return of_rows, tf.tensor_scatter_nd_update(of_columns, [[block]], of_block[None])

    zeros = tf.zeros_like(similarities.rows), tf.zeros_like(similarities.columns)
    return similarities.over_blocks(add, *zeros)
