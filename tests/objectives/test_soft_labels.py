import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd import losses
from keras_ssd.objectives import SelectiveSoftLabels, SoftLabels
from objectives.batches import (
    changed,
    golden_batch,
    loss_and_gradients,
    mean_of,
    random_batch,
    with_student,
    with_teacher,
)

CASES = golden_cases("sskd", "loss_kd") + golden_cases("sskd", "loss_tf")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
def test_golden(case, dtype, tolerance):
    params = case["params"]
    if case["function"] == "loss_kd":
        objective = SoftLabels(params["kd_T"])
    else:
        objective = SelectiveSoftLabels(params["tf_T"], keep_wrong=params["ratio_tf"])
    loss, gradients = loss_and_gradients([objective], golden_batch(case, dtype))
    np.testing.assert_allclose(loss, case["expected"]["value"], rtol=tolerance)
    expected = case["gradients"]["student_logits"]
    np.testing.assert_allclose(gradients["logits"], expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(
    "objective", [SoftLabels(), SoftLabels(views="transformed"), SelectiveSoftLabels()]
)
@pytest.mark.parametrize("a", [-2.0, 0.0, 0.5, 3.0])
def test_constant_teacher(objective, a):
    """The temperature is 4; the student believes `a * T` in the first of 5 classes."""
    batch = with_teacher(random_batch(3), logits=tf.zeros([12, 5], tf.float64))
    student = tf.constant([[4 * a, 0, 0, 0, 0]] * 12, tf.float64)
    value = mean_of(objective, with_student(batch, logits=student))
    expected = 16 * (math.log((math.exp(a) + 4) / 5) - a / 5)
    assert math.isclose(value, expected, rel_tol=1e-12)


@pytest.mark.parametrize("views", ["plain", "transformed", "all"])
def test_rows_are_chosen_by_name(views):
    batch = random_batch()
    rows = {"plain": [0], "transformed": [1, 2, 3], "all": [0, 1, 2, 3]}[views]
    rows = [4 * image + view for image in range(6) for view in rows]
    teacher, student = (
        tf.gather(network["logits"], rows) for network in (batch.teacher, batch.student)
    )
    total, count = SoftLabels(2.0, views=views)(batch)
    expected = tf.reduce_sum(losses.kl_divergence(teacher, student, 2.0))
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert float(count) == len(rows)
    assert SoftLabels(views=views).needs_views == (views == "transformed")


def test_unknown_rows_are_refused():
    with pytest.raises(ValueError, match=r"Rows are one of \['plain', .*\], got 'turned'"):
        SoftLabels(views="turned")


def test_keeping_all_rows_is_the_plain_mean_of_transformed_rows():
    batch = random_batch()
    np.testing.assert_allclose(
        SelectiveSoftLabels(3.0, keep_wrong=1.0)(batch),
        SoftLabels(3.0, views="transformed")(batch),
        rtol=1e-12,
    )


def test_the_share_is_of_the_wrong_rows():
    batch = random_batch()
    batch = with_teacher(batch, logits=10 * tf.one_hot(tf.repeat(batch.labels, 4), 5))
    everything = SelectiveSoftLabels(keep_wrong=1.0)(batch)
    np.testing.assert_array_equal(SelectiveSoftLabels(keep_wrong=0.0)(batch), everything)
    for share, kept in [(0.0, 0), (0.29, 5), (0.5, 9), (1.0, 18)]:
        wrong = with_teacher(batch, logits=-batch.teacher["logits"])
        assert float(SelectiveSoftLabels(keep_wrong=share)(wrong)[1]) == kept


def test_kept_rows_are_weighted():
    """Ranks 0, 1, 2 within each image; half of the wrong ones are kept: rank 1."""
    teacher = np.zeros((8, 3))
    for row, rank in enumerate([0, 0, 1, 2, 0, 0, 1, 2]):
        teacher[row, 1 : 1 + rank] = 1.0
    batch = with_teacher(random_batch(2, 3, labels=[0, 0]), logits=tf.constant(teacher))
    batch = changed(batch, sample_weight=tf.constant([1.0, 3.0]))
    values = losses.kl_divergence(teacher, batch.student["logits"], 4.0).numpy()
    total, count = SelectiveSoftLabels(keep_wrong=0.5)(batch)
    np.testing.assert_allclose(total, values[[1, 2]].sum() + 3 * values[[5, 6]].sum(), rtol=1e-12)
    assert float(count) == 8


def test_class_counts_must_agree():
    batch = with_student(random_batch(), logits=tf.zeros([24, 7]))
    for objective in (SoftLabels(), SelectiveSoftLabels()):
        with pytest.raises(ValueError, match="The teacher has 5 classes and the student 7"):
            objective(batch)
