"""What the residual networks for ImageNet compute: the stem, the shortcuts, first weights."""

import keras
import numpy as np
import pytest

from keras_ssd import models
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.imagenet_resnet import ImageNetResNet
from models.first_weights import check_first_weights
from models.stages import has_negative, stage_outputs


@pytest.fixture(scope="module", params=[False, True], ids=["basic", "bottleneck"])
def model(request):
    """A network of one block a stage."""
    network = ImageNetResNet((1, 1, 1, 1), bottlenecks=request.param)
    layers = Blocks(keras.DTypePolicy("float32"), network.initialization)
    images = layers.images((32, 32, 3))
    return keras.Model(images, network(layers, images, 10))


def test_stages_and_embedding_are_never_negative(model):
    assert has_negative(stage_outputs(model)) == [False] * 6


def test_the_stem_pads_symmetrically(model):
    padding, layer = (model.get_layer(f"conv1{end}") for end in (".padding", ""))
    x = np.random.RandomState(0).standard_normal((1, 10, 10, 3)).astype("float32")
    result = np.asarray(layer(padding(x)))[0]
    padded = np.pad(x[0], [(3, 3), (3, 3), (0, 0)])
    assert result.shape == (5, 5, 64)
    for row, column in ((0, 0), (0, 4), (2, 3), (4, 4)):
        window = padded[2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
        expected = np.einsum("ijc,ijcd->d", window, layer.kernel.numpy())
        np.testing.assert_allclose(result[row, column], expected, rtol=1e-4, atol=1e-5)


def test_the_maximum_of_the_stem_pads_symmetrically(model):
    padding, layer = (model.get_layer(name) for name in ("pool.padding", "stage_0"))
    x = np.random.RandomState(0).uniform(0.1, 1, (1, 6, 6, 64)).astype("float32")
    result = np.asarray(layer(padding(x)))[0]
    assert padding.input is model.get_layer("relu1").output
    for row in range(3):
        for column in range(3):
            rows, columns = (slice(max(2 * i - 1, 0), 2 * i + 2) for i in (row, column))
            np.testing.assert_array_equal(result[row, column], x[0, rows, columns].max((0, 1)))


def test_weighted_layers_have_the_names_of_torchvision(model):
    bottlenecks = model.get_layer("embedding").output.shape[1] == 2048
    blocks = {
        f"layer{stage}.0.{part}{number}"
        for stage in (1, 2, 3, 4)
        for part in ("conv", "bn")
        for number in range(1, 4 if bottlenecks else 3)
    }
    projected = (1, 2, 3, 4) if bottlenecks else (2, 3, 4)
    projections = {f"layer{stage}.0.downsample.{part}" for stage in projected for part in (0, 1)}
    names = {layer.name for layer in model.layers if layer.weights}
    assert names == {"conv1", "bn1", "logits"} | blocks | projections


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18_imagenet", "resnet50_imagenet"])
def test_first_weights(name):
    model = models.build(name, num_classes=10, input_shape=(32, 32, 3))
    check_first_weights(model, "fan_out", "pytorch", "pytorch")
