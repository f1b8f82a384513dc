"""What ShuffleNet computes: shortcuts, shuffles, groups, first weights, a step of training."""

import keras
import numpy as np
import pytest

from keras_ssd import models
from keras_ssd.layers import ChannelShuffle, GroupedConv2D
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.shufflenet_v1 import ShuffleNetV1
from models.first_weights import check_first_weights
from models.stages import has_negative, stage_outputs


@pytest.fixture(scope="module")
def model():
    return models.build("shufflenet_v1", num_classes=10, input_shape=(16, 16, 3), dtype="float32")


def small(policy="float32"):
    """A network of one block a stage, the last one of two."""
    network = ShuffleNetV1(blocks=(1, 1, 2), widths=(48, 72, 96))
    layers = Blocks(keras.DTypePolicy(policy), network.initialization)
    images = layers.images((8, 8, 3))
    return keras.Model(images, network(layers, images, 4))


def test_stages_and_embedding_are_never_negative(model):
    assert has_negative(stage_outputs(model)) == [False] * 5


def test_the_pooled_shortcut_counts_the_padding(model):
    padding, pool = (model.get_layer(f"layer1.0.shortcut{end}") for end in (".padding", ""))
    pooled = np.asarray(pool(padding(np.ones((1, 8, 8, 24), "float32"))))
    expected = np.ones((4, 4))
    expected[0] = expected[:, 0] = 6 / 9
    expected[0, 0] = 4 / 9
    np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-6)
    assert pooled.shape == (1, 4, 4, 24)


def test_a_striding_block_puts_the_branch_first_and_activates_both(model):
    names = ("layer2.0.bn3", "layer2.0.shortcut", "layer2.0.output")
    taps = keras.Model(model.input, [model.get_layer(name).output for name in names])
    images = np.random.RandomState(0).standard_normal((2, 16, 16, 3))
    branch, shortcut, output = map(np.asarray, taps(images))
    assert branch.shape[-1] == shortcut.shape[-1] == 240
    expected = np.maximum(np.concatenate([branch, shortcut], axis=-1), 0)
    np.testing.assert_array_equal(output, expected)
    layer = model.get_layer("layer2.0.shortcut.padding")
    assert layer.input is model.get_layer("stage_1").output


def test_a_block_without_stride_adds_its_input(model):
    names = ("layer1.0.output", "layer1.1.bn3", "layer1.1.output")
    taps = keras.Model(model.input, [model.get_layer(name).output for name in names])
    images = np.random.RandomState(0).standard_normal((2, 16, 16, 3))
    shortcut, branch, output = map(np.asarray, taps(images))
    np.testing.assert_allclose(output, np.maximum(shortcut + branch, 0), rtol=1e-6)


def test_the_shuffle_stands_between_the_grouped_and_the_depthwise_convolution(model):
    shuffles = [layer for layer in model.layers if isinstance(layer, ChannelShuffle)]
    assert len(shuffles) == 15  # the first block has one group
    assert {layer.groups for layer in shuffles} == {3}
    for layer in shuffles:
        block = layer.name.removesuffix(".shuffle")
        assert layer.input is model.get_layer(f"{block}.relu1").output
        following = "conv2.padding" if block.endswith(".0") else "conv2"
        assert model.get_layer(f"{block}.{following}").input is layer.output
        assert model.get_layer(f"{block}.relu2").output is model.get_layer(f"{block}.conv3").input


WIDTHS = {  # of the kernels of the three convolutions
    "layer1.0": ((24, 54), 54, (18, 216)),
    "layer1.1": ((80, 60), 60, (20, 240)),
    "layer2.0": ((80, 60), 60, (20, 240)),
    "layer2.7": ((160, 120), 120, (40, 480)),
    "layer3.0": ((160, 120), 120, (40, 480)),
    "layer3.3": ((320, 240), 240, (80, 960)),
}


@pytest.mark.parametrize("block", WIDTHS)
def test_widths(model, block):
    first, middle, last = WIDTHS[block]
    assert model.get_layer(f"{block}.conv1").kernel.shape == (1, 1, *first)
    assert isinstance(model.get_layer(f"{block}.conv3"), GroupedConv2D)
    assert model.get_layer(f"{block}.conv2").kernel.shape == (3, 3, middle, 1)
    assert model.get_layer(f"{block}.conv3").kernel.shape == (1, 1, *last)


def test_weighted_layers_have_the_authors_names(model):
    blocks = {
        f"layer{stage}.{index}.{part}{number}"
        for stage, count in ((1, 4), (2, 8), (3, 4))
        for index in range(count)
        for part in ("conv", "bn")
        for number in (1, 2, 3)
    }
    names = {layer.name for layer in model.layers if layer.weights}
    assert names == {"conv1", "bn1", "logits"} | blocks


def test_first_weights(model):
    fresh = models.build("shufflenet_v1", num_classes=10, input_shape=(16, 16, 3))
    check_first_weights(fresh, "pytorch", "pytorch", "pytorch")
    depthwise = fresh.get_layer("layer3.3.conv2").kernel.numpy()
    assert 0.33 < np.abs(depthwise).max() <= 1 / 3


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_small_network_trains_in_a_graph(policy):
    model = small(policy)
    images = np.random.RandomState(0).standard_normal((8, 8, 8, 3)).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    losses = [model.train_on_batch(images, np.arange(8) % 4) for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]
