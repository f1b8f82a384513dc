"""What ResNet50 computes on small images: signs, shortcuts, strides, first weights."""

import keras
import numpy as np
import pytest

from keras_ssd import models
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.bottleneck_resnet import BottleneckResNet
from models.first_weights import check_first_weights
from models.stages import has_negative, stage_outputs


@pytest.fixture(scope="module")
def model():
    """A network of one block in the first and the last stages, two in the others."""
    network = BottleneckResNet((1, 2, 2, 1))
    layers = Blocks(keras.DTypePolicy("float32"), network.initialization)
    images = layers.images((8, 8, 3))
    return keras.Model(images, network(layers, images, 10))


def test_stages_and_embedding_are_never_negative(model):
    assert has_negative(stage_outputs(model)) == [False] * 6


def test_the_first_block_of_every_stage_has_a_projection(model):
    projections = [layer.name for layer in model.layers if layer.name.endswith("shortcut.0")]
    assert projections == [f"layer{stage}.0.shortcut.0" for stage in (1, 2, 3, 4)]
    assert [model.get_layer(name).strides[0] for name in projections] == [1, 2, 2, 2]
    for stage, stride in enumerate((1, 2, 2, 2), 1):
        strides = [model.get_layer(f"layer{stage}.0.conv{k}").strides[0] for k in (1, 2, 3)]
        assert strides == [1, stride, 1]


@pytest.mark.parametrize(
    ("block", "shortcut", "output"),
    [
        ("layer2.0", "layer2.0.shortcut.1", "layer2.0.output"),
        ("layer2.1", "layer2.0.output", "stage_2"),
    ],
)
def test_a_block_with_a_silenced_branch_is_its_shortcut(model, block, shortcut, output):
    gamma = model.get_layer(f"{block}.bn3").gamma
    kept = gamma.numpy()
    gamma.assign(np.zeros(gamma.shape))
    taps = keras.Model(model.input, [model.get_layer(name).output for name in (shortcut, output)])
    expected, result = taps(np.random.RandomState(0).standard_normal((2, 8, 8, 3)))
    np.testing.assert_array_equal(result, np.maximum(expected, 0))
    gamma.assign(kept)


def test_weighted_layers_have_the_authors_names(model):
    blocks = {
        f"layer{stage}.{index}.{part}{number}"
        for stage, count in enumerate((1, 2, 2, 1), 1)
        for index in range(count)
        for part in ("conv", "bn")
        for number in (1, 2, 3)
    }
    projections = {f"layer{stage}.0.shortcut.{part}" for stage in (1, 2, 3, 4) for part in (0, 1)}
    names = {layer.name for layer in model.layers if layer.weights}
    assert names == {"conv1", "bn1", "logits"} | blocks | projections


@pytest.mark.slow
def test_first_weights():
    model = models.build("resnet50", num_classes=10, input_shape=(8, 8, 3))
    check_first_weights(model, "fan_out", "pytorch", "pytorch")
