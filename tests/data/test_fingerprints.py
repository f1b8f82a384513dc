"""What tells one network from another: weights, graph, constants and which tensor an output is."""

import keras
import numpy as np
import pytest

from keras_ssd import freeze
from keras_ssd.data.fingerprints import fingerprint_of


def fingerprint(model):
    return fingerprint_of(freeze(model))


def network(*, swapped=False, factor=2.0, table=1.0, inner="first"):
    """Two layers of one width; the embedding is one of them."""
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3))
    rows = keras.layers.Flatten()(images) * factor + np.full(48, table, "float32")
    first = keras.layers.Dense(3, name=inner)(rows)
    second = keras.layers.Dense(3)(rows)
    logits = keras.layers.Dense(2)(first - second)
    embedding = second if swapped else first
    return keras.Model(images, {"embedding": embedding, "logits": logits})


def test_a_network_made_again_is_the_same():
    assert fingerprint(network()) == fingerprint(network(inner="other_name"))


@pytest.mark.parametrize("other", [{"swapped": True}, {"factor": 3.0}, {"table": 2.0}], ids=str)
def test_networks_of_the_same_weights_and_layers(other):
    one, two = network(), network(**other)
    sums = [sorted(weight.sum() for weight in each.get_weights()) for each in (one, two)]
    assert sums[0] == sums[1]
    assert fingerprint(one) != fingerprint(two)


@keras.saving.register_keras_serializable(package="test_fingerprints")
class Scaled(keras.Model):
    """A subclassed model with a setting that is no weight."""

    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor
        self.dense = keras.layers.Dense(2, kernel_initializer="ones")

    def get_config(self):
        return {"factor": self.factor}

    def call(self, images):
        return self.dense(keras.ops.mean(images, axis=(1, 2))) * self.factor


def test_settings_of_a_subclassed_network():
    two, again, three = (Scaled(factor) for factor in (2, 2, 3))
    for model in (two, again, three):
        model(np.zeros([1, 4, 4, 3]))
    assert fingerprint(two) == fingerprint(again) != fingerprint(three)
