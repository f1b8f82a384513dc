"""Graphs of the images of a batch: correlations within a network and between two of them."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_ssd.arguments import check_not_negative
from keras_ssd.losses.blocks import (
    check_same_rows,
    check_same_width,
    check_widths,
    kept_of,
    only_kept,
)
from keras_ssd.losses.norms import ROUNDING, products, safe_root
from keras_ssd.losses.precision import at_least_float32

_EXPONENT = {"float32": (tf.int32, 0xFF << 23), "float64": (tf.int64, 0x7FF << 52)}


def pearson_correlation(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Pearson correlation of every row with every column, over the entries of each.

    `<x - mean(x), y - mean(y)> / (|x - mean(x)| |y - mean(y)|)`: each vector is centred by its own
    mean, not by the batch's. A constant vector (centring leaves at most 1e-6 of its norm, 1e-12 in
    float64, or all entries are subnormal) has correlation 0 with everything, itself included, and a
    gradient of 0. With D = 2 all correlations are 1 or -1, and all gradients 0.

    Args:
        rows: Float tensor `[R, D]`, D at least 2.
        columns: Float tensor `[C, D]`.

    Returns:
        Tensor `[R, C]` in -1..1 (up to rounding), float32 (float64 for float64 input). On GPUs with
        TF32, `tf.config.experimental.enable_tensor_float_32_execution(False)` gives full precision;
        TensorFlow cannot ask for it in one product.

    Raises:
        ValueError: If a tensor is no matrix, its width is 1, or the widths differ.
        TypeError: If the vectors are integers.

    Source: Ma et al. 2022, arXiv:2211.13264, the edges of the embedding graph. The authors' code
    gives NaN for a constant vector (or, in float32, the rounding of its mean at unit length), and
    for entries about 1e-25 or 1e20 in float32; same values otherwise.
    """
    rows, columns = unit_rows(rows, "rows"), unit_rows(columns, "columns")
    check_widths(rows, columns)
    return products(rows, columns)


def node_loss(
    teacher_nodes: tf.Tensor, student_nodes: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Distance of the teacher-student correlations from the identity: each image finds itself.

    `||N - I||_F` with `N[i, j]` the Pearson correlation of the teacher's node i and the student's
    node j: the root of a sum over B^2 entries, no mean. It grows about linearly with B, and a
    student equal to its teacher reaches 0 only where the teacher's nodes are uncorrelated; with
    B > D - 1 it stays above `sqrt(B - D + 1)`. Differentiable in both arguments.

    Args:
        teacher_nodes: Float tensor `[B, D]`, one embedding an image, D at least 2.
        student_nodes: Float tensor `[B, D]`.
        weights: `[B]`, or None for all ones. The value is that of the images of weight above 0;
            the rows of the others may be NaN.

    Returns:
        A scalar, float32 (float64 for float64 nodes); 0 without images. A constant node costs 1.

    Raises:
        ValueError: If the shapes differ, or are not `[B, D]` with D at least 2.
        TypeError: If the nodes are integers.

    Source: Ma et al. 2022, arXiv:2211.13264, equation 7, and the authors' code for the norm, which
    the paper writes with subscript 2: all entries, not the spectral norm. `pearson_correlation`
    tells what differs.
    """
    teacher, student = _both(teacher_nodes, student_nodes, weights)
    return safe_root(node_squares(teacher, student, weights=weights))


def edge_loss(
    teacher_nodes: tf.Tensor, student_nodes: tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Distance of the correlations within the teacher's batch from those within the student's.

    `||E_t - E_s||_F` with `E[i, j]` the Pearson correlation of the nodes i and j of one network:
    the root of a sum over B^2 entries (each pair counts twice), no mean. A batch of one image
    gives 0. Differentiable in both arguments; the gradient is 0 where the two are equal.

    Args:
        teacher_nodes: Float tensor `[B, D]`, one embedding an image, D at least 2.
        student_nodes: Float tensor `[B, D]`.
        weights: As in `node_loss`.

    Returns:
        A scalar, float32 (float64 for float64 nodes), at most `2 sqrt(B (B - 1))` without constant
        nodes; 0 without images.

    Raises:
        ValueError: If the shapes differ, or are not `[B, D]` with D at least 2.
        TypeError: If the nodes are integers.

    Source: Ma et al. 2022, arXiv:2211.13264, equation 7. At equality the gradient of a root is
    NaN in TensorFlow; here, as in the authors' framework, it is 0.
    """
    teacher, student = _both(teacher_nodes, student_nodes, weights)
    return safe_root(edge_squares(teacher, student))


def embedding_graph_loss(
    teacher_nodes: tf.Tensor,
    student_nodes: tf.Tensor,
    node_weight: float = 0.8,
    edge_weight: float = 0.24,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Embedding graph alignment: `node_weight * node_loss + edge_weight * edge_loss`.

    Not a mean: for a given pair of weights a larger batch weighs more against a cross-entropy.

    Args:
        teacher_nodes: Float tensor `[B, D]`, one embedding an image, D at least 2.
        student_nodes: Float tensor `[B, D]`.
        node_weight: Finite number >= 0; 0 leaves the term and its matrix out.
        edge_weight: Finite number >= 0; 0 leaves the term and its matrices out.
        weights: As in `node_loss`.

    Returns:
        A scalar, float32 (float64 for float64 nodes); 0 without images.

    Raises:
        ValueError: If the shapes differ or are not `[B, D]` with D at least 2, or a weight is no
            finite number >= 0.
        TypeError: If the nodes are integers.

    Source: Ma et al. 2022, arXiv:2211.13264, equations 7 and 8, and the authors' training program
    for 0.8 and 0.24 (lambda_EGA = 0.8, lambda = 0.3; their loss class has 1 and 0.3).
    """
    node_weight = check_not_negative("node_weight", node_weight)
    edge_weight = check_not_negative("edge_weight", edge_weight)
    teacher, student = _both(teacher_nodes, student_nodes, weights)
    total = ops.zeros([], keras.backend.result_type(teacher.dtype, student.dtype))
    if node_weight:
        total += node_weight * safe_root(node_squares(teacher, student, weights=weights))
    if edge_weight:
        total += edge_weight * safe_root(edge_squares(teacher, student))
    return total


def unit_rows(nodes: tf.Tensor, name: str, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Rows centred and scaled to unit length; 0 where a row is constant or its weight is 0.

    Args:
        nodes: Float tensor `[R, D]`; a row of weight 0 may be NaN.
        name: What to call `nodes` in an error.
        weights: `[R]`, or None for all ones.

    Returns:
        Tensor `[R, D]`, float32 or float64.
    """
    nodes = at_least_float32(nodes, name)
    check_nodes(nodes.shape, f"`{name}`")
    dtype = keras.backend.standardize_dtype(nodes.dtype)
    nodes = only_kept(nodes, kept_of(nodes, weights))
    # Squares of entries about 1e-25 or 1e20 do not fit into float32, and sums of entries of 1e37
    # do not either. A power of two rounds nothing away that is beside a large mean.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(nodes), axis=-1, keepdims=True))
    scaled = nodes / tf.maximum(_power_of_two(largest), np.finfo(dtype).tiny)
    centred = _centred(_centred(scaled))  # the mean of 4096 equal entries is off by more than 1e-6
    squares = ops.sum(ops.square(centred), axis=-1, keepdims=True)
    of_all = ops.sum(ops.square(scaled), axis=-1, keepdims=True)
    constant = (squares <= ROUNDING[dtype] ** 2 * of_all) | (largest < np.finfo(dtype).tiny)
    constant &= squares == squares  # XLA's maximum of NaN alone is -inf
    length = ops.sqrt(ops.where(constant, ops.ones_like(squares), squares))
    return ops.where(constant, ops.zeros_like(nodes), centred / length)


def node_squares(
    teacher: tf.Tensor,
    student_columns: tf.Tensor,
    start: int | tf.Tensor = 0,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Sum of the squares of some rows of `N - I`.

    Args:
        teacher: Unit rows `[R, D]`.
        student_columns: Unit rows of all images `[C, D]`.
        start: The column of the first row's own image.
        weights: `[R]`, or None for all ones; a row of weight 0 has no target.
    """
    correlations = products(teacher, student_columns)
    own = start + tf.range(ops.shape(teacher)[0])
    targets = tf.one_hot(own, ops.shape(student_columns)[0], dtype=correlations.dtype)
    if weights is not None:
        targets *= kept_of(correlations, weights)[:, None]
    return ops.sum(ops.square(correlations - targets))


def edge_squares(
    teacher: tf.Tensor,
    student: tf.Tensor,
    teacher_columns: tf.Tensor | None = None,
    student_columns: tf.Tensor | None = None,
) -> tf.Tensor:
    """Sum of the squares of some rows of `E_t - E_s`; the columns are the rows where not given."""
    teacher_edges = products(teacher, teacher if teacher_columns is None else teacher_columns)
    student_edges = products(student, student if student_columns is None else student_columns)
    return ops.sum(ops.square(ops.subtract(teacher_edges, student_edges)))


def check_nodes(shape: tf.TensorShape | tuple[int | None, ...], owner: str) -> None:
    """Refuses what is not one vector of at least two entries an image."""
    shape = tf.TensorShape(shape)
    if shape.rank != 2:
        raise ValueError(
            f"Nodes must be [images, width], one vector an image, but {owner} has shape {shape}: "
            "pool tokens with GlobalAveragePooling1D (or take the class token) and maps with "
            "GlobalAveragePooling2D."
        )
    if shape[-1] is not None and shape[-1] < 2:
        raise ValueError(
            f"Nodes must have a width of at least 2 to be correlated, but {owner} has width "
            f"{shape[-1]}: give both networks a wider head of one width."
        )


def _both(
    teacher_nodes: tf.Tensor, student_nodes: tf.Tensor, weights: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The unit rows of both networks."""
    teacher = unit_rows(teacher_nodes, "teacher_nodes", weights)
    student = unit_rows(student_nodes, "student_nodes", weights)
    check_same_width(teacher, student, "nodes")
    check_same_rows(teacher, student)
    return teacher, student


def _power_of_two(values: tf.Tensor) -> tf.Tensor:
    """The largest power of two up to each value, which is the bits of its exponent."""
    integers, exponent = _EXPONENT[values.dtype.name]
    bits = tf.bitwise.bitwise_and(tf.bitcast(values, integers), tf.constant(exponent, integers))
    return tf.bitcast(bits, values.dtype)


def _centred(rows: tf.Tensor) -> tf.Tensor:
    return rows - ops.mean(rows, axis=-1, keepdims=True)
