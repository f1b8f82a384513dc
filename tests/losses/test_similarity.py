import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses import cosine_similarity


def test_closed_form():
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0], [0.0, 0.0]])
    columns = np.array([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    half = math.sqrt(0.5)
    expected = [[1, 0, 0], [half, half, 0], [0, -1, 0], [0, 0, 0]]
    np.testing.assert_allclose(cosine_similarity(rows, columns), expected, atol=1e-15)


def reference(rows, columns):
    values = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            product = sum(a * b for a, b in zip(row, column, strict=True))
            row_norm = max(math.sqrt(sum(a * a for a in row)), 1e-8)
            column_norm = max(math.sqrt(sum(b * b for b in column)), 1e-8)
            values[i, j] = product / (row_norm * column_norm)
    return values


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)])
def test_reference(dtype, tolerance):
    generator = np.random.default_rng(0)
    rows, columns = generator.normal(size=(9, 5)), generator.normal(size=(4, 5))
    rows[3] *= 1e-12  # a norm below the smallest one
    value = cosine_similarity(rows.astype(dtype), columns.astype(dtype))
    assert value.dtype == dtype
    np.testing.assert_allclose(value, reference(rows, columns), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", golden_cases("sskd", "cosine_similarity_matrix"))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
def test_golden(case, dtype, tolerance):
    rows, columns = (np.array(case["inputs"][name], dtype) for name in ("rows", "cols"))
    value = cosine_similarity(rows, columns)
    expected = case["expected"]["similarity"]
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance / 10)


def test_gradients_are_those_of_finite_differences():
    generator = np.random.default_rng(1)
    rows, columns, weights = (
        tf.constant(generator.normal(size=s)) for s in [(3, 4), (2, 4), (3, 2)]
    )

    def value(rows, columns):
        return tf.reduce_sum(weights * cosine_similarity(rows, columns))

    theoretical, numerical = tf.test.compute_gradient(value, [rows, columns], delta=1e-5)
    for exact, approximate in zip(theoretical, numerical, strict=True):
        np.testing.assert_allclose(exact, approximate, rtol=1e-7, atol=1e-9)


def test_invariances():
    generator = np.random.default_rng(2)
    rows, columns = generator.normal(size=(6, 3)), generator.normal(size=(4, 3))
    value = cosine_similarity(rows, columns).numpy()
    scales = generator.uniform(0.01, 100, (6, 1))
    np.testing.assert_allclose(cosine_similarity(rows * scales, columns), value, rtol=1e-12)
    np.testing.assert_allclose(cosine_similarity(columns, rows), value.T, rtol=1e-12)
    np.testing.assert_allclose(cosine_similarity(rows[::-1], columns), value[::-1], rtol=1e-12)
    np.testing.assert_allclose(cosine_similarity(rows, columns[::-1]), value[:, ::-1], rtol=1e-12)
    padded = [np.pad(vectors, [(0, 0), (0, 5)]) for vectors in (rows, columns)]
    np.testing.assert_allclose(cosine_similarity(*padded), value, rtol=1e-12)


def test_gradient_is_orthogonal_to_its_vector():
    rows, columns = (tf.constant(np.random.default_rng(s).normal(size=(5, 3))) for s in (3, 4))
    with tf.GradientTape() as tape:
        tape.watch(rows)
        value = cosine_similarity(rows, columns) ** 2
    gradient = tape.gradient(value, rows)
    np.testing.assert_allclose(tf.reduce_sum(gradient * rows, axis=1), 0, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-15, 1e-4, 1e15])
def test_extremes_stay_between_minus_one_and_one(scale):
    vectors = tf.random.stateless_normal([8, 16], seed=[0, 1]) * scale
    value = cosine_similarity(vectors, vectors).numpy()
    assert np.isfinite(value).all()
    assert np.abs(value).max() <= 1 + 1e-6


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nan_stays_nan(jit_compile):
    rows = tf.constant([[1.0, 2.0], [float("nan"), 1.0]])
    compiled = tf.function(cosine_similarity, jit_compile=jit_compile)
    expected = [[False, True], [True, True]]
    np.testing.assert_array_equal(np.isnan(compiled(rows, rows)), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_are_finite_and_a_zero_vector_has_none(jit_compile):
    rows = tf.constant([[0.0, 0.0], [1.0, 2.0], [1e-30, 0.0]])
    columns = tf.constant([[0.0, 0.0], [3.0, 1.0]])

    @tf.function(jit_compile=jit_compile)
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch([rows, columns])
            value = cosine_similarity(rows, columns)
        return tape.gradient(value, [rows, columns])

    of_rows, of_columns = gradients()
    assert np.isfinite(of_rows).all()
    assert np.isfinite(of_columns).all()
    assert not of_rows.numpy()[0].any()
    assert not of_columns.numpy()[0].any()
    assert of_rows.numpy()[1].any()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_halves_are_computed_in_float32(dtype, jit_compile):
    # The sum of squares, 2.56e6, is beyond float16.
    rows = tf.cast(100 * tf.random.stateless_normal([6, 256], seed=[0, 2]), dtype)
    value = tf.function(cosine_similarity, jit_compile=jit_compile)(rows, rows)
    assert value.dtype == tf.float32
    exact = cosine_similarity(tf.cast(rows, tf.float64), tf.cast(rows, tf.float64))
    np.testing.assert_allclose(value, exact, atol=1e-6)


def test_widths_must_agree():
    with pytest.raises(ValueError, match="Rows have width 8 and columns width 16"):
        cosine_similarity(np.zeros((2, 8)), np.zeros((3, 16)))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="`columns` must be floating point"):
        cosine_similarity(np.zeros((2, 8)), np.zeros((2, 8), "int32"))
