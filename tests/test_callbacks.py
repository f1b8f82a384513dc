import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd import data
from keras_ssd.callbacks import FollowEpoch


class Recorder(keras.Model):
    """Keeps the labels of every training step."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.compile(run_eagerly=True)

    def call(self, images):
        return images

    def train_step(self, batch):
        self.seen.append(batch[1].numpy())
        return {"loss": 0.0}


@pytest.fixture
def train():
    return data.load("digits", batch_size=256, validation=0).train


def fit(dataset, callback, model=None, **arguments):
    """The labels that `fit` saw, in order."""
    model = model or Recorder()
    model.fit(dataset, callbacks=[callback], shuffle=False, verbose=0, **arguments)
    return np.concatenate(model.seen).reshape(-1, len(dataset) * 256)


def test_each_epoch_has_an_order_of_its_own(train):
    whole = fit(train, FollowEpoch(train), epochs=3)
    assert len({tuple(epoch) for epoch in whole}) == 3
    np.testing.assert_array_equal(whole, fit(train, FollowEpoch(train), epochs=3))


def test_a_resumed_run_sees_what_an_undisturbed_one_saw(train):
    whole = fit(train, FollowEpoch(train), epochs=4)
    for start in (1, 3):
        resumed = fit(train, FollowEpoch(train), initial_epoch=start, epochs=4)
        np.testing.assert_array_equal(resumed, whole[start:])


def test_steps_of_a_whole_epoch_change_nothing(train):
    whole = fit(train, FollowEpoch(train), epochs=3)
    steps = fit(train, FollowEpoch(train), epochs=3, steps_per_epoch=len(train))
    np.testing.assert_array_equal(steps, whole)


@pytest.mark.parametrize("steps", [None, 4])
def test_two_replicas_see_the_order_of_one(train, two_replicas, steps):
    whole = fit(train, FollowEpoch(train), epochs=3)
    with two_replicas.scope():
        model = Recorder()
    seen = fit(train, FollowEpoch(train), model, epochs=3, steps_per_epoch=steps)
    assert len(model.seen) == 2 * 3 * 4
    np.testing.assert_array_equal(seen, whole)


def test_derived_data_set_is_followed(train):
    whole = fit(train, FollowEpoch(train), epochs=2)
    derived = train.map(lambda images, labels: (images, labels + 1)).take(2)
    seen = fit(derived, FollowEpoch(derived), epochs=2)
    np.testing.assert_array_equal(seen, whole[:, :512] + 1)


def test_steps_that_cut_epochs_elsewhere_are_warned_about(train):
    callback = FollowEpoch(train)
    arguments = {"callbacks": [callback], "steps_per_epoch": 2, "shuffle": False, "verbose": 0}
    with pytest.warns(UserWarning, match="has 2 steps but the training set 4 batches"):
        Recorder().fit(train, epochs=2, **arguments)
    Recorder().fit(train, epochs=1, **arguments)  # warnings are errors


@pytest.mark.parametrize("dataset", [tf.data.Dataset.range(3), np.zeros(3)], ids=["plain", "array"])
def test_refuses_what_follows_no_epoch(dataset):
    with pytest.raises(ValueError, match="FollowEpoch needs the `train`"):
        FollowEpoch(dataset)
