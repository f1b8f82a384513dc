"""Models opened into calls: whatever their graph, the answers and the variables stay right."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from freezing.networks import (
    FLOAT32,
    IMAGES,
    answer,
    chain,
    difference,
    drawn,
    frozen_answer,
    norm,
    norms_left,
    pool,
)


def residual():
    inputs = keras.Input((8, 8, 4))
    x = layers.ReLU()(norm()(layers.Conv2D(4, 3, padding="same")(inputs)))
    return drawn(keras.Model(inputs, pool()(norm()(layers.Conv2D(4, 1)(x)) + inputs / 2)))


def nested():
    inner = chain(layers.Conv2D(5, 3), layers.Dropout(0.5), name="inside")
    middle = keras.Sequential([keras.Input((8, 8, 4)), inner, norm()])
    inputs = keras.Input((8, 8, 4))
    x = middle(inputs, training=False)
    return drawn(keras.Model(inputs, {"logits": layers.Dense(3)(pool()(x)), "embedding": x}))


def shared():
    """A convolution that is called twice, a batch norm behind each call."""
    inputs = keras.Input((8, 8, 4))
    conv = layers.Conv2D(4, 3, padding="same")
    x = norm()(conv(layers.ReLU()(norm()(conv(inputs)))))
    return drawn(keras.Model(inputs, pool()(x)))


def same_names():
    """Two inner models with layers of the same names."""
    parts = [chain(layers.Conv2D(4, 1, name="conv"), norm(name="bn")) for _ in range(2)]
    inputs = keras.Input((8, 8, 4))
    for seed, part in enumerate(parts):
        drawn(part, seed)
    return keras.Model(inputs, pool()(parts[1](parts[0](inputs))))


def nested_twice():
    """One inner model that is called twice."""
    inner = chain(layers.Conv2D(4, 1), norm())
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, pool()(inner(layers.ReLU()(inner(inputs)))))


def across_the_border():
    """Convolution outside and its batch norm inside, and the other way round."""
    inner = chain(norm(), layers.ReLU(), norm(), shape=(6, 6, 5))
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(3, 1)(inner(layers.Conv2D(5, 3)(inputs)))
    return drawn(keras.Model(inputs, pool()(x)))


def unnamed_list():
    inputs = keras.Input((8, 8, 4))
    return drawn(keras.Model(inputs, [pool()(norm()(layers.Conv2D(5, 3)(inputs)))]))


def by_keyword():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(5, 3)(inputs=layers.Dropout(0.5)(inputs))
    return drawn(keras.Model(inputs, pool()(layers.BatchNormalization()(inputs=x))))


def dropout_alone():
    inputs = keras.Input((4,))
    return keras.Model(inputs, {"logits": layers.Dropout(0.5)(inputs)})


GRAPHS = {
    "residual": residual,
    "nested": nested,
    "shared": shared,
    "same names": same_names,
    "nested twice": nested_twice,
    "across the border": across_the_border,
    "list of one": unnamed_list,
    "by keyword": by_keyword,
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs(case):
    model = GRAPHS[case]()
    before, count = answer(model), len(model.weights)
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), before) < FLOAT32
    assert norms_left(frozen) == 0
    assert difference(answer(model), before) == 0
    assert len(model.weights) == count


def test_the_input_is_handed_on():
    rows = IMAGES[:, 0, 0]
    np.testing.assert_array_equal(frozen_answer(ssd.freeze(dropout_alone()), rows)[0], rows)


def test_identity_of_several_tensors():
    inputs = keras.Input((8, 8, 4))
    pair = layers.Identity()([layers.Conv2D(5, 3)(inputs), layers.Conv2D(5, 3)(inputs)])
    model = keras.Model(inputs, pool()(pair[0] + 2 * pair[1]))
    assert difference(frozen_answer(ssd.freeze(model)), answer(model)) < FLOAT32


# --- Models inside models -----------------------------------------------------------------------


def test_inputs_are_cast_as_the_models_cast_them():
    """A nested model's input is of another type than what it is given."""
    inner = chain(layers.Rescaling(2.0), layers.Conv2D(5, 3), norm(), dtype="int32")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, pool()(inner(inputs)))
    images = 20 * IMAGES
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen, images), answer(model, images)) < FLOAT32
    rounded = frozen_answer(frozen, np.floor(images))
    assert difference(rounded, frozen_answer(frozen, images)) == 0


def test_the_values_of_a_frozen_backbone_are_taken(tmp_path):
    """They are those when it was frozen, also when the file was read back."""
    model = chain(layers.Conv2D(5, 3), norm(), pool(), layers.Dense(3))
    network = ssd.with_projection(model, backbone="frozen")
    drawn(model, seed=1)
    expected = answer(network)
    assert difference(frozen_answer(ssd.freeze(network)), expected) < FLOAT32
    assert norms_left(ssd.freeze(network)) == 0
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert difference(frozen_answer(ssd.freeze(loaded)), expected) < FLOAT32


def test_a_frozen_backbone_inside_a_frozen_backbone():
    """The outer one has values of its own for all that is in it."""
    parts = [chain(layers.Conv2D(4, 1), norm()) for _ in range(2)]
    inner = ssd.layers.FrozenBackbone(parts[0])
    inputs = keras.Input((8, 8, 4))
    outer = ssd.layers.FrozenBackbone(keras.Model(inputs, parts[1](inner(inputs))))
    model = keras.Model(inputs, pool()(outer(inputs)))
    expected = answer(model)
    for variable in inner.variables:
        variable.assign(variable + 1)
    drawn(parts[0], seed=1)
    assert difference(frozen_answer(ssd.freeze(model)), expected) < FLOAT32


@pytest.mark.filterwarnings("ignore:.*was passed an input with a mask")  # Keras', of the outputs
def test_masks_reach_the_layers_inside():
    steps = keras.Input((6, 4))
    inner = keras.Model(steps, layers.LSTM(3)(steps))
    tokens = keras.Input((6,), dtype="int32")
    model = keras.Model(tokens, inner(layers.Embedding(9, 4, mask_zero=True)(tokens)))
    rows = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]])
    assert difference(frozen_answer(ssd.freeze(model), rows), answer(model, rows)) < FLOAT32


def two_inputs(structure):
    first, second = keras.Input((8, 8, 4), name="b"), keras.Input((8, 8, 4), name="a")
    x = norm()(layers.Conv2D(5, 3)(first)) + layers.Conv2D(5, 3)(second)
    return drawn(keras.Model(structure(first, second), pool()(x)))


@pytest.mark.parametrize("structure", [lambda b, a: [b, a], lambda b, a: {"b": b, "a": a}])
def test_several_inputs(structure, caplog):
    """In any order that Keras takes; nested, such a model runs as it is, and the log says so."""
    model = two_inputs(structure)
    given = {"a": tf.constant(IMAGES), "b": tf.constant(IMAGES[::-1])}
    frozen = ssd.freeze(model, preprocessing=lambda _: given)
    expected = [np.asarray(model(given, training=False))]
    assert difference(frozen_answer(frozen), expected) < FLOAT32
    assert norms_left(frozen) == 0
    assert caplog.text == ""
    inputs = keras.Input((8, 8, 4))
    outer = keras.Model(inputs, model(structure(inputs[:, ::-1], inputs)))
    assert difference(frozen_answer(ssd.freeze(outer)), answer(outer)) < FLOAT32
    assert "not folded" in caplog.text
    assert caplog.text.rstrip().endswith(model.name)


def test_layers_inside_layers_are_named(caplog):
    class Block(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.norm = layers.BatchNormalization()

        def call(self, x, training=None):
            return self.norm(x, training=training)

    model = chain(layers.Reshape((2, 4, 8, 4)), layers.TimeDistributed(norm(), name="times"))
    wrapped = keras.Sequential([model, layers.Reshape((8, 8, 4)), Block(name="block")])
    wrapped.build((None, 8, 8, 4))
    frozen = ssd.freeze(wrapped)
    assert difference(frozen_answer(frozen), answer(wrapped)) < FLOAT32
    assert caplog.text.rstrip().endswith(": times, block")


# --- Layers and models of the user --------------------------------------------------------------


def test_layers_that_keras_does_not_know_run_as_they_are():
    class Power(layers.Layer):
        def build(self, shape):
            self.exponent = self.add_weight(shape=(shape[-1],), initializer="ones", name="power")

        def call(self, x, training=None):
            return x ** (2 * self.exponent) if not training else x

    model = chain(layers.Conv2D(5, 3), norm(), Power(), pool(), Power())
    frozen = ssd.freeze(model)
    expected = answer(model)
    assert difference(frozen_answer(frozen), expected) < FLOAT32
    for weight in model.weights:
        weight.assign(weight + 1)
    assert difference(frozen_answer(frozen), expected) < FLOAT32


class OwnCall(keras.Model):
    """A model that has a graph, but answers otherwise."""

    def call(self, inputs, training=None):
        return 3 + super().call(inputs, training=training)


def own_call(inside):
    inner = chain(layers.Conv2D(5, 3), norm(), pool())
    model = OwnCall(inner.input, inner.output, name="own")
    if not inside:
        return model
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, layers.ReLU()(model(inputs)))


@pytest.mark.parametrize("inside", [False, True])
def test_a_call_of_the_users_decides(inside, caplog):
    model = own_call(inside)
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) == 0
    expected = "1 layer(s) of 'functional" if inside else "freeze: 'own' is a subclassed model"
    assert expected in caplog.text
