import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from replicas import on_replicas

from keras_ssd import losses
from keras_ssd.objectives.selection import kept_rows


def kept(ranks, keep_wrong, weights=None):
    weights = np.ones(len(ranks)) if weights is None else weights
    return kept_rows(tf.constant(ranks, tf.int32), keep_wrong, tf.constant(weights)).numpy()


@pytest.mark.parametrize("case", golden_cases("sskd", "error_level_selection"))
def test_golden(case):
    ranks = losses.label_rank(
        tf.constant(case["inputs"]["values"]), tf.constant(case["inputs"]["target"])
    )
    mask = kept(ranks.numpy(), case["params"]["ratio"])
    np.testing.assert_array_equal(mask, case["expected"]["keep"])


@pytest.mark.parametrize("case", golden_cases("sskd", "kept_wrong_count"))
@pytest.mark.parametrize("correct", [0, 3])
def test_golden_counts(case, correct):
    pairs = zip(*case["inputs"].values(), case["expected"]["count"], strict=True)
    for wrong, ratio, count in pairs:
        ranks = np.random.default_rng(wrong).permutation([0] * correct + [1] * wrong)
        assert kept(ranks, ratio).sum() == correct + count


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.5, 0.75, 1.0])
def test_no_row_is_dropped_for_a_worse_one(ratio):
    ranks = np.random.default_rng(0).integers(0, 6, 60)
    chosen = kept(ranks, ratio) > 0
    assert chosen[ranks == 0].all()
    order = [(rank, row) for row, rank in enumerate(ranks)]  # equal ranks: the first row wins
    best = max(order[row] for row in np.flatnonzero(chosen))
    dropped = [order[row] for row in np.flatnonzero(~chosen)]
    assert all(best < key for key in dropped)
    assert bool(dropped) == (ratio < 1)


def test_rank_0_everywhere_keeps_everything():
    np.testing.assert_array_equal(kept([0] * 7, 0.0), np.ones(7))


def test_kept_rows_carry_their_weights_and_others_0():
    weights = [2.0, 0.5, 1, 3, 0, 0]
    np.testing.assert_array_equal(kept([0, 2, 1, 5, 0, 1], 0.5, weights), [2, 0, 1, 0, 0, 0])


def test_the_weights_dtype_is_kept_and_no_gradient_passes():
    weights = tf.ones([4], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        rows = kept_rows(tf.constant([0, 1, 2, 3]), 0.5, weights)
    assert rows.dtype == tf.float64
    assert tape.gradient(rows, weights) is None


@pytest.mark.parametrize(("first", "ratio"), [(5, 0.75), (3, 0.3), (0, 0.75)])
def test_the_selection_is_over_all_replicas(two_replicas, first, ratio):
    generator = np.random.default_rng(1)
    ranks = tf.constant(generator.integers(0, 4, 10), tf.int32)
    weights = tf.constant(generator.integers(0, 3, 10), tf.float32)
    whole = kept_rows(ranks, ratio, weights)
    assert 0 < np.count_nonzero(whole) < np.count_nonzero(weights)
    parts = on_replicas(
        two_replicas,
        lambda ranks, weights: kept_rows(ranks, ratio, weights),
        [ranks[:first], ranks[first:]],
        [weights[:first], weights[first:]],
    )
    np.testing.assert_array_equal(tf.concat(parts, 0), whole)
