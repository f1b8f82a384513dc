"""What a frozen network is besides its answers: precision, devices, variables, randomness."""

import random

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
    pool,
)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_in_mixed_precision_keeps_it(policy):
    keras.config.set_dtype_policy(policy)
    model = chain(
        layers.Conv2D(5, 3), norm(), layers.ReLU(), norm(), layers.ReLU(), pool(), layers.Dense(3)
    )
    keras.config.set_dtype_policy("float32")
    frozen = ssd.freeze(model)
    half = policy.removeprefix("mixed_")
    assert frozen(tf.constant(IMAGES))["logits"].dtype == half
    got, expected = frozen_answer(frozen)[0].astype("float32"), answer(model)[0].astype("float32")
    assert difference([got], [expected]) < {"bfloat16": 2**-6, "float16": 2**-9}[half]


def test_rows_without_their_last_dimension():
    model = chain(layers.Conv2D(5, 3), norm(), pool(), shape=(8, 8, 1))
    rows = IMAGES[..., 0]
    assert difference(frozen_answer(ssd.freeze(model), rows), answer(model, rows)) < FLOAT32


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_layer_that_is_called_often_is_copied_once(dtype):
    inputs = keras.Input((8, 8, 4))
    conv, bn = layers.Conv2D(4, 3, padding="same"), norm()
    x = inputs
    for _ in range(3):
        x = bn(layers.ReLU()(conv(x)))
    model = drawn(keras.Model(inputs, pool()(x)))
    frozen = ssd.freeze(model, dtype=dtype)
    assert len(frozen.variables) == 6
    assert difference(frozen_answer(frozen), answer(model)) < (2**-6 if dtype else FLOAT32)


def test_each_variable_is_made_once_and_never_trained():
    model = chain(
        layers.Conv2D(5, 3), norm(), layers.ReLU(), norm(), layers.ReLU(), pool(), layers.Dense(3)
    )
    made = []

    def creator(next_creator, **options):
        made.append(next_creator(**options))
        return made[-1]

    with tf.variable_creator_scope(creator):
        frozen = ssd.freeze(model)
    assert {id(v.value) for v in frozen.variables} == {id(variable) for variable in made}
    assert not any(variable.trainable for variable in frozen.variables)


def test_variables_are_named_as_the_layers():
    model = chain(
        layers.Conv2D(5, 3, name="conv"),
        norm(name="folded"),
        layers.ReLU(),
        norm(name="left"),
        layers.Activation("relu"),
        pool(),
        layers.Dense(3, name="head"),
    )
    paths = [variable.path.replace("/", ".") for variable in ssd.freeze(model).variables]
    names = [path.split(".")[0] for path in paths]
    assert names == ["conv", "folded", *4 * ["left"], *2 * ["head"]]


def test_inference_inside_a_model_in_training():
    inputs = keras.Input((8, 8, 4))
    x = layers.Reshape((64, 5))(layers.Conv2D(5, 1)(inputs))
    x = layers.MultiHeadAttention(1, 2, dropout=0.5)(x, x)
    frozen = ssd.freeze(keras.Model(inputs, x), dtype="bfloat16")

    class Student(keras.Model):
        def call(self, images, training=None):  # noqa: ARG002 - what is inside could ask for it
            return frozen(images)["logits"]

    got = Student()(IMAGES, training=True)
    np.testing.assert_array_equal(got, frozen(IMAGES)["logits"])


def test_nothing_happens_to_the_model():
    """Not to its losses, its random states or its weights."""
    model = chain(
        layers.ReLU(activity_regularizer="l2"),
        layers.RandomFlip(),
        layers.Conv2D(5, 3, activity_regularizer="l2"),
        layers.Dropout(0.5),
        norm(),
        pool(),
    )
    before = [np.asarray(v) for v in model.variables]
    frozen = ssd.freeze(model)
    frozen_answer(frozen)
    assert model.losses == []
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_freezing_draws_no_random_number(dtype):
    model = chain(
        layers.RandomFlip(),
        layers.Conv2D(5, 3),
        layers.Dropout(0.5),
        norm(),
        layers.ReLU(),
        norm(),
        pool(),
    )
    inputs = keras.Input((8, 8, 4))
    maps = layers.Reshape((64, 5))(layers.Conv2D(5, 1)(inputs))
    attended = layers.MultiHeadAttention(1, 2, dropout=0.5)(maps, maps)
    model = keras.Model(inputs, {"logits": model(inputs), "attended": attended})
    keras.utils.set_random_seed(3)
    expected = layers.Dense(4).kernel_initializer((4, 4)).numpy()
    keras.utils.set_random_seed(3)
    state = random.getstate()
    ssd.freeze(model, dtype=dtype)
    assert random.getstate() == state
    np.testing.assert_array_equal(layers.Dense(4).kernel_initializer((4, 4)), expected)


def test_mirrored(two_replicas):
    model = chain(layers.Conv2D(5, 3), norm(), layers.ReLU(), norm(), pool(), layers.Dense(3))
    with two_replicas.scope():
        frozen = ssd.freeze(model)
        assert all(
            two_replicas.extended.variable_created_in_scope(v.value) for v in frozen.variables
        )
    results = tf.function(lambda x: two_replicas.run(frozen, args=(x,)))(tf.constant(IMAGES))
    for part in two_replicas.experimental_local_results(results["logits"]):
        assert difference([part.numpy()], answer(model)) < FLOAT32


def test_xla():
    model = chain(layers.Conv2D(5, 3), norm(), layers.ReLU(), norm(), pool(), layers.Dense(3))
    compiled = tf.function(ssd.freeze(model), jit_compile=True)
    assert difference([compiled(tf.constant(IMAGES))["logits"].numpy()], answer(model)) < FLOAT32
