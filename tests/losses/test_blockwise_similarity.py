import numpy as np
import pytest
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.losses.blockwise_similarity import (
    Similarities,
    blockwise_cross_entropy,
    blockwise_divergence,
    blockwise_rank,
)

TEMPERATURE = 0.3
ROWS, COLUMNS = 7, 11
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)]
)
MODES = pytest.mark.parametrize("mode", ["eager", "graph", "XLA"])
CASES = pytest.mark.parametrize(  # a block of 4 leaves a ragged one
    ("mode", "block"), [("eager", 4), ("graph", 1), ("graph", 4), ("graph", 100), ("XLA", 4)]
)


def vectors(dtype, *, seed=0):
    """Rows and columns of a teacher and a student, of different widths."""
    generator = np.random.default_rng(seed)
    sizes = [(ROWS, 3), (COLUMNS, 3), (ROWS, 5), (COLUMNS, 5)]
    return [tf.constant(generator.normal(size=size), dtype) for size in sizes]


def dense(teacher_rows, teacher_columns, rows, columns, valid, own):
    """Divergences, cross-entropies and ranks from whole matrices."""

    def matrix(rows, columns):
        cosines = losses.cosine_similarity(rows, columns)
        return cosines if valid is None else tf.where(valid > 0, cosines, -1e9)

    teacher, student = matrix(teacher_rows, teacher_columns), matrix(rows, columns)
    return (
        losses.kl_divergence(teacher, student, TEMPERATURE),
        losses.cross_entropy(own, student / TEMPERATURE),
        losses.label_rank(teacher, own),
    )


def in_blocks(teacher_rows, teacher_columns, rows, columns, valid, own, *, block):
    teacher = Similarities.of(teacher_rows, teacher_columns, valid, block)
    student = Similarities.of(rows, columns, valid, block)
    return (
        blockwise_divergence(teacher, student, TEMPERATURE),
        blockwise_cross_entropy(student, own, TEMPERATURE),
        blockwise_rank(teacher, own),
    )


def values_and_gradients(function, tensors, valid, own, mode, **options):
    """Three values a row, and the gradients of two weighted sums, as vectors."""
    weights = tf.constant(np.random.default_rng(9).uniform(0, 2, ROWS), tensors[0].dtype)

    def run(*tensors):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(tensors[2:])
            *values, ranks = function(*tensors, valid, own, **options)
            sums = [tf.reduce_sum(weights * each) for each in values]
        return [*values, *(tape.gradient(each, tensors[2:]) for each in sums)], ranks

    run = run if mode == "eager" else tf.function(run, jit_compile=mode == "XLA")
    found, ranks = run(*tensors)
    return [np.concatenate([np.ravel(x) for x in tf.nest.flatten(each)]) for each in found], ranks


def assert_same(found, expected, tolerance):
    for value, reference in zip(found[0], expected[0], strict=True):
        assert np.linalg.norm(value - reference) <= tolerance * np.linalg.norm(reference)
    np.testing.assert_array_equal(found[1], expected[1])


VALID = [1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0]
OWN = tf.constant([0, 2, 3, 4, 8, 9, 9])


@PRECISIONS
@CASES
def test_equals_the_whole_matrix(dtype, tolerance, mode, block):
    tensors, valid = vectors(dtype), tf.constant(VALID)
    expected = values_and_gradients(dense, tensors, valid, OWN, "eager")
    found = values_and_gradients(in_blocks, tensors, valid, OWN, mode, block=block)
    assert_same(found, expected, tolerance)
    assert found[0][0].dtype == dtype


def test_all_columns_without_weights():
    tensors = vectors("float64", seed=1)
    expected = values_and_gradients(dense, tensors, None, OWN, "eager")
    found = values_and_gradients(in_blocks, tensors, None, OWN, "graph", block=4)
    assert_same(found, expected, 1e-10)


def test_sizes_that_the_graph_does_not_know():
    tensors = vectors("float64", seed=2)
    signature = [tf.TensorSpec([None, tensor.shape[1]], tensor.dtype) for tensor in tensors]

    @tf.function(input_signature=signature)
    def unknown(*tensors):
        return in_blocks(*tensors, tf.constant(VALID), OWN, block=4)

    expected = dense(*tensors, tf.constant(VALID), OWN)
    for value, reference in zip(unknown(*tensors), expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-10)


@MODES
def test_equal_columns_push_nothing_down_wherever_their_blocks_are(mode):
    rows, columns, *_ = vectors("float32", seed=3)
    columns = tf.gather(columns, np.arange(COLUMNS) % 2)  # two columns, again and again

    def ranks(own):
        return blockwise_rank(Similarities.of(rows, columns, None, 4), own)

    ranks = ranks if mode == "eager" else tf.function(ranks, jit_compile=mode == "XLA")
    odd = losses.cosine_similarity(rows, columns[:2]).numpy()
    odd = odd[:, 1] > odd[:, 0]
    assert odd.any()
    assert not odd.all()
    for own in range(COLUMNS):
        expected = np.where(odd, 0, 6) if own % 2 else np.where(odd, 5, 0)
        np.testing.assert_array_equal(ranks(tf.fill([ROWS], own)), expected)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@MODES
def test_extreme_temperatures_are_finite(temperature, mode):
    def values(*tensors):
        teacher = Similarities.of(*tensors[:2], tf.constant([0] * 6 + [1] * 5), 3)
        student = Similarities.of(*tensors[2:], tf.constant([0] * 6 + [1] * 5), 3)
        with tf.GradientTape() as tape:
            tape.watch([student.rows, student.columns])
            value = blockwise_divergence(teacher, student, temperature)
            value += blockwise_cross_entropy(student, tf.fill([ROWS], 8), temperature)
        return value, tape.gradient(value, [student.rows, student.columns])

    run = values if mode == "eager" else tf.function(values, jit_compile=mode == "XLA")
    value, gradients = run(*vectors("float32"))
    assert all(np.isfinite(x).all() for x in (value, *gradients))
    assert not gradients[1].numpy().reshape(-1, 5)[:6].any()


def test_halves_are_computed_in_float32():
    tensors = [tf.cast(100 * x, tf.float16) for x in vectors("float32")]
    exact = [tf.cast(x, tf.float64) for x in tensors]
    found = in_blocks(*tensors, None, OWN, block=4)
    for value, reference in zip(found, dense(*exact, None, OWN), strict=True):
        assert value.dtype in (tf.float32, tf.int32)
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-6)


def test_no_whole_matrix_is_in_the_graph():
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in vectors("float32")]

    @tf.function(input_signature=signature)
    def gradients(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors[2:])
            *values, _ = in_blocks(*tensors, None, OWN, block=4)
        return tape.gradient(values, tensors[2:])

    graph = gradients.get_concrete_function().graph.as_graph_def(add_shapes=True)
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    shapes = [
        [d.size for d in shape.dim]
        for node in nodes
        for shape in node.attr["_output_shapes"].list.shape
    ]
    assert [ROWS, 4] in shapes
    assert not any(s[:1] == [ROWS] and s[1:] in ([COLUMNS], [12], [3, 4]) for s in shapes)


def test_widths_must_agree():
    with pytest.raises(ValueError, match="Rows have width 3 and columns width 5"):
        Similarities.of(tf.zeros([2, 3]), tf.zeros([4, 5]), None, 2)


def test_an_own_column_that_takes_no_part_gets_no_gradient():
    *_, rows, columns = vectors("float64")
    with tf.GradientTape() as tape:
        tape.watch(columns)
        similarities = Similarities.of(rows, columns, tf.constant(VALID), 4)
        value = blockwise_cross_entropy(similarities, tf.fill([ROWS], 5), TEMPERATURE)
    gradient = tape.gradient(value, columns).numpy()
    assert not gradient[5].any()
    assert gradient[4].any()


@pytest.mark.parametrize("wide", ["teacher", "student"])
def test_networks_of_two_precisions(wide):
    random = np.random.default_rng(0)
    arrays = {part: random.normal(size=(2, 6, 4)) for part in ("teacher", "student")}
    tensors = {
        part: tf.constant(values, "float64" if part == wide else "float32")
        for part, values in arrays.items()
    }
    dense = [losses.cosine_similarity(*tf.unstack(tensors[part])) for part in tensors]
    expected = losses.kl_divergence(*dense, 0.5)
    blocks = [Similarities.of(*tf.unstack(tensors[part]), None, 4) for part in tensors]
    found = blockwise_divergence(*blocks, 0.5)
    assert found.dtype == expected.dtype == tf.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)
