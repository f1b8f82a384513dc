"""The four terms of SSKD together: golden values, replicas, invariances."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from replicas import on_replicas

from keras_ssd.collectives import all_sum
from keras_ssd.objectives import (
    ContrastivePretext,
    HardLabels,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
)
from objectives.batches import (
    EXACT,
    OBJECTIVES,
    changed,
    golden_batch,
    golden_objectives,
    images_of,
    loss_and_gradients,
    loss_of,
    mean_of,
    random_batch,
    rows_of,
    with_student,
    with_teacher,
)

PRECISIONS = [("float64", EXACT), ("float32", {"rtol": 2e-5, "atol": 2e-6})]
SSKD = golden_cases("sskd", "sskd_losses") + golden_cases("sskd", "sskd_losses_masked")


# Golden values


@pytest.mark.parametrize("case", SSKD)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float64", "float32"])
def test_golden(case, dtype, tolerance):
    batch, objectives = golden_batch(case, dtype), golden_objectives(case["params"])
    for name, objective in objectives.items():
        total, count = objective(batch)
        assert total.dtype == count.dtype == dtype
        mean = tf.math.divide_no_nan(total, count)
        np.testing.assert_allclose(mean, case["expected"][name], **tolerance)
    for name in ("tf", "ss"):
        _, count = objectives[f"loss_{name}"](batch)
        assert float(count) == case["expected"][f"n_kept_{name}"]

    loss, gradients = loss_and_gradients(objectives.values(), batch)
    np.testing.assert_allclose(loss, case["expected"]["total"], **tolerance)
    logits = case["gradients"]["student_logits"]
    np.testing.assert_allclose(gradients["logits"], logits, **tolerance)
    projections = np.array(case["gradients"]["student_proj"])
    rows = np.any(batch.student["projection"], axis=1)  # at a zero vector nothing is defined
    assert len(rows) - sum(rows) == ("one_zero" in case["name"])
    np.testing.assert_allclose(gradients["projection"][rows], projections[rows], **tolerance)
    assert np.isfinite(gradients["projection"]).all()


@pytest.mark.parametrize("case", golden_cases("sskd", "replica_shares"))
def test_golden_total_of_the_undivided_batch(case):
    batch, objectives = golden_batch(case), golden_objectives(case["params"])
    loss = loss_of(objectives.values(), batch)
    np.testing.assert_allclose(loss, case["expected"]["total"], **EXACT)
    for name in ("tf", "ss"):
        _, count = objectives[f"loss_{name}"](batch)
        assert float(count) == case["expected"][f"n_kept_{name}"]


# Replicas


def terms_on_replicas(strategy, objectives, batch, first):
    """Terms of each replica, and its gradients of the global loss; `first` images on the first."""
    shards = [images_of(batch, range(first)), images_of(batch, range(first, len(batch.labels)))]
    tensors = ("labels", "sample_weight", "teacher", "student")

    def replica(*parts):
        student = dict(parts[3])
        with tf.GradientTape() as tape:
            tape.watch(student)
            mine = changed(batch, **dict(zip(tensors, [*parts[:3], student], strict=True)))
            terms = [objective(mine) for objective in objectives]
            share = sum(
                objective.weight * tf.math.divide_no_nan(total, all_sum(count))
                for objective, (total, count) in zip(objectives, terms, strict=True)
            )
        none = tf.UnconnectedGradients.ZERO
        return terms, share, tape.gradient(share, student, unconnected_gradients=none)

    parts = [[getattr(shard, name) for shard in shards] for name in tensors]
    return on_replicas(strategy, replica, *parts)


@pytest.mark.parametrize("case", golden_cases("sskd", "replica_shares")[:1])
def test_golden_shares_of_two_replicas(two_replicas, case):
    assert case["params"]["replicas"] == 2
    objectives = golden_objectives(case["params"])
    batch = changed(golden_batch(case), sample_weight=tf.ones([6]))
    results = terms_on_replicas(two_replicas, list(objectives.values()), batch, 3)
    factors = [1, *(case["params"][f"{name}_T"] ** 2 for name in ("kd", "tf", "ss"))]
    for expected, (terms, share, _) in zip(case["expected"]["replicas"], results, strict=True):
        for name, factor, (total, count) in zip(
            ("ce", "kd", "tf", "ss"), factors, terms, strict=True
        ):
            np.testing.assert_allclose(total, factor * expected[f"{name}_sum"], **EXACT)
            assert float(count) == expected.get(f"{name}_kept", 3)
        np.testing.assert_allclose(share, expected["share_of_total"], **EXACT)


@pytest.mark.parametrize("first", [4, 0], ids=["4 and 3", "0 and 7"])
def test_two_replicas_are_one(two_replicas, first):
    weights = [1.0, 0, 2, 1, 0.5, 1, 0]
    batch = random_batch(7, labels=[0, 1, -1, 3, 4, 2, 2], sample_weight=weights)
    objectives = list(OBJECTIVES.values())
    results = terms_on_replicas(two_replicas, objectives, batch, first)
    loss, gradients = loss_and_gradients(objectives, batch)
    np.testing.assert_allclose(sum(share for _, share, _ in results), loss, **EXACT)
    for name, gradient in gradients.items():
        parts = [replica[2][name] for replica in results]
        np.testing.assert_allclose(tf.concat(parts, 0), gradient, **EXACT)


# Invariances


def sskd(ratio):
    return [
        HardLabels(0.1),
        SoftLabels(weight=0.9),
        SelectiveSoftLabels(keep_wrong=ratio, weight=2.7),
        SimilarityTransfer(keep_wrong=ratio, weight=10.0),
        ContrastivePretext(),
    ]


def test_a_student_that_is_the_teacher_has_nothing_to_learn_but_labels():
    batch = random_batch()
    batch = changed(batch, student=batch.teacher)
    for objective in sskd(0.75)[1:4]:
        assert abs(mean_of(objective, batch)) < 1e-14
        _, gradients = loss_and_gradients([objective], batch)
        for gradient in gradients.values():
            np.testing.assert_allclose(gradient, 0, atol=1e-14)
    labels = 0.1 * mean_of(HardLabels(), batch)
    np.testing.assert_allclose(loss_of(sskd(0.75)[:4], batch), labels, **EXACT)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_permuting_images_permutes_gradients(ratio):
    batch, order = random_batch(), [3, 0, 5, 1, 4, 2]
    permuted = images_of(batch, order)
    for objective in sskd(ratio):
        loss, gradients = loss_and_gradients([objective], batch)
        other_loss, other_gradients = loss_and_gradients([objective], permuted)
        np.testing.assert_allclose(other_loss, loss, **EXACT)
        for name, gradient in gradients.items():
            moved = tf.gather(gradient, rows_of(order))
            np.testing.assert_allclose(other_gradients[name], moved, **EXACT)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_permuting_transformed_views_changes_nothing(ratio):
    batch = random_batch()
    rows = np.concatenate([[4 * i, 4 * i + 3, 4 * i + 1, 4 * i + 2] for i in range(6)])
    permuted = changed(
        batch,
        teacher={name: tf.gather(tensor, rows) for name, tensor in batch.teacher.items()},
        student={name: tf.gather(tensor, rows) for name, tensor in batch.student.items()},
    )
    for objective in sskd(ratio):
        np.testing.assert_allclose(objective(permuted), objective(batch), **EXACT)


def test_each_row_of_logits_may_be_shifted():
    batch, shift = random_batch(), tf.constant(np.arange(24.0)[:, None])
    shifted = with_student(batch, logits=batch.student["logits"] + shift)
    shifted = with_teacher(shifted, logits=batch.teacher["logits"] - 2 * shift)
    for objective in sskd(0.75)[:3]:
        np.testing.assert_allclose(objective(shifted), objective(batch), rtol=1e-12)
        _, gradients = loss_and_gradients([objective], batch)
        np.testing.assert_allclose(tf.reduce_sum(gradients["logits"], 1), 0, atol=1e-15)
