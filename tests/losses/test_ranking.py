import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd.losses import keep_mask, label_rank


def compiled(function, *specifications, jit_compile=False):
    return tf.function(function, input_signature=specifications, jit_compile=jit_compile)


# ---------------------------------------------------------------------------- label_rank


def test_rank_closed_form():
    scores = np.array([[3.0, 1.0, 2.0]] * 3 + [[1.0, 1.0, 1.0], [-math.inf, 0.0, math.inf]])
    rank = label_rank(scores, np.array([0, 1, 2, 2, 0]))
    assert rank.dtype == tf.int32
    np.testing.assert_array_equal(rank, [0, 2, 1, 0, 2])


def reference_rank(scores, labels):
    ranks = []
    for row, label in zip(scores, labels, strict=True):
        descending = sorted(row, reverse=True)
        ranks.append(descending.index(row[label]))  # equal scores: the first place
    return ranks


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("label_dtype", ["uint8", "int32", "int64"])
def test_rank_reference(dtype, label_dtype):
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, (40, 7)).astype(dtype)  # many equal scores
    labels = generator.integers(0, 7, 40)
    rank = label_rank(scores, labels.astype(label_dtype))
    np.testing.assert_array_equal(rank, reference_rank(scores, labels))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rank_with_unknown_shapes(jit_compile):
    scores = np.random.default_rng(1).normal(size=(9, 4)).astype("float32")
    labels = np.arange(9) % 4
    specifications = tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int64)
    rank = compiled(label_rank, *specifications, jit_compile=jit_compile)(scores, labels)
    np.testing.assert_array_equal(rank, reference_rank(scores, labels))


def test_rank_ignores_order_preserving_changes_and_follows_permutations():
    scores = np.random.default_rng(2).normal(size=(8, 5))
    labels = np.arange(8) % 5
    rank = label_rank(scores, labels).numpy()
    np.testing.assert_array_equal(label_rank(1e3 * scores + 7, labels), rank)
    np.testing.assert_array_equal(label_rank(scores[::-1], labels[::-1]), rank[::-1])
    np.testing.assert_array_equal(label_rank(scores[:, ::-1], 4 - labels), rank)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_labels_outside_the_columns_do_not_crash(jit_compile):
    function = tf.function(label_rank, jit_compile=jit_compile)
    rank = function(tf.constant([[1.0, 2.0, 3.0]] * 3), tf.constant([-1, 3, 2**31 - 1]))
    np.testing.assert_array_equal(rank, [2, 0, 0])


def test_rank_refuses_what_it_cannot_rank():
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        label_rank(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(TypeError, match="`scores` must be floating point, got int64"):
        label_rank(np.zeros((2, 3), "int64"), [0, 1])
    with pytest.raises(ValueError, match="turn one-hot labels into integers"):
        label_rank(np.zeros((2, 3)), np.zeros((2, 3), "int64"))


# ---------------------------------------------------------------------------- keep_mask


def reference_mask(ranks, ratio, valid=None):
    valid = [True] * len(ranks) if valid is None else valid
    correct = [j for j, rank in enumerate(ranks) if valid[j] and rank == 0]
    wrong = [j for j, rank in enumerate(ranks) if valid[j] and rank > 0]
    best_first = sorted(wrong, key=lambda j: (ranks[j], j))
    kept = correct + best_first[: int(len(wrong) * ratio)]
    return [float(j in kept) for j in range(len(ranks))]


MASKS = {  # name: (ranks, ratio, expected)
    "ties: the first rows": ([0, 1, 1, 2, 1, 1, 0, 1], 0.5, [1, 1, 1, 0, 1, 0, 1, 0]),
    "nothing kept": ([1, 1, 1], 0.3, [0, 0, 0]),
    "all correct": ([0, 0, 0], 0.0, [1, 1, 1]),
    "ratio 0": ([2, 0, 1], 0.0, [0, 1, 0]),
    "ratio 1": ([2, 0, 1], 1.0, [1, 1, 1]),
    "ratio 1 as an integer": ([2, 0, 1], 1, [1, 1, 1]),
    "no row": ([], 0.5, []),
    "one row, wrong": ([5], 0.99, [0]),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask_closed_form(name):
    ranks, ratio, expected = MASKS[name]
    mask = keep_mask(np.array(ranks, "int32"), ratio)
    assert mask.dtype == tf.float32
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.75, 1.0])
def test_mask_reference(ratio, jit_compile, static):
    size = 100 if static else None
    specifications = tf.TensorSpec([size], tf.int32), tf.TensorSpec([size], tf.float32)
    function = compiled(
        lambda ranks, valid: keep_mask(ranks, ratio, valid),
        *specifications,
        jit_compile=jit_compile,
    )
    generator = np.random.default_rng(3)
    for _ in range(5):
        ranks = generator.integers(0, 6, 100).astype("int32")
        valid = generator.integers(0, 2, 100).astype("float32")
        np.testing.assert_array_equal(function(ranks, valid), reference_mask(ranks, ratio, valid))


@pytest.mark.parametrize("case", golden_cases("sskd", "error_level_selection"))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden(case, dtype):
    ranks = label_rank(np.array(case["inputs"]["values"], dtype), case["inputs"]["target"])
    np.testing.assert_array_equal(ranks, case["expected"]["rank"])
    mask = keep_mask(ranks, case["params"]["ratio"])
    np.testing.assert_array_equal(mask, case["expected"]["keep"])


@pytest.mark.parametrize("case", golden_cases("sskd", "kept_wrong_count"))
def test_golden_counts(case):
    inputs = zip(case["inputs"]["n_wrong"], case["inputs"]["ratio"], strict=True)
    counts = [np.sum(keep_mask(np.ones(wrong, "int32"), ratio)) for wrong, ratio in inputs]
    np.testing.assert_array_equal(counts, case["expected"]["count"])


def counts_that_float32_gets_wrong():
    """(ratio, counts) for ratios of two digits and up to 400 wrong rows, as methods count them."""
    found = {}
    for hundredths in range(101):
        ratio = hundredths / 100
        exact = [int(count * ratio) for count in range(400)]
        single = np.floor(np.arange(400, dtype="float32") * np.float32(ratio)).astype(int)
        counts = [count for count in range(400) if exact[count] != single[count]]
        if counts:
            found[ratio] = counts
    return found


def test_float32_would_keep_another_number_of_rows():
    assert sum(len(counts) for counts in counts_that_float32_gets_wrong().values()) == 42


@pytest.mark.parametrize("mode", ["known", "unknown", "unknown, XLA"])
def test_counts_are_products_in_float64(mode):
    pairs = [
        (r, wrong) for r, counts in counts_that_float32_gets_wrong().items() for wrong in counts
    ]

    def kept_wrong(rows):
        masks = [keep_mask(tf.cast(rows < wrong, tf.int32), ratio) for ratio, wrong in pairs]
        return [tf.reduce_sum(m[:wrong]) for m, (_, wrong) in zip(masks, pairs, strict=True)]

    if mode != "known":  # the number of rows, while tracing
        specification = tf.TensorSpec([None], tf.int32)
        kept_wrong = compiled(kept_wrong, specification, jit_compile="XLA" in mode)
    expected = [int(wrong * ratio) for ratio, wrong in pairs]
    np.testing.assert_array_equal(kept_wrong(tf.range(400)), expected)


def test_no_dropped_row_has_a_smaller_rank_than_a_kept_one():
    ranks = np.random.default_rng(4).integers(0, 9, 64)
    mask = keep_mask(ranks, 0.6).numpy()
    assert mask[ranks == 0].all()
    assert ranks[mask == 1].max() <= ranks[mask == 0].min()


def test_permuting_rows_permutes_the_mask_where_no_ranks_are_equal():
    ranks = np.random.default_rng(5).permutation(50)
    order = np.random.default_rng(6).permutation(50)
    mask = keep_mask(ranks, 0.3).numpy()
    np.testing.assert_array_equal(keep_mask(ranks[order], 0.3), mask[order])


def test_invalid_rows_are_neither_kept_nor_counted():
    ranks, valid = np.array([0, 3, 1, 0, 2, 1, 4]), np.array([1, 1, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(keep_mask(ranks, 0.5, valid), [1, 0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(keep_mask(ranks, 1.0, valid), valid)
    np.testing.assert_array_equal(keep_mask(ranks, 1.0, np.zeros(7)), np.zeros(7))
    packed = keep_mask(ranks[valid == 1], 0.5).numpy()
    np.testing.assert_array_equal(keep_mask(ranks, 0.5, valid).numpy()[valid == 1], packed)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_large_batches_do_not_overflow(jit_compile):
    """65,536 columns times 200,000 rows is beyond 32 bits."""
    ranks = np.random.default_rng(7).integers(0, 65_536, 200_000).astype("int32")
    mask = tf.function(lambda ranks: keep_mask(ranks, 0.75), jit_compile=jit_compile)(ranks).numpy()
    wrong = ranks > 0
    order = np.lexsort([np.arange(200_000), ranks])
    kept = (~wrong).sum() + int(wrong.sum() * 0.75)
    expected = np.zeros(200_000)
    expected[order[:kept]] = 1
    np.testing.assert_array_equal(mask, expected)


def test_selection_has_no_gradient():
    scores = tf.constant([[1.0, 2.0], [2.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        mask = keep_mask(label_rank(scores, [0, 0]), 0.5)
    assert tape.gradient(mask, scores) is None


@pytest.mark.parametrize("ratio", [-0.1, 1.01, math.nan])
def test_ratio_is_a_share(ratio):
    with pytest.raises(ValueError, match=r"`ratio` must lie in 0\.\.1, got"):
        keep_mask(np.array([0, 1]), ratio)


def test_ranks_are_integers():
    with pytest.raises(TypeError, match="`ranks` must be integers, got float64"):
        keep_mask(np.array([0.0, 1.0]), 0.5)
