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


# --- What comes first ---------------------------------------------------------------------------


def preprocessing(*, scale=2.0, wired=False, order=1):
    """A network without weights; `wired` the other way and in the other `order`."""
    images = keras.Input((4, 4, 3))
    double, shift = keras.layers.Rescaling(scale), keras.layers.Rescaling(1.0, 3.0)
    first, second = (double, shift)[::order]
    x = first(images)
    return keras.Model(images, keras.layers.Add()([x, second(x if wired else images)]))


@pytest.mark.parametrize("other", [{"scale": 3.0}, {"wired": True}, {"order": -1}], ids=str)
def test_preprocessing_of_the_same_kind(other):
    model, others = network(), {**other, "wired": True} if "order" in other else other
    start = {"wired": True} if "order" in other else {}
    one, again, two = (
        fingerprint_of(freeze(model, preprocessing=preprocessing(**options)))
        for options in (start, start, others)
    )
    assert one == again != two


def test_preprocessing_that_was_not_built_yet():
    model = network()
    layers = [keras.layers.Rescaling(2.0), keras.layers.Normalization(mean=1.0, variance=4.0)]
    first = keras.Sequential(layers)
    before = fingerprint_of(freeze(model, preprocessing=first))
    first(np.zeros([1, 4, 4, 3], "float32"))
    assert fingerprint_of(freeze(model, preprocessing=first)) == before
    turned = keras.Sequential(layers[::-1])
    assert fingerprint_of(freeze(model, preprocessing=turned)) != before


# --- Layers of a user ---------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_fingerprints")
class RandomFeatures(keras.layers.Layer):
    """A fixed random matrix, which a seed decides."""

    def __init__(self, seed, **options):
        super().__init__(**options)
        self.seed = seed

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}

    def call(self, rows):
        matrix = np.random.RandomState(self.seed).standard_normal((48, 5))
        return keras.ops.matmul(rows, matrix.astype("float32"))


def with_layer(layer):
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3))
    features = layer(keras.layers.Flatten()(images))
    return keras.Model(images, {"logits": keras.layers.Dense(2)(features)})


def test_the_seed_of_a_layer_that_is_not_of_keras():
    one, again, two = (fingerprint(with_layer(RandomFeatures(seed))) for seed in (1, 1, 2))
    assert one == again != two


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_seed_of_dropout_is_of_training(wrapped):
    def layer():
        dropout = keras.layers.Dropout(0.5)
        if not wrapped:
            return dropout
        rows = keras.Sequential(
            [keras.layers.Reshape((48, 1)), keras.layers.TimeDistributed(dropout)]
        )
        return keras.Sequential([rows, keras.layers.Flatten()])

    assert fingerprint(with_layer(layer())) == fingerprint(with_layer(layer()))


def graph(rows):
    """A network on what is made of the pixels `[B, 4, 4, 3]` by operations alone."""
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3))
    return keras.Model(images, {"logits": keras.layers.Dense(2)(rows(images))})


def pooled(images):
    return keras.ops.mean(images, axis=(1, 2))


OPERATIONS = {
    "crop": [lambda x: pooled(x[:, :2]), lambda x: pooled(x[:, 2:])],
    "order of the channels": [lambda x: pooled(x[..., ::1]), lambda x: pooled(x[..., ::-1])],
    "type": [
        lambda x, dtype=dtype: keras.ops.cast(keras.ops.cast(pooled(x), dtype), "float32")
        for dtype in ("float32", "int32")
    ],
    "variable": [
        lambda x, factor=factor: pooled(x) * keras.Variable([factor] * 3) for factor in (1.0, 5.0)
    ],
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_arguments_of_operations(case):
    one, two = OPERATIONS[case]
    assert fingerprint(graph(one)) == fingerprint(graph(one)) != fingerprint(graph(two))


def activation(factor, inner):
    def activate(x):
        return inner(x) * factor

    return activate


def test_functions_of_a_user_are_known_by_what_they_compute():
    def found(function):
        layer = keras.layers.Dense(3, activation=function, kernel_initializer="ones")
        return fingerprint(with_layer(layer))

    base = found(activation(2.0, keras.ops.tanh))
    assert found(activation(2.0, keras.ops.tanh)) == base
    others = [
        activation(2.0, keras.ops.relu),
        activation(3.0, keras.ops.tanh),
        lambda x: x,
        lambda x: x * 3,
        keras.ops.tanh,
        None,
    ]
    assert len({base, *map(found, others)}) == 1 + len(others)
    assert found("tanh") == found(keras.activations.tanh)


class Untold(keras.layers.Layer):
    """A layer that does not tell its settings."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def call(self, rows):
        return rows * self.table


def test_a_layer_that_does_not_tell_its_settings():
    model = with_layer(Untold(np.ones(48, "float32")))
    with pytest.raises(ValueError, match=r"'untold' of Untold has no `get_config`.*: give it one"):
        fingerprint(model)
