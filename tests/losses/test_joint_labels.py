"""Joint labels, and the class and the view that joint logits say: golden values, by hand, NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd import losses

RULES = {
    "sum_logits": "sum_of_logits",
    "marginal": "marginal",
    "known_rotation": "known_rotation",
}
PRECISIONS = [("float64", 1e-10), ("float32", 1e-5)]


@pytest.mark.parametrize("case", golden_cases("hsakd", "joint_labels"))
def test_golden_labels(case):
    labels, expected = case["inputs"]["labels"], case["expected"]
    joint = losses.joint_labels(tf.constant(labels), case["params"]["num_rotations"])
    assert joint.dtype == tf.int32
    np.testing.assert_array_equal(joint, expected["joint_labels"])
    classes = case["params"]["num_classes"]
    one_hot = losses.joint_labels(tf.one_hot(labels, classes), 4)
    assert one_hot.shape == (4 * len(labels), expected["joint_width"])
    np.testing.assert_array_equal(tf.argmax(one_hot, -1), expected["joint_labels"])
    np.testing.assert_array_equal(tf.reduce_sum(one_hot, -1), np.ones(4 * len(labels)))


@pytest.mark.parametrize("case", golden_cases("hsakd", "rotated_batch"))
def test_golden_labels_of_a_rotated_batch(case):
    labels = tf.constant(case["inputs"]["labels"])
    expected = case["expected"]["joint_labels"]
    np.testing.assert_array_equal(losses.joint_labels(labels, 4), expected)


def test_labels_by_hand():
    np.testing.assert_array_equal(
        losses.joint_labels(tf.constant([2, -1, 0]), 3), [6, 7, 8, -1, -1, -1, 0, 1, 2]
    )
    soft = losses.joint_labels(tf.constant([[0.25, 0.75]]), 2)
    np.testing.assert_array_equal(soft, [[0.25, 0, 0.75, 0], [0, 0.25, 0, 0.75]])


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", golden_cases("hsakd", "joint_predictions"))
def test_golden_scores(case, dtype, tolerance):
    logits, expected = tf.constant(case["inputs"]["head_logits"], dtype), case["expected"]
    labels = np.repeat(case["inputs"]["labels"], 4)
    scores = {rule: losses.class_scores(logits, 4, rule) for rule in RULES}
    for rule, name in RULES.items():
        assert scores[rule].dtype == dtype
        predicted = np.argmax(scores[rule], axis=-1)
        np.testing.assert_array_equal(predicted, expected[f"class_pred_{name}"])
        assert (predicted == labels).sum() == expected[f"class_correct_top1_{name}"]
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(
        scores["sum_logits"], expected["class_scores_sum_of_logits"], **close
    )
    np.testing.assert_allclose(
        tf.exp(scores["marginal"]), expected["class_probs_marginal"], **close
    )
    np.testing.assert_allclose(
        scores["known_rotation"], expected["class_logits_known_rotation"], **close
    )
    np.testing.assert_allclose(
        tf.nn.softmax(scores["known_rotation"]),
        expected["class_probs_known_rotation"],
        **close,
    )
    views = losses.view_scores(logits, 4)
    np.testing.assert_allclose(tf.exp(views), expected["rotation_probs_marginal"], **close)
    np.testing.assert_array_equal(np.argmax(views, -1), expected["rotation_pred_marginal"])
    of_views = np.reshape(scores["known_rotation"], [expected["images"], 4, -1]).mean(axis=1)
    np.testing.assert_allclose(
        of_views, expected["aggregated_class_logits_mean_over_views"], **close
    )


def test_the_rules_disagree():
    """One view surely of class 0, all logits of class 1 higher on average, the own view class 2."""
    row = [9.0, -20, -20, -20, 1, 1, 1, 1, 0, 0, 0, 2]
    logits = tf.constant([[0.0] * 12] * 3 + [row])
    predicted = {rule: int(np.argmax(losses.class_scores(logits, 4, rule)[3])) for rule in RULES}
    assert predicted == {"sum_logits": 1, "marginal": 0, "known_rotation": 2}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_large_and_half_precision_logits_stay_finite(dtype):
    logits = tf.cast([[3e4, -3e4, 0, 0]] * 2, dtype)
    for rule in RULES:
        scores = losses.class_scores(logits, 2, rule)
        assert scores.dtype == tf.float32
        assert np.isfinite(scores).all()
    assert np.isfinite(losses.view_scores(logits, 2)).all()


def test_impossible_classes_leave_the_others_finite():
    logits = tf.constant([[-np.inf, 1.0, 2.0, 3.0], [0.0, 1.0, -np.inf, 3.0]])
    np.testing.assert_array_equal(
        losses.class_scores(logits, 2, "known_rotation"), [[-np.inf, 2], [1, 3]]
    )


def test_under_xla():
    logits = tf.random.stateless_normal([8, 12], [0, 0])
    for rule in RULES:
        compiled = tf.function(
            lambda x, rule=rule: losses.class_scores(x, 4, rule), jit_compile=True
        )
        np.testing.assert_allclose(
            compiled(logits), losses.class_scores(logits, 4, rule), rtol=1e-6, atol=1e-6
        )


def test_errors():
    with pytest.raises(ValueError, match=r"`rule` must be one of .*'marginal'.*got 'mean'"):
        losses.class_scores(tf.zeros([4, 8]), 4, "mean")
    with pytest.raises(ValueError, match="each of 4 views, got 10 columns"):
        losses.class_scores(tf.zeros([4, 10]), 4)
    with pytest.raises(TypeError, match="joint_logits"):
        losses.view_scores(tf.zeros([4, 8], tf.int32), 4)
