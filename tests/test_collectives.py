import numpy as np
import pytest
import tensorflow as tf
from replicas import on_replicas

from keras_ssd.collectives import all_gather, all_sum, num_replicas, replica_rows, row_count


def test_one_replica_hears_itself():
    rows = tf.constant([[1.0, 2.0]], tf.float16)
    assert all_gather(rows) is rows
    assert all_sum(rows) is rows
    assert replica_rows(7) == (0, 7)
    assert num_replicas() == 1


def test_outside_of_a_step_there_is_nobody_to_talk_to(two_replicas):
    rows = tf.constant([1.0])
    with two_replicas.scope():
        assert num_replicas() == 2
        assert all_gather(rows) is rows
        assert replica_rows(3) == (0, 3)


SPLITS = {"equal": (3, 3), "unequal": (5, 2), "first empty": (0, 4), "second empty": (3, 0)}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("tail", [(), (3,), (2, 1, 3)], ids=str)
def test_all_gather_joins_rows_in_replica_order(two_replicas, split, tail):
    rows = np.random.default_rng(0).normal(size=(sum(split), *tail))
    halves = [tf.constant(rows[: split[0]]), tf.constant(rows[split[0] :])]
    for gathered in on_replicas(two_replicas, all_gather, halves):
        np.testing.assert_array_equal(gathered, rows)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_replica_rows(two_replicas, split):
    halves = [tf.zeros([rows, 2]) for rows in split]
    places = on_replicas(two_replicas, lambda rows: replica_rows(row_count(rows)), halves)
    assert [tuple(map(int, place)) for place in places] == [
        (0, sum(split)),
        (split[0], sum(split)),
    ]


DTYPES = {
    tf.float16: tf.float32,
    tf.bfloat16: tf.float32,
    tf.float32: tf.float32,
    tf.float64: tf.float64,
    tf.int32: tf.int32,
    tf.int64: tf.int32,
    tf.uint8: tf.int32,
    tf.bool: tf.int32,
}


@pytest.mark.parametrize(("given", "gathered"), DTYPES.items(), ids=lambda dtype: dtype.name)
def test_what_cannot_be_gathered_is_cast(two_replicas, given, gathered):
    halves = [tf.cast([1, 0, 1], given), tf.cast([1], given)]
    for result in on_replicas(two_replicas, all_gather, halves):
        assert result.dtype == gathered
        np.testing.assert_array_equal(result, [1, 0, 1, 1])


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_gradient_of_all_gather_is_the_sum_over_replicas(two_replicas, split, dtype):
    generator = np.random.default_rng(0)
    rows = generator.integers(-4, 5, (sum(split), 2)).astype(dtype)
    factors = generator.integers(-4, 5, (2, sum(split), 2)).astype(dtype)

    def gradient(mine, factors):
        with tf.GradientTape() as tape:
            tape.watch(mine)
            gathered = all_gather(mine)
            value = tf.reduce_sum(tf.cast(factors, gathered.dtype) * gathered**2)
        return tape.gradient(value, mine)

    halves = [tf.constant(rows[: split[0]]), tf.constant(rows[split[0] :])]
    found = on_replicas(two_replicas, gradient, halves, [tf.constant(each) for each in factors])
    assert [len(part) for part in found] == list(split)
    np.testing.assert_array_equal(tf.concat(found, 0), 2 * rows * factors.sum(0))


def test_all_sum(two_replicas):
    halves = [tf.constant([1.0, 2.0]), tf.constant([10.0, 20.0])]
    for found in on_replicas(
        two_replicas, lambda mine: all_sum({"a": mine, "b": (mine[0],)}), halves
    ):
        np.testing.assert_array_equal(found["a"], [11, 22])
        assert float(found["b"][0]) == 11


def test_row_count():
    assert row_count(tf.zeros([5, 2])) == 5
    assert row_count(np.zeros([5, 2])) == 5

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def counted(rows):
        assert tf.is_tensor(row_count(rows))
        return row_count(rows)

    assert int(counted(tf.zeros([5, 2]))) == 5
