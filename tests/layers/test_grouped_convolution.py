"""`GroupedConv2D` is Keras' grouped convolution: values, gradients, weights, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.layers import GroupedConv2D

OPTIONS = {
    "one pixel": {"kernel_size": 1, "use_bias": False},
    "padded": {"kernel_size": 3, "padding": "same"},
    "strides": {"kernel_size": 3, "strides": 2, "activation": "relu"},
    "dilated": {"kernel_size": 2, "dilation_rate": 2},
}


def pair(groups=3, **options):
    """Keras' layer and ours, built, with the same weights."""
    layers = [each(12, groups=groups, **options) for each in (keras.layers.Conv2D, GroupedConv2D)]
    for layer in layers:
        layer.build((None, 6, 7, 6))
    layers[1].set_weights(layers[0].get_weights())
    return layers


def images(seed=0):
    return tf.constant(np.random.RandomState(seed).standard_normal((2, 6, 7, 6)), tf.float32)


@pytest.mark.parametrize("case", OPTIONS)
def test_values_and_gradients_are_those_of_keras(case):
    results = []
    for layer in pair(**OPTIONS[case]):
        with tf.GradientTape() as tape:
            x = images()
            tape.watch(x)
            outputs = layer(x)
            total = tf.reduce_sum(outputs**2)
        kernel = layer.kernel.value
        results.append([outputs, *tape.gradient(total, [x, kernel])])
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_channels_first():
    options = {"kernel_size": 1, "data_format": "channels_first", "groups": 3}
    first = GroupedConv2D(12, **options)
    x = tf.transpose(images(), (0, 3, 1, 2))
    first.build(x.shape)
    last = GroupedConv2D(12, kernel_size=1, groups=3)
    last.build((None, 6, 7, 6))
    last.set_weights(first.get_weights())
    convolved = tf.transpose(last(images()), (0, 3, 1, 2))
    np.testing.assert_allclose(first(x), convolved, rtol=1e-5, atol=1e-5)


def test_nothing_is_compiled_for_it():
    """Keras' layer leaves a function that only XLA can run, which is slow on a CPU."""
    calls = []
    for layer in pair(kernel_size=1):
        graph = tf.function(layer).get_concrete_function(images()).graph
        calls.append("StatefulPartitionedCall" in {op.type for op in graph.get_operations()})
    assert calls == [True, False]


def test_saved_and_loaded_again(tmp_path):
    inputs = keras.Input((6, 7, 6))
    model = keras.Model(inputs, GroupedConv2D(12, 3, groups=2)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[1]) is GroupedConv2D
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    np.testing.assert_array_equal(loaded(images()), model(images()))
