"""What MobileNetV2 computes: linear stages, inverted residuals, padding, first weights."""

import keras
import numpy as np
import pytest

from keras_ssd import models
from models.first_weights import check_first_weights
from models.stages import has_negative, stage_outputs

REPEATS = (1, 2, 3, 4, 3, 3, 1)


@pytest.fixture(scope="module")
def model():
    return models.build("mobilenet_v2", num_classes=10, input_shape=(16, 16, 3), dtype="float32")


def outputs(model, *names):
    taps = keras.Model(model.input, [model.get_layer(name).output for name in names])
    images = np.random.RandomState(1).standard_normal((2, 16, 16, 3))
    return [np.asarray(output) for output in taps(images)]


def test_stages_are_linear_between_stem_and_embedding(model):
    assert has_negative(stage_outputs(model)) == [False, True, True, True, True, False]


def test_a_block_is_added_to_its_input_where_the_shapes_agree(model):
    added = {layer.name for layer in model.layers if isinstance(layer, keras.layers.Add)}
    ends = {1: "stage_1", 2: "stage_2", 4: "stage_3"}
    expected = {
        ends.get(run, f"blocks.{run}.output")
        if index == REPEATS[run] - 1
        else f"blocks.{run}.{index}.output"
        for run in range(7)
        for index in range(1, REPEATS[run])
    }
    assert added == expected
    before, branch, after = outputs(model, "blocks.1.0.output", "blocks.1.1.conv.7", "stage_1")
    np.testing.assert_array_equal(after, before + branch)


def test_a_block_has_no_activation_at_its_end(model):
    end, last = outputs(model, "stage_4", "blocks.6.0.conv.7")
    np.testing.assert_array_equal(end, last)


def test_the_activation_has_no_upper_bound(model):
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.ReLU)]
    assert len(layers) == 2 * sum(REPEATS) + 2
    assert all(float(layer(np.float32(1000))) == 1000 for layer in layers)


@pytest.mark.parametrize("size", [6, 7])
def test_a_depthwise_convolution_of_stride_2_pads_symmetrically(model, size):
    padding, layer = (model.get_layer(f"blocks.2.0.conv.3{end}") for end in (".padding", ""))
    x = np.random.RandomState(0).standard_normal((1, size, size, 72)).astype("float32")
    result = np.asarray(layer(padding(x)))[0]
    kernel = layer.kernel.numpy()[..., 0]
    padded = np.pad(x[0], [(1, 1), (1, 1), (0, 0)])
    for row in range((size + 1) // 2):
        for column in range((size + 1) // 2):
            window = padded[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected = np.sum(window * kernel, axis=(0, 1))
            np.testing.assert_allclose(result[row, column], expected, rtol=1e-4, atol=1e-5)


def test_weighted_layers_have_the_authors_names(model):
    blocks = {
        f"blocks.{run}.{index}.conv.{part}"
        for run in range(7)
        for index in range(REPEATS[run])
        for part in (0, 1, 3, 4, 6, 7)
    }
    others = {"conv1.0", "conv1.1", "conv2.0", "conv2.1", "logits"}
    assert {layer.name for layer in model.layers if layer.weights} == blocks | others
    assert model.get_layer("blocks.0.0.conv.0").kernel.shape == (1, 1, 16, 16)
    assert model.get_layer("blocks.6.0.conv.6").kernel.shape == (1, 1, 480, 160)


def test_first_weights():
    fresh = models.build("mobilenet_v2", num_classes=10, input_shape=(16, 16, 3))
    check_first_weights(fresh, "fan_out", "small", "zeros")
