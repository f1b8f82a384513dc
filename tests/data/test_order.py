import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd import data
from keras_ssd.data import sources
from keras_ssd.data.order import by_epoch, epochs_of


def numbers(dataset):
    return [int(number) for number in dataset.unbatch()]


def shuffled(seed=0, size=12, per_epoch=None):
    def elements(seeds):
        order = tf.random.experimental.stateless_shuffle(tf.range(size), seeds)
        return tf.data.Dataset.from_tensor_slices(order)

    return by_epoch(elements, seed, size, per_epoch).batch(4)


def test_order_is_a_function_of_seed_and_epoch():
    first, second, reseeded = shuffled(), shuffled(), shuffled(seed=1)
    orders = {}
    for epoch in (0, 1, 0, 1):
        epochs_of(first)[0].assign(epoch)
        assert numbers(first) == numbers(first)
        assert orders.setdefault(epoch, numbers(first)) == numbers(first)
    assert orders[0] == numbers(second)
    assert len({tuple(order) for order in [*orders.values(), numbers(reseeded)]}) == 3
    assert all(sorted(order) == list(range(12)) for order in orders.values())


@pytest.mark.parametrize("per_epoch", [5, 12, 31])
def test_epochs_of_another_length_go_on_through_the_rounds(per_epoch):
    whole, parts = shuffled(), shuffled(per_epoch=per_epoch)
    seen = {}
    for epoch in reversed(range(-(-36 // per_epoch))):
        epochs_of(parts)[0].assign(epoch)
        seen[epoch] = numbers(parts)
        assert len(seen[epoch]) == per_epoch
    assert len(parts) == -(-per_epoch // 4)
    endless = [number for epoch in sorted(seen) for number in seen[epoch]]
    for number in range(3):
        epochs_of(whole)[0].assign(number)
        assert endless[12 * number : 12 * (number + 1)] == numbers(whole)


def test_order_is_drawn_when_the_iterator_starts():
    dataset = shuffled()
    expected = numbers(dataset)
    iterator = dataset.unbatch().as_numpy_iterator()
    seen = [next(iterator)]
    epochs_of(dataset)[0].assign(1)
    assert [*seen, *iterator] == expected


def test_derived_data_sets_keep_the_link():
    train, other = shuffled(), shuffled()
    (epoch,) = epochs_of(train)
    derived = train.map(lambda x: x + 1).unbatch().batch(3).take(2).prefetch(1)
    assert epochs_of(derived)[0] is epoch
    assert epochs_of(tf.data.Dataset.zip((train, train)))[0] is epoch
    assert len(epochs_of(tf.data.Dataset.zip((train, other.map(lambda x: x))))) == 2


@pytest.mark.parametrize("other", [tf.data.Dataset.range(3), np.zeros(3), None])
def test_anything_else_follows_no_epoch(other):
    assert epochs_of(other) == []


def test_variable_outlives_the_names_that_held_it():
    dataset = shuffled()
    gc.collect()
    keras.backend.clear_session()
    assert len(numbers(dataset)) == 12


def test_made_inside_a_strategy(two_replicas):
    with two_replicas.scope():
        dataset = shuffled()
    expected = numbers(dataset)
    with two_replicas.scope():
        epochs_of(dataset)[0].assign(1)
    assert numbers(dataset) != expected
    epochs_of(dataset)[0].assign(0)
    assert numbers(dataset) == expected


@pytest.mark.parametrize("streamed", [False, True])
def test_loaded_sets_have_an_order_for_each_epoch(prepare, monkeypatch, streamed):
    if streamed:
        monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    folder = prepare({"train": 40, "test": 4}, shards=4)
    orders = []
    for global_seed in range(2):
        tf.random.set_seed(global_seed)
        train = data.load("tiny", 4, validation=0, data_dir=folder).train
        for epoch in (0, 1):
            epochs_of(train)[0].assign(epoch)
            orders.append(np.concatenate([images[:, 0, 0, 0] for images, _ in train]).tolist())
    assert orders[:2] == orders[2:]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))


def test_workers_share_the_rows_of_each_batch():
    policy = shuffled().map(tf.identity).options().experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.DATA
