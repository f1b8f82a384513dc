"""Losses that compare how the images of a batch relate to each other.

Each is a scalar function of a whole batch. All but `correlation_congruence_loss` are means over
images of a value that needs the image and all others: they have a form that takes `Block`s, some
rows beside all columns, so that several replicas can share the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from keras_ssd.losses.blocks import (
    Block,
    check_same_rows,
    check_same_width,
    kept_of,
    rows_of,
    whole_blocks,
)
from keras_ssd.losses.norms import SMALLEST_NORM, products, safe_root, unit_vectors

_SMALLEST_SQUARE = 1e-12  # of a distance
_AFFINITY_EPSILON = 1e-7
_CHUNK = 16  # images whose angles are held at a time


def similarity_preserving_loss(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Mean squared difference of two matrices of similarities between images.

    `sum over i, j of (G_t - G_s)^2 / B^2`; a row of G are the inner products of an image's
    flattened features with those of all images, divided by the row's norm (0 where all are 0).

    Args:
        teacher: Float tensor `[B, ...]`, feature maps or embeddings of any shape.
        student: Float tensor `[B, ...]`; it may have another shape. A positive factor on all of it
            changes nothing.
        weights: `[B]`; an image of weight 0 takes no part, as if it were not there, and may be NaN.
            All weights above 0 are one. None: all take part.

    Returns:
        Scalar, at least 0, float32 (float64 for float64 input); 0 where no image takes part.

    Raises:
        TypeError: If the features are integers.

    Source: Tung and Mori 2019, arXiv:1907.09682, equations 1 to 4, and the code of CRD.
    """
    teacher, student = whole_blocks(teacher, student, weights)
    return student.mean_over_rows(similarity_preserving_rows(teacher, student))


def similarity_preserving_rows(teacher: Block, student: Block) -> tf.Tensor:
    """The value of each row of `similarity_preserving_loss`, `[R]`."""
    difference = ops.subtract(_similarities(student), _similarities(teacher))
    return student.mean_over_columns(ops.square(difference))


def probabilistic_transfer_loss(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """How far the student's affinities between images are from the teacher's, as distributions.

    `mean over i, j of K_t ln((K_t + 1e-7) / (K_s + 1e-7))`; a row of K are the affinities
    `(cos + 1) / 2` of an image with all images, itself included, divided by their sum. A zero
    vector has cosine 0 with all, and no gradient.

    Args:
        teacher: Float tensor `[B, ...]`, flattened.
        student: Float tensor `[B, ...]`, flattened; its width may differ. A positive factor on all
            of it changes nothing but the norm's epsilon.
        weights: `[B]`; an image of weight 0 takes no part, as if it were not there, and may be NaN.
            All weights above 0 are one. None: all take part.

    Returns:
        Scalar in nats, float32 (float64 for float64 input); 0 where no image takes part. It is a
        mean over B^2 entries, hence small.

    Raises:
        TypeError: If the features are integers.

    Source: Passalis and Tefas 2018, arXiv:1803.10837, equation 7 with the cosine kernel, and the
    authors' code, whose gradient at a zero vector is NaN.
    """
    teacher, student = whole_blocks(teacher, student, weights)
    return student.mean_over_rows(probabilistic_transfer_rows(teacher, student))


def probabilistic_transfer_rows(teacher: Block, student: Block) -> tf.Tensor:
    """The value of each row of `probabilistic_transfer_loss`, `[R]`."""
    target, answer = _affinities(teacher), _affinities(student)
    ratios = ops.log(ops.divide(target + _AFFINITY_EPSILON, answer + _AFFINITY_EPSILON))
    return student.mean_over_columns(ops.multiply(target, ratios))


def relational_distance_loss(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Difference of the distances between images, each network's in units of its mean distance.

    `mean over i, j of smooth_l1(d_s / mean d_s - d_t / mean d_t)` with Euclidean distances of at
    least 1e-6, 0 on the diagonal; the means are over pairs of two images, and the gradient flows
    through them. `smooth_l1(x)` is `x^2 / 2` where |x| < 1, else `|x| - 1/2`.

    Args:
        teacher: Float tensor `[B, ...]`, flattened.
        student: Float tensor `[B, ...]`, flattened; its width may differ. A positive factor on all
            of it changes nothing.
        weights: `[B]`; an image of weight 0 takes no part, as if it were not there, and may be NaN.
            All weights above 0 are one. None: all take part.

    Returns:
        Scalar, at least 0, float32 (float64 for float64 input); 0 where fewer than two images take
        part.

    Raises:
        TypeError: If the features are integers.

    Source: Park et al. 2019, arXiv:1904.05068, section 3.2.1, and the authors' code. One public
    toolkit counts the diagonal in the mean: B / (B - 1) times the distances.
    """
    teacher, student = whole_blocks(teacher, student, weights)
    return student.mean_over_rows(relational_distance_rows(teacher, student))


def relational_distance_rows(
    teacher: Block, student: Block, total: Callable[[tf.Tensor], tf.Tensor] = ops.sum
) -> tf.Tensor:
    """The value of each row of `relational_distance_loss`, `[R]`.

    Args:
        teacher: The teacher's rows.
        student: The student's rows.
        total: From `[R, C]` to the sum over the rows of the whole batch.
    """
    difference = ops.subtract(_in_means(student, total), _in_means(teacher, total))
    return student.mean_over_columns(_smooth_l1(difference))


def _in_means(block: Block, total: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Distances `[R, C]` over the mean distance of two images that take part; else 0."""
    squares = _squares(block.rows)[:, None] + _squares(block.columns)
    squares = squares - 2 * products(block.rows, block.columns)
    distances = ops.sqrt(ops.maximum(squares, _SMALLEST_SQUARE)) * block.pairs
    images = ops.sum(block.kept)
    mean = tf.math.divide_no_nan(total(distances), images * (images - 1))
    return tf.math.divide_no_nan(distances, mean)


def relational_angle_loss(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Difference of the angles that any two images make as seen from a third.

    `mean over i, j, k of smooth_l1(cos_s - cos_t)` with the cosine of the angle between `x_j - x_i`
    and `x_k - x_i`, 0 where one of them is 0. `smooth_l1(x)` is `x^2 / 2` where |x| < 1, else
    `|x| - 1/2`. 16 images i are held at a time, and computed again for the gradient.

    Args:
        teacher: Float tensor `[B, ...]`, flattened.
        student: Float tensor `[B, ...]`, flattened; its width may differ. A positive factor on all
            of it changes nothing.
        weights: `[B]`; an image of weight 0 takes no part, as if it were not there, and may be NaN.
            All weights above 0 are one. None: all take part.

    Returns:
        Scalar, at least 0, float32 (float64 for float64 input); 0 where no image takes part.

    Raises:
        TypeError: If the features are integers.

    Source: Park et al. 2019, arXiv:1904.05068, section 3.2.2, and the authors' code.
    """
    teacher, student = whole_blocks(teacher, student, weights)
    return student.mean_over_rows(relational_angle_rows(teacher, student))


def relational_angle_rows(teacher: Block, student: Block) -> tf.Tensor:
    """The value of each row of `relational_angle_loss`, `[R]`."""
    fixed = (teacher.columns, student.columns, student.kept)
    dtype = keras.backend.result_type(*(block.rows.dtype.name for block in (teacher, student)))
    of_chunk = tf.recompute_grad(_angle_differences)
    sums = tf.map_fn(
        lambda rows: of_chunk(*rows, *fixed),
        (_chunks(teacher.rows), _chunks(student.rows)),
        parallel_iterations=1,
        fn_output_signature=tf.TensorSpec([_CHUNK], dtype),
    )
    sums = tf.reshape(sums, [-1])[: tf.shape(student.rows)[0]]
    return tf.math.divide_no_nan(sums, ops.cast(ops.sum(student.kept), dtype) ** 2)


def correlation_congruence_loss(
    teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Products of the errors of neighbours in the batch.

    `mean over i < B - 1 of <delta_i, delta_(i+1)>` with `delta = |s - t|`. It depends on the order
    of the images. Differentiable in both arguments: the paper's code trains a projection of the
    teacher, too.

    Args:
        teacher: Float tensor `[B, ...]`, flattened.
        student: Float tensor `[B, ...]`, as wide as the teacher's.
        weights: `[B]`; an image of weight 0 takes no part, as if it were not there, and may be NaN:
            its two neighbours become neighbours. All weights above 0 are one. None: all take part.

    Returns:
        Scalar, at least 0, float32 (float64 for float64 input); 0 where fewer than two images take
        part.

    Raises:
        ValueError: If the widths differ.
        TypeError: If the features are integers.

    Source: Peng et al. 2019, arXiv:1904.01802, in the form of the code of CRD; the paper's has a
    Gaussian kernel and compares all pairs.
    """
    teacher = rows_of(teacher, weights, "teacher")
    student = rows_of(student, weights, "student")
    check_same_rows(teacher, student)
    check_same_width(teacher, student, "features")
    errors = ops.abs(ops.subtract(student, teacher))
    kept = kept_of(errors, weights)
    # Those that take part in front, in their order: static shapes, unlike a mask.
    places = tf.range(tf.shape(kept)[0]) + tf.where(kept > 0, 0, tf.shape(kept)[0])
    errors = tf.gather(errors, tf.argsort(places))
    neighbours = ops.sum(errors[:-1] * errors[1:], axis=1)  # errors that take no part are 0
    return tf.math.divide_no_nan(ops.sum(neighbours), ops.sum(kept) - 1)


def _similarities(block: Block) -> tf.Tensor:
    """`[R, C]`, rows of norm 1; 0 for columns that take no part, whose features are 0."""
    return unit_vectors(products(block.rows, block.columns), smallest_norm=SMALLEST_NORM)


def _affinities(block: Block) -> tf.Tensor:
    """`[R, C]`, rows of sum 1; 0 for columns that take no part."""
    cosines = products(_directions(block.rows), _directions(block.columns))
    affinities = ops.maximum((cosines + 1) / 2, 0) * block.kept  # a cosine may round to below -1
    return tf.math.divide_no_nan(affinities, ops.sum(affinities, axis=1, keepdims=True))


def _directions(vectors: tf.Tensor) -> tf.Tensor:
    """Vectors of norm |x| / (|x| + 1e-7); zero vectors stay, without a gradient."""
    squares = _squares(vectors)[:, None]
    quotients = vectors / (safe_root(squares) + _AFFINITY_EPSILON)
    return ops.where(squares == 0, ops.zeros_like(vectors), quotients)


def _angle_differences(
    teacher_rows: tf.Tensor,
    student_rows: tf.Tensor,
    teacher_columns: tf.Tensor,
    student_columns: tf.Tensor,
    kept: tf.Tensor,
) -> tf.Tensor:
    """Sums over all pairs of columns `[chunk]`, as seen from a chunk of rows."""
    target = _angles(teacher_rows, teacher_columns, kept)
    answer = _angles(student_rows, student_columns, kept)
    return ops.sum(_smooth_l1(ops.subtract(answer, target)), axis=(1, 2))


def _angles(rows: tf.Tensor, columns: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Cosines `[rows, columns, columns]`, 0 for columns that take no part."""
    directions = unit_vectors(columns - rows[:, None], smallest_norm=SMALLEST_NORM)
    directions = directions * ops.cast(kept, rows.dtype)[:, None]
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


def _chunks(rows: tf.Tensor) -> tf.Tensor:
    """Rows `[n, 16, D]`, the last ones filled up with zeros."""
    rows = tf.pad(rows, [[0, -tf.shape(rows)[0] % _CHUNK], [0, 0]])
    return tf.reshape(rows, [-1, _CHUNK, rows.shape[-1]])


def _squares(vectors: tf.Tensor) -> tf.Tensor:
    return ops.sum(ops.square(vectors), axis=-1)


def _smooth_l1(values: tf.Tensor) -> tf.Tensor:
    sizes = ops.abs(values)
    return ops.where(sizes < 1, ops.square(values) / 2, sizes - 0.5)
