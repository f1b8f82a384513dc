import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd import losses
from keras_ssd.objectives import ContrastivePretext, SimilarityTransfer
from objectives.batches import (
    changed,
    golden_batch,
    loss_and_gradients,
    mean_of,
    random_batch,
    with_student,
    with_teacher,
)

PRECISIONS = [("float64", 1e-10), ("float32", 2e-5)]
BOTH = [SimilarityTransfer(), ContrastivePretext()]


@pytest.mark.parametrize("case", golden_cases("sskd", "loss_ss"))
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_golden_transfer(case, dtype, tolerance):
    params = case["params"]
    objective = SimilarityTransfer(params["ss_T"], keep_wrong=params["ratio_ss"])
    loss, gradients = loss_and_gradients([objective], golden_batch(case, dtype))
    np.testing.assert_allclose(loss, case["expected"]["value"], rtol=tolerance)
    expected = case["gradients"]["student_proj"]
    found = gradients["projection"]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("case", golden_cases("sskd", "head_contrastive_loss"))
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_golden_pretext(case, dtype, tolerance):
    objective = ContrastivePretext(case["params"]["temperature"])
    student = {"projection": tf.constant(case["inputs"]["proj"], dtype)}
    batch = changed(random_batch(), labels=None, teacher={}, student=student)
    loss, gradients = loss_and_gradients([objective], batch)
    np.testing.assert_allclose(loss, case["expected"]["loss"], rtol=tolerance)
    expected = case["gradients"]["proj"]
    found = gradients["projection"]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance / 10)


def test_equal_projections_cost_log_b():
    batch = with_student(random_batch(), projection=tf.ones([24, 8], tf.float64))
    batch = with_teacher(batch, projection=tf.ones([24, 3], tf.float64))
    assert math.isclose(mean_of(ContrastivePretext(), batch), math.log(6), rel_tol=1e-14)
    assert abs(mean_of(SimilarityTransfer(), batch)) < 1e-14


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_orthonormal_images_that_every_view_agrees_with(temperature):
    projections = tf.repeat(tf.eye(6, dtype=tf.float64), 4, axis=0)
    value = mean_of(
        ContrastivePretext(temperature), with_student(random_batch(), projection=projections)
    )
    assert math.isclose(value, math.log(1 + 5 * math.exp(-1 / temperature)), rel_tol=1e-14)


@pytest.mark.parametrize("objective", BOTH)
def test_the_length_of_a_projection_does_not_matter(objective):
    batch = random_batch()
    factors = tf.constant(np.random.default_rng(1).uniform(0.1, 10, (24, 1)))
    scaled = with_student(batch, projection=batch.student["projection"] * factors)
    scaled = with_teacher(scaled, projection=batch.teacher["projection"] / factors)
    np.testing.assert_allclose(objective(scaled), objective(batch), rtol=1e-12)
    _, gradients = loss_and_gradients([objective], batch)
    along = tf.reduce_sum(gradients["projection"] * batch.student["projection"], axis=1)
    np.testing.assert_allclose(along, 0, atol=1e-15)


def test_widths_may_differ_and_zero_columns_do_not_matter():
    batch = random_batch()
    wider = tf.pad(batch.teacher["projection"], [[0, 0], [0, 5]])
    value = mean_of(SimilarityTransfer(), with_teacher(batch, projection=wider))
    assert math.isclose(value, mean_of(SimilarityTransfer(), batch), rel_tol=1e-12)


@pytest.mark.parametrize("objective", BOTH)
@pytest.mark.parametrize("row", [0, 1], ids=["plain", "transformed"])
def test_a_zero_vector_is_similar_to_nothing(objective, row):
    projections = random_batch(dtype="float32").student["projection"].numpy()
    projections[row] = 0
    batch = with_student(random_batch(dtype="float32"), projection=tf.constant(projections))
    loss, gradients = loss_and_gradients([objective], batch)
    assert math.isfinite(loss)
    assert np.isfinite(gradients["projection"]).all()
    assert np.any(gradients["projection"], axis=1).sum() >= 18


def test_keeping_all_rows_is_the_plain_mean():
    batch = random_batch()
    teacher, student = (
        losses.cosine_similarity(
            batch.select(network["projection"], "transformed"), network["projection"][::4]
        )
        for network in (batch.teacher, batch.student)
    )
    total, count = SimilarityTransfer(0.3, keep_wrong=1.0)(batch)
    expected = tf.reduce_sum(losses.kl_divergence(teacher, student, 0.3))
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert float(count) == 18


def test_a_teacher_that_finds_every_image_has_all_rows_kept():
    batch = with_teacher(
        random_batch(), projection=tf.repeat(tf.eye(6, dtype=tf.float64), 4, axis=0)
    )
    some, everything = (SimilarityTransfer(keep_wrong=share)(batch) for share in (0.0, 1.0))
    np.testing.assert_array_equal(some, everything)


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1e3])
def test_a_missing_column_has_no_part_at_any_temperature(temperature):
    whole = random_batch(4, dtype="float32", sample_weight=[1.0, 1, 1, 0])
    for objective in (SimilarityTransfer(temperature), ContrastivePretext(temperature)):
        loss, gradients = loss_and_gradients([objective], whole)
        assert math.isfinite(loss)
        assert np.isfinite(gradients["projection"]).all()
        assert not np.any(gradients["projection"][12:])


@pytest.mark.parametrize("objective", BOTH)
def test_an_unlabeled_image_is_a_column_all_the_same(objective):
    np.testing.assert_array_equal(
        objective(random_batch(labels=[-1] * 6)), objective(random_batch())
    )
