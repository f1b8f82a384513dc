"""What a VGG network computes: groups, pooling, biases, first weights."""

import keras
import numpy as np
import pytest

from keras_ssd import models
from models.first_weights import check_first_weights
from models.stages import between, has_negative, stage_outputs


def build(name="vgg8", size=16, **arguments):
    return models.build(name, num_classes=10, input_shape=(size, size, 3), **arguments)


def test_stages_and_embedding_are_never_negative():
    assert has_negative(stage_outputs(build())) == [False] * 6


def test_stages_end_before_the_maximum():
    model = build()
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    inputs = [model.get_layer(f"stage_{group}").output for group in range(3)]
    assert [layer.input for layer in pools] == inputs
    x = np.random.RandomState(0).standard_normal((1, 16, 16, 64)).astype("float32")
    expected = x.reshape(1, 8, 2, 8, 2, 64).max(axis=(2, 4))
    np.testing.assert_array_equal(pools[0](x), expected)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (32, [32, 16, 8, 4, 4]),
        (64, [64, 32, 16, 8, 4]),
        (71, [71, 35, 17, 8, 4]),
        (128, [128, 64, 32, 16, 16]),
        (None, [None] * 5),
    ],
)
def test_the_fourth_maximum_is_for_images_of_64_pixels(size, sizes):
    model = build(size=size)
    assert [model.get_layer(f"stage_{group}").output.shape[1] for group in range(5)] == sizes
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert len(pools) == (4 if size in (64, 71) else 3)


def test_a_convolution_adds_its_bias_before_the_normalisation():
    model = build("vgg11")
    layer = model.get_layer("block2.3")
    x = np.random.RandomState(0).standard_normal((1, 4, 4, 256)).astype("float32")
    before = np.asarray(layer(x))
    layer.bias.assign(np.arange(256) / 256)
    np.testing.assert_allclose(layer(x) - before, np.zeros((1, 4, 4, 1)) + layer.bias, atol=1e-5)
    assert model.get_layer("block2.4").input is layer.output
    chain = [layer.name for layer in between(model, "block2.0", "stage_2").layers[1:]]
    first, second = ["block2.0", "block2.1", "block2.0.output"], ["block2.3", "block2.4"]
    assert chain == [*first, *second, "stage_2"]


def test_the_fourth_group_is_not_tapped():
    network = models.network_of(build())
    assert [network.stages[unit] for unit in network.taps] == [
        "stage_0",
        "stage_1",
        "stage_2",
        "stage_4",
    ]


GROUPS = {"vgg8": (1, 1, 1, 1, 1), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}


@pytest.mark.parametrize("name", GROUPS)
def test_weighted_layers_have_the_authors_names(name):
    names = {layer.name for layer in build(name).layers if layer.weights}
    groups = {
        f"block{group}.{3 * index + part}"
        for group, count in enumerate(GROUPS[name])
        for index in range(count)
        for part in (0, 1)
    }
    assert names == {"logits"} | groups


def test_first_weights():
    model = build("vgg11")
    check_first_weights(model, "fan_out", "small", "zeros")
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert all(layer.use_bias for layer in convolutions)
