"""What ShuffleNetV2 computes: splits, shuffles, branches, first weights, a step of training."""

import keras
import numpy as np
import pytest

from keras_ssd import models
from keras_ssd.layers import ChannelShuffle
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.shufflenet_v2 import ShuffleNetV2
from models.first_weights import check_first_weights
from models.stages import has_negative, stage_outputs


@pytest.fixture(scope="module")
def model():
    return models.build("shufflenet_v2", num_classes=10, input_shape=(16, 16, 3), dtype="float32")


def outputs(model, *names):
    taps = keras.Model(model.input, [model.get_layer(name).output for name in names])
    images = np.random.RandomState(0).standard_normal((2, 16, 16, 3))
    return [np.asarray(output) for output in taps(images)]


def shuffled(x):
    """Two groups dealt out in turn."""
    result = np.empty_like(x)
    half = x.shape[-1] // 2
    result[..., 0::2], result[..., 1::2] = x[..., :half], x[..., half:]
    return result


def test_stages_and_embedding_are_never_negative(model):
    assert has_negative(stage_outputs(model)) == [False] * 5


def test_the_first_block_reads_its_input_twice(model):
    left, right, output = outputs(model, "layer1.0.relu2", "layer1.0.relu5", "layer1.0.output")
    expected = shuffled(np.concatenate([left, right], axis=-1))
    np.testing.assert_array_equal(output, expected)
    stem = model.get_layer("stage_0").output
    for layer in ("layer1.0.conv1.padding", "layer1.0.conv3"):
        assert model.get_layer(layer).input is stem


def test_another_block_passes_the_first_half(model):
    before, branch, after = outputs(model, "layer1.0.output", "layer1.1.relu3", "layer1.1.output")
    expected = shuffled(np.concatenate([before[..., :58], branch], axis=-1))
    np.testing.assert_array_equal(after, expected)
    halves = model.get_layer("layer1.1.split").output
    assert model.get_layer("layer1.1.conv1").input is halves[1]


def test_nothing_is_activated_behind_a_depthwise_convolution(model):
    for block, following in (("layer1.0", "conv2"), ("layer1.1", "conv3"), ("layer2.0", "conv5")):
        norm = {"conv2": "bn1", "conv3": "bn2", "conv5": "bn4"}[following]
        assert model.get_layer(f"{block}.{following}").input is (
            model.get_layer(f"{block}.{norm}").output
        )


def test_every_block_ends_in_a_shuffle_of_two_groups(model):
    shuffles = [layer for layer in model.layers if isinstance(layer, ChannelShuffle)]
    assert len(shuffles) == 16
    assert {layer.groups for layer in shuffles} == {2}
    assert all(isinstance(model.get_layer(f"stage_{stage}"), ChannelShuffle) for stage in (1, 2, 3))


def test_weighted_layers_have_the_authors_names(model):
    blocks = {
        f"layer{stage}.{index}.{part}{number}"
        for stage, count in ((1, 4), (2, 8), (3, 4))
        for index in range(count)
        for part in ("conv", "bn")
        for number in range(1, 6 if index == 0 else 4)
    }
    names = {layer.name for layer in model.layers if layer.weights}
    assert names == {"conv1", "bn1", "conv2", "bn2", "logits"} | blocks
    assert model.get_layer("layer1.0.conv4").kernel.shape == (3, 3, 58, 1)
    assert model.get_layer("conv2").kernel.shape == (1, 1, 464, 1024)
    assert model.get_layer("conv2").input is model.get_layer("stage_3").output


def test_first_weights():
    fresh = models.build("shufflenet_v2", num_classes=10, input_shape=(16, 16, 3))
    check_first_weights(fresh, "pytorch", "pytorch", "pytorch")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_small_network_trains_in_a_graph(policy):
    network = ShuffleNetV2(blocks=(1, 2, 1), widths=(16, 24, 32))
    layers = Blocks(keras.DTypePolicy(policy), network.initialization)
    images = layers.images((8, 8, 3))
    model = keras.Model(images, network(layers, images, 4))
    rows = np.random.RandomState(0).standard_normal((8, 8, 8, 3)).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    losses = [model.train_on_batch(rows, np.arange(8) % 4) for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]
