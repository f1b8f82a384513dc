"""The layers that move channels about: order, shapes, precision, files, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.layers import ChannelShuffle, ChannelSplit


def test_shuffle_of_twelve_channels():
    x = np.arange(12, dtype="float32").reshape(1, 1, 1, 12)
    three = np.asarray(ChannelShuffle(3)(x)).ravel()
    np.testing.assert_array_equal(three, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
    two = np.asarray(ChannelShuffle(2)(x)).ravel()
    np.testing.assert_array_equal(two, [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11])


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_two_shuffles_are_none(groups):
    x = np.random.RandomState(0).standard_normal((2, 3, 5, 12)).astype("float32")
    np.testing.assert_array_equal(ChannelShuffle(12 // groups)(ChannelShuffle(groups)(x)), x)


def test_split_gives_the_first_and_the_second_half():
    x = np.random.RandomState(0).standard_normal((2, 3, 5, 6)).astype("float32")
    first, second = ChannelSplit()(x)
    np.testing.assert_array_equal(first, x[..., :3])
    np.testing.assert_array_equal(second, x[..., 3:])


def network(shape=(None, None, 6), dtype=None):
    images = keras.Input(shape)
    first, second = ChannelSplit(dtype=dtype)(images)
    mixed = keras.layers.Concatenate(dtype=dtype)([second, first])
    return keras.Model(images, ChannelShuffle(3, dtype=dtype)(mixed))


def expected(x):
    return x[..., [3, 5, 1, 4, 0, 2]]


@pytest.mark.parametrize("shape", [(None, None, 6), (4, 5, 6)])
def test_shapes_are_known_and_unknown(shape):
    model = network(shape)
    assert model.output.shape == (None, *shape)
    x = np.random.RandomState(0).standard_normal((2, 4, 5, 6)).astype("float32")
    np.testing.assert_array_equal(model(x), expected(x))
    np.testing.assert_array_equal(tf.function(model)(tf.constant(x)), expected(x))


def test_shape_of_a_split_of_unknown_channels():
    assert ChannelSplit().compute_output_shape((None, 4, None)) == ((None, 4, None),) * 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_precision(policy):
    model = network(dtype=policy)
    dtype = keras.DTypePolicy(policy).compute_dtype
    outputs = model(np.zeros((1, 2, 2, 6)))
    assert outputs.dtype == model.output.dtype == dtype


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_go_back_to_where_values_came_from(jit_compile):
    model = network((2, 3, 6))

    @tf.function(jit_compile=jit_compile)
    def gradient(x, weights):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(model(x) * weights)
        return tape.gradient(total, x)

    x, weights = (
        tf.constant(np.random.RandomState(seed).standard_normal((2, 2, 3, 6)), tf.float32)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(expected(gradient(x, weights).numpy()), weights)


@pytest.mark.parametrize("dtype", ["float32", keras.DTypePolicy("mixed_bfloat16")], ids=str)
def test_saved_and_loaded_again(dtype, tmp_path):
    model = network(dtype=dtype)
    x = np.random.RandomState(0).standard_normal((2, 4, 5, 6)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.dtype_policy for layer in loaded.layers] == [
        layer.dtype_policy for layer in model.layers
    ]
    x = x.astype(model.output.dtype)  # halved values come back as they are
    np.testing.assert_array_equal(loaded(x), expected(x))
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_array_equal(served.serve(x.astype("float32")), expected(x))


def test_mistakes_get_a_sentence():
    with pytest.raises(TypeError, match=r"`groups` must be an integer, got 1.5"):
        ChannelShuffle(1.5)
    with pytest.raises(ValueError, match="`groups` must be 1 or more, got 0"):
        ChannelShuffle(0)
    with pytest.raises(ValueError, match="divisible by its 4 groups, got 6"):
        ChannelShuffle(4)(np.zeros((1, 2, 2, 6)))
    with pytest.raises(ValueError, match="must be known and even, got 5"):
        ChannelSplit()(np.zeros((1, 2, 2, 5)))
