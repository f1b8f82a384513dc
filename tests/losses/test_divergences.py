import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses import kl_divergence

CLOSED_FORMS = {  # name: (teacher, student, temperature, expected)
    "equal": ([1.0, 2.0], [1.0, 2.0], 4.0, 0.0),
    "shifted": ([1.0, 2.0], [6.0, 7.0], 4.0, 0.0),
    "one class": ([3.0], [-8.0], 2.0, 0.0),
    "even teacher": ([0.0, 0.0], [0.0, math.log(3.0)], 1.0, 0.5 * math.log(4 / 3)),
    "even student": ([0.0, math.log(3.0)], [0.0, 0.0], 1.0, math.log(2) - 0.5623351446188083),
    "constant teacher": (
        [0.0] * 5,
        [8.0, 0, 0, 0, 0],
        4.0,
        16 * (math.log((math.e**2 + 4) / 5) - 0.4),
    ),
    "certain and right": ([1e4, 0.0], [1e4, 0.0], 1.0, 0.0),
    "certain and wrong": ([1e4, 0.0], [0.0, 1e4], 1.0, 1e4),
    "a class that is no class": ([0.0, 0.0, -math.inf], [1.0, 1.0, -math.inf], 3.0, 0.0),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    teacher, student, temperature, expected = CLOSED_FORMS[name]
    value = kl_divergence(np.array([teacher]), np.array([student]), temperature)
    np.testing.assert_allclose(value, [expected], rtol=1e-12, atol=1e-14)


def reference(teacher, student, temperature):
    """Row by row and class by class, from the definition, with shares instead of logarithms."""
    values = []
    for teacher_row, student_row in zip(teacher, student, strict=True):
        p = np.exp(teacher_row / temperature) / np.sum(np.exp(teacher_row / temperature))
        q = np.exp(student_row / temperature) / np.sum(np.exp(student_row / temperature))
        values.append(temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return np.array(values)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_reference(temperature, dtype, tolerance):
    teacher, student = np.random.default_rng(0).normal(0, 3, (2, 20, 7)).astype(dtype)
    value = kl_divergence(teacher, student, temperature)
    assert value.dtype == dtype
    expected = reference(teacher.astype("float64"), student.astype("float64"), temperature)
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", golden_cases("sskd", "loss_kd"))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
def test_golden(case, dtype, tolerance):
    views = case["params"]["views"]
    student = tf.constant(case["inputs"]["student_logits"], dtype)
    teacher = tf.constant(case["inputs"]["teacher_logits"], dtype)
    with tf.GradientTape() as tape:
        tape.watch(student)
        rows = kl_divergence(teacher[::views], student[::views], case["params"]["kd_T"])
        value = tf.reduce_mean(rows)
    gradient = tape.gradient(value, student)
    np.testing.assert_allclose(value, case["expected"]["value"], rtol=tolerance)
    expected = case["gradients"]["student_logits"]
    np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance / 10)


def test_invariances():
    teacher, student = np.random.default_rng(1).normal(0, 3, (2, 6, 5))
    value = kl_divergence(teacher, student, 2.0).numpy()
    assert (value > 0).all()
    shift = np.arange(6.0)[:, None]
    np.testing.assert_allclose(kl_divergence(teacher + shift, student - shift, 2.0), value, 1e-12)
    classes, rows = [3, 0, 4, 1, 2], [5, 4, 0, 1, 2, 3]
    swapped = kl_divergence(teacher[:, classes], student[:, classes], 2.0)
    np.testing.assert_allclose(swapped, value, 1e-12)
    permuted = kl_divergence(teacher[rows], student[rows], 2.0)
    np.testing.assert_allclose(permuted, value[rows], 1e-12)
    assert not np.allclose(kl_divergence(student, teacher, 2.0), value)


DEGENERATE = {  # name: (teacher, student)
    "zeros": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    "opposite": ([1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]),
    "impossible for both": ([0.0, 1.0, -math.inf], [1.0, 0.0, -math.inf]),
    "impossible for the teacher": ([0.0, 1.0, -math.inf], [1.0, 0.0, 2.0]),
    "impossible for the student": ([0.0, 1.0, 2.0], [1.0, 0.0, -math.inf]),
    "impossible throughout": ([-math.inf] * 3, [-math.inf] * 3),
    "one class": ([7.0], [1e4]),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", DEGENERATE)
def test_value_and_gradients_are_finite(name, jit_compile):
    teacher, student = (tf.constant([row]) for row in DEGENERATE[name])

    @tf.function(jit_compile=jit_compile)
    def value_and_gradients():
        with tf.GradientTape() as tape:
            tape.watch([teacher, student])
            value = kl_divergence(teacher, student, 0.5)
        return value, *tape.gradient(value, [teacher, student])

    for result in value_and_gradients():
        assert np.isfinite(result).all(), result


def test_gradient_of_a_row_sums_to_zero_and_vanishes_where_both_agree():
    teacher, student = tf.unstack(tf.constant(np.random.default_rng(2).normal(0, 2, (2, 4, 6))))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        value, same = kl_divergence(teacher, student), kl_divergence(student + 0, student)
    np.testing.assert_allclose(tf.reduce_sum(tape.gradient(value, student), 1), 0, atol=1e-14)
    np.testing.assert_allclose(tape.gradient(same, student), 0, atol=1e-14)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_halves_are_computed_in_float32(dtype, jit_compile):
    teacher, student = (
        tf.cast(logits, dtype) for logits in np.random.default_rng(3).normal(0, 30, (2, 8, 5))
    )
    compiled = tf.function(kl_divergence, jit_compile=jit_compile)
    value = compiled(teacher, student, 4.0)
    assert value.dtype == tf.float32
    exact = kl_divergence(tf.cast(teacher, tf.float64), tf.cast(student, tf.float64), 4.0)
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-4)


def test_precisions_may_differ():
    teacher, student = np.random.default_rng(4).normal(size=(2, 3, 4))
    value = kl_divergence(teacher.astype("float32"), student.astype("float16"))
    assert value.dtype == tf.float32
    value = kl_divergence(teacher.astype("float32"), student)
    assert value.dtype == tf.float64


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got"):
        kl_divergence(np.zeros((2, 3)), np.zeros((2, 3)), temperature)


def test_class_counts_must_agree():
    with pytest.raises(ValueError, match="teacher has 10 classes and the student 12"):
        kl_divergence(np.zeros((2, 10)), np.zeros((2, 12)))


@pytest.mark.parametrize("shape", [(1, 3), (3,), (2, 2, 3)])
def test_rows_are_not_broadcast(shape):
    with pytest.raises(ValueError, match="must have the same shape"):
        kl_divergence(np.zeros((2, 3)), np.zeros(shape))


def test_class_counts_are_checked_while_tracing():
    compiled = tf.function(kl_divergence)
    logits = (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 4]))
    with pytest.raises(ValueError, match="teacher has 3 classes and the student 4"):
        compiled.get_concrete_function(*logits)


def test_labels_are_no_logits():
    with pytest.raises(TypeError, match="`student_logits` must be floating point"):
        kl_divergence(np.zeros((2, 3)), np.zeros((2, 3), "int64"))
