import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses import cross_entropy

CLOSED_FORMS = {  # name: (label, logits, smoothing, expected)
    "even": (2, [0.0, 0.0, 0.0, 0.0], 0.0, math.log(4)),
    "even, smoothed": (2, [5.0, 5.0, 5.0, 5.0], 0.3, math.log(4)),
    "three to one": (1, [0.0, math.log(3.0)], 0.0, math.log(4 / 3)),
    "all spread": (0, [0.0, math.log(3.0)], 1.0, math.log(4) - math.log(3) / 2),
    "certain and right": (0, [1e4, 0.0], 0.0, 0.0),
    "certain and wrong": (1, [1e4, 0.0], 0.0, 1e4),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form(name):
    label, logits, smoothing, expected = CLOSED_FORMS[name]
    for labels in ([label], np.eye(len(logits))[[label]]):
        value = cross_entropy(tf.constant(labels), np.array([logits]), smoothing)
        np.testing.assert_allclose(value, [expected], rtol=1e-12, atol=1e-14)


def reference(targets, logits):
    """Row by row and class by class, from the definition."""
    values = []
    for target, row in zip(targets, logits, strict=True):
        shares = np.exp(row) / np.sum(np.exp(row))
        values.append(-sum(t * math.log(q) for t, q in zip(target, shares, strict=True)))
    return values


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_reference(smoothing, dtype, tolerance):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (20, 7)).astype(dtype), rng.dirichlet(np.ones(7), 20)
    value = cross_entropy(tf.constant(targets), logits, smoothing)
    assert value.dtype == dtype
    smoothed = (1 - smoothing) * targets + smoothing / 7
    np.testing.assert_allclose(value, reference(smoothed, logits.astype("float64")), tolerance)


@pytest.mark.parametrize("case", golden_cases("sskd", "loss_ce"))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
def test_golden(case, dtype, tolerance):
    logits = tf.constant(case["inputs"]["student_logits"], dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        rows = logits[:: case["params"]["views"]]
        value = tf.reduce_mean(cross_entropy(tf.constant(case["inputs"]["labels"]), rows))
    gradient = tape.gradient(value, logits)
    np.testing.assert_allclose(value, case["expected"]["value"], rtol=tolerance)
    expected = case["gradients"]["student_logits"]
    np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance / 10)


def test_invariances():
    logits, labels = np.random.default_rng(1).normal(0, 3, (6, 5)), tf.constant([0, 4, 2, 1, 1, 3])
    value = cross_entropy(labels, logits)
    shifted = cross_entropy(labels, logits + np.arange(6.0)[:, None])
    np.testing.assert_allclose(shifted, value, rtol=1e-12)
    one_hot = cross_entropy(tf.one_hot(labels, 5, dtype="float64"), logits)
    np.testing.assert_allclose(one_hot, value, rtol=1e-12)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("label", [-1, 1, 99])
def test_no_label_reads_past_the_classes_and_gradients_are_finite(label, jit_compile):
    logits = tf.constant([[0.0, 0.0], [1e4, -1e4]])

    @tf.function(jit_compile=jit_compile)
    def value_and_gradient():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = cross_entropy(tf.constant([label, label]), logits)
        return values, tape.gradient(values, logits)

    assert all(np.isfinite(result).all() for result in value_and_gradient())


def test_halves_are_computed_in_float32():
    logits = np.array([[300.0, 1.0], [0.001, 0.002]], "float16")
    labels = tf.constant([1, 0])
    value = cross_entropy(labels, logits)
    assert value.dtype == "float32"
    np.testing.assert_array_equal(value, cross_entropy(labels, logits.astype("float32")))


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match="`logits` must be floating point, got int"):
        cross_entropy(tf.constant([0]), np.array([[1, 2]]))
