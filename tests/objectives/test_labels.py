import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.objectives import HardLabels
from objectives.batches import (
    changed,
    golden_batch,
    loss_and_gradients,
    mean_of,
    random_batch,
    with_student,
)


@pytest.mark.parametrize("case", golden_cases("sskd", "loss_ce"))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
def test_golden(case, dtype, tolerance):
    loss, gradients = loss_and_gradients([HardLabels()], golden_batch(case, dtype))
    np.testing.assert_allclose(loss, case["expected"]["value"], rtol=tolerance)
    expected = case["gradients"]["student_logits"]
    np.testing.assert_allclose(gradients["logits"], expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("soft", [False, True], ids=["integers", "one-hot"])
def test_equal_logits_cost_log_c(label_smoothing, soft):
    labels = np.eye(5)[[0, 3, 2]] if soft else [0, 3, 2]
    batch = random_batch(3, labels=labels)
    batch = with_student(batch, logits=tf.zeros_like(batch.student["logits"]))
    value = mean_of(HardLabels(label_smoothing=label_smoothing), batch)
    assert math.isclose(value, math.log(5), rel_tol=1e-14)


def targets_of(labels, classes, smoothing):
    """The smoothed target of each row, from the definition."""
    rows = np.full((len(labels), classes), smoothing / classes)
    for row, label in zip(rows, labels, strict=True):
        row += (1 - smoothing) * (label if np.ndim(label) else np.eye(classes)[label])
    return rows


SOFT = np.array([[0.7, 0.1, 0.1, 0.1, 0.0], [0.0, 0.0, 0.5, 0.5, 0.0], [0.2] * 5])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("labels", [[4, 0, 2], SOFT], ids=["integers", "soft"])
def test_label_smoothing(labels, label_smoothing):
    batch = random_batch(3, labels=labels)
    logits = batch.student["logits"].numpy()[::4]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.sum(targets_of(labels, 5, label_smoothing) * np.log(shares))
    total, count = HardLabels(label_smoothing=label_smoothing)(batch)
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert float(count) == 3


def test_soft_labels_keep_their_precision():
    batch = random_batch(3, labels=SOFT)
    halves = changed(batch, labels=tf.cast(SOFT, tf.float16))
    assert HardLabels()(halves)[0].dtype == tf.float64
    assert math.isclose(mean_of(HardLabels(), halves), mean_of(HardLabels(), batch), rel_tol=1e-3)


def test_a_confident_mistake_is_finite():
    batch = random_batch(1, classes=2, labels=[1], dtype="float32")
    batch = with_student(batch, logits=tf.constant([[1e4, -1e4]] * 4))
    loss, gradients = loss_and_gradients([HardLabels()], batch)
    assert float(loss) == 2e4
    np.testing.assert_array_equal(gradients["logits"][0], [1, -1])


def test_an_image_without_a_label_may_hold_anything():
    batch = random_batch(2, labels=[1, -1])
    logits = batch.student["logits"].numpy()
    logits[4] = np.nan
    value = mean_of(HardLabels(), with_student(batch, logits=tf.constant(logits)))
    assert math.isclose(value, mean_of(HardLabels(), batch), rel_tol=1e-14)
