"""Batch normalisation: the fused kernel against Keras and NumPy, the unbiased variance."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.layers import BatchNormalization

PAPER = {"momentum": 0.9, "epsilon": 1e-5}


def images(*shape, seed=0, dtype="float32"):
    return tf.cast(2 * np.random.RandomState(seed).standard_normal(shape) + 1, dtype)


def layer_like(reference, shape, **kwargs):
    """This library's layer with the weights of Keras' one, which are made up if there are none."""
    layer = BatchNormalization(**kwargs)
    layer.build(shape)
    if not reference.built:
        reference.build(shape)
        random = np.random.RandomState(1)
        channels = reference.gamma.shape
        reference.gamma.assign(random.uniform(0.5, 1.5, channels))
        reference.beta.assign(random.standard_normal(channels))
        reference.moving_mean.assign(random.standard_normal(channels))
        reference.moving_variance.assign(random.uniform(0.5, 1.5, channels))
    layer.set_weights(reference.get_weights())
    return layer


def fused_operations(layer, inputs, **kwargs):
    graph = tf.function(lambda x: layer(x, **kwargs)).get_concrete_function(inputs).graph
    return [operation.type for operation in graph.get_operations()].count("FusedBatchNormV3")


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_values_and_gradients_equal_those_of_keras(policy, training, jit_compile):
    x = images(8, 5, 4, 3, dtype=keras.DTypePolicy(policy).compute_dtype)
    weight = tf.cast(images(*x.shape, seed=2), x.dtype)
    keras_layer = keras.layers.BatchNormalization(**PAPER)
    layer = layer_like(keras_layer, x.shape, **PAPER, dtype=policy)

    def run(layer, x, weight):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
        variables = [x, layer.gamma.value, layer.beta.value]
        return outputs, *tape.gradient(outputs, variables, output_gradients=weight)

    expected = run(keras_layer, tf.cast(x, "float32"), tf.cast(weight, "float32"))
    actual = tf.function(lambda: run(layer, x, weight), jit_compile=jit_compile)()
    rounding = {"float32": 2**-18, "mixed_float16": 2**-10, "mixed_bfloat16": 2**-7}[policy]
    for value, reference in zip(actual, expected, strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(tf.cast(value, "float32"), reference, atol=rounding * scale)


@pytest.mark.parametrize("kernel", ["fused", "keras"])
def test_one_training_step_stores_the_unbiased_variance(kernel):
    dtype, digits = ("float32", 1e-6) if kernel == "fused" else ("float64", 1e-14)
    layer = BatchNormalization(**PAPER, dtype=dtype)
    x = images(2, 3, 2, 4, dtype=dtype)
    layer(x, training=True)
    rows = x.numpy().astype("float64").reshape(-1, 4)
    n = len(rows)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * rows.mean(0), rtol=digits)
    np.testing.assert_allclose(
        layer.moving_variance, 0.9 + 0.1 * rows.var(0) * n / (n - 1), rtol=digits
    )


CASES = {  # name: (constructor arguments, shape, axis of the channels)
    "rank 2": ({}, (7, 3), 1),
    "channels first": ({"axis": 1}, (2, 3, 4, 2), 1),
    "no scale": ({"scale": False}, (2, 3, 4, 5), 3),
    "no centre": ({"center": False}, (2, 3, 4, 5), 3),
    "rank 5": ({}, (2, 2, 3, 2, 4), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_unfused_paths_store_the_unbiased_variance_too(case):
    arguments, shape, axis = CASES[case]
    x = images(*shape, dtype="float64")
    layer = BatchNormalization(**PAPER, **arguments, dtype="float64")
    layer(x, training=True)
    rows = np.moveaxis(x.numpy(), axis, -1).reshape(-1, shape[axis])
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-13)
    assert fused_operations(layer, x, training=True) == 0


def test_masked_values_are_not_counted(float64):
    x, mask = images(4, 5, 3, dtype="float64"), np.random.RandomState(3).rand(4, 5) < 0.6
    layer = BatchNormalization(**PAPER)
    layer(x, training=True, mask=tf.constant(mask))
    kept = x.numpy()[mask]
    expected = 0.9 + 0.1 * kept.var(0, ddof=1)
    # Keras divides by the count plus its fuzz factor
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=keras.config.epsilon())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_a_single_value_a_channel_is_finite(dtype, jit_compile):
    layer = BatchNormalization(**PAPER, dtype=dtype)
    x = images(1, 1, 1, 3, dtype=dtype)
    layer.build(x.shape)
    step = tf.function(lambda x: layer(x, training=True), jit_compile=jit_compile)
    np.testing.assert_array_equal(step(x), np.zeros(x.shape))
    np.testing.assert_allclose(layer.moving_variance, [0.9] * 3, rtol=1e-6)


FUSED = {  # name: (constructor arguments, shape, is fused)
    "float32": ({}, (2, 4, 4, 3), True),
    "bfloat16": ({"dtype": "mixed_bfloat16"}, (2, 4, 4, 3), True),
    "float16": ({"dtype": "mixed_float16"}, (2, 4, 4, 3), True),
    "axis 3": ({"axis": 3}, (2, 4, 4, 3), True),
    "float64": ({"dtype": "float64"}, (2, 4, 4, 3), False),
    "rank 3": ({}, (2, 4, 3), False),
    "axis 1": ({"axis": 1}, (2, 3, 4, 4), False),
    "no scale": ({"scale": False}, (2, 4, 4, 3), False),
    "no centre": ({"center": False}, (2, 4, 4, 3), False),
    "synchronized": ({"synchronized": True}, (2, 4, 4, 3), False),
    "renormalised": ({"renorm": True}, (2, 4, 4, 3), False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", FUSED)
def test_which_layers_run_fused(case, training):
    arguments, shape, fused = FUSED[case]
    layer = BatchNormalization(**arguments)
    x = images(*shape, dtype=layer.compute_dtype)
    layer.build(shape)
    assert fused_operations(layer, x, training=training) == fused


def test_a_mask_keeps_the_layer_off_the_fused_kernel():
    layer = BatchNormalization()
    x, mask = images(2, 4, 4, 3), tf.ones((2, 4, 4), "bool")
    layer.build(x.shape)
    assert fused_operations(layer, x, training=True, mask=mask) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_layer_that_is_not_trainable_stays_in_inference_mode(dtype):
    layer, x = BatchNormalization(dtype=dtype), images(2, 4, 4, 3, dtype=dtype)
    layer.build(x.shape)
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_renormalisation_is_that_of_keras():
    x = images(4, 3, 3, 2)
    theirs, ours = keras.layers.BatchNormalization(renorm=True), BatchNormalization(renorm=True)
    np.testing.assert_array_equal(ours(x, training=True), theirs(x, training=True))
    np.testing.assert_array_equal(ours.moving_variance, theirs.moving_variance)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_weights_stay_in_float32(policy):
    layer = BatchNormalization(dtype=policy)
    layer.build((None, 4, 4, 3))
    assert {weight.dtype for weight in layer.weights} == {"float32"}


def test_config_round_trip():
    layer = BatchNormalization(momentum=0.7, epsilon=0.1, synchronized=True, name="bn")
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, BatchNormalization)
    assert copy.get_config() == layer.get_config()
    assert keras.layers.BatchNormalization.from_config(layer.get_config()).momentum == 0.7


def test_a_stateless_call_returns_the_updates_and_changes_nothing():
    layer, x = BatchNormalization(**PAPER), images(2, 4, 4, 3)
    layer.build(x.shape)
    state = [variable.value for variable in layer.non_trainable_variables]
    outputs, updated = layer.stateless_call(layer.trainable_variables, state, x, training=True)
    np.testing.assert_array_equal(layer.moving_variance, np.ones(3))
    np.testing.assert_array_equal(outputs, layer(x, training=True))
    for stateless, variable in zip(updated, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(stateless, variable)


def test_a_saved_model_gives_the_same_outputs(tmp_path):
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, BatchNormalization(**PAPER)(inputs))
    x = images(2, 4, 4, 3)
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[1], BatchNormalization)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_each_replica_normalises_by_its_own_statistics(two_replicas):
    x = images(6, 4, 4, 3)
    with two_replicas.scope():
        layer = BatchNormalization(**PAPER)
        layer.build(x.shape)
    outputs = run_on_replicas(two_replicas, layer, x)
    for half, output in zip((x[:3], x[3:]), outputs, strict=True):
        alone = BatchNormalization(**PAPER)
        np.testing.assert_allclose(output, alone(half, training=True), atol=1e-6)


def test_synchronized_statistics_are_those_of_one_device(two_replicas, float64):
    x = images(6, 4, 4, 3)
    with two_replicas.scope():
        layer = BatchNormalization(**PAPER, synchronized=True)
        layer.build(x.shape)
    x = tf.cast(x, "float64")
    outputs = run_on_replicas(two_replicas, layer, x)
    alone = BatchNormalization(**PAPER)
    np.testing.assert_allclose(tf.concat(outputs, 0), alone(x, training=True), rtol=1e-10)
    np.testing.assert_allclose(layer.moving_variance, alone.moving_variance, rtol=1e-12)


def run_on_replicas(strategy, layer, x):
    """The training outputs of both replicas, each given one half of `x`."""
    halves = tf.split(x, 2)
    rows = strategy.experimental_distribute_values_from_function(
        lambda context: halves[context.replica_id_in_sync_group]
    )
    outputs = tf.function(lambda: strategy.run(lambda x: layer(x, training=True), (rows,)))()
    return strategy.experimental_local_results(outputs)
