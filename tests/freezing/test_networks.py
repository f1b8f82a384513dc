"""Folding on the networks that people use."""

import keras
import numpy as np
import pytest

import keras_ssd as ssd
from freezing.networks import answer, difference, drawn, frozen_answer

INFO = {"num_classes": 10, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}
FAST = (
    "resnet8",
    "resnet8x4",
    "wrn_16_1",
    "vgg8",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
)
ZOO = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name in ssd.models.names()
]
APPLICATIONS = ["ResNet50", "MobileNetV2", "EfficientNetB0", "ConvNeXtTiny"]
LIMIT = 1e-5


def images(size, rows=2):
    return np.random.default_rng(0).uniform(0, 255, (rows, size, size, 3)).astype("float32")


def with_kernels(model):
    """The model with kernels that keep the size of what goes through them."""
    generator = np.random.default_rng(1)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            fan_in = np.prod(layer.kernel.shape[: 2 if depthwise else -1])
            layer.kernel.assign(generator.normal(0, np.sqrt(2 / fan_in), layer.kernel.shape))
    return drawn(model)


def check(model, rows):
    """Folded logits are the model's, and would not be if one batch norm were missing."""
    expected = answer(model, rows)
    got = frozen_answer(ssd.freeze(model), rows)
    assert difference(got, expected) < LIMIT
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in (norms[0], norms[len(norms) // 2], norms[-1]):
        weights = norm.get_weights()
        nothing = (np.ones, np.zeros, np.zeros, np.ones)  # gamma, beta, mean, variance
        norm.set_weights([f(w.shape) for f, w in zip(nothing, weights, strict=True)])
        assert difference(got, answer(model, rows)) > LIMIT
        norm.set_weights(weights)


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_papers(name):
    size = 32 if name.endswith("imagenet") else 16
    model = ssd.models.build(name, input_shape=(size, size, 3), **INFO)
    check(with_kernels(model), images(size))


@pytest.mark.parametrize(
    "name",
    [
        "resnet8x4",
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("shufflenet_v1", marks=pytest.mark.slow),
    ],
)
def test_batch_statistics_of_the_papers_networks(name):
    """As the network itself in training, which has the same kernels; in bfloat16 nearly so."""
    model = with_kernels(ssd.models.build(name, input_shape=(16, 16, 3), **INFO))
    rows = images(16, rows=8)
    options = [{}, {"dtype": "bfloat16"}]
    frozen = [ssd.freeze(model, batch_norm="batch_update", **each) for each in options]
    whole, half = ([np.asarray(each(rows, training=True)["logits"])] for each in frozen)
    expected = [np.asarray(model(rows, training=True))]
    assert difference(whole, expected) < 1e-6
    assert difference(half, expected) < 0.1
    averages = [v for v in frozen[0].variables if "/moving_" in v.path]
    theirs = [v for v in model.weights if "moving_" in v.name]
    assert len(averages) == len(theirs)
    for one, other in zip(averages, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_keras(name):
    network = getattr(keras.applications, name)
    model = network(weights=None, classifier_activation=None, input_shape=(64, 64, 3), classes=10)
    normalises = name in ("EfficientNetB0", "ConvNeXtTiny")
    rows = images(64) if normalises else images(64) / 127.5 - 1
    if name == "ConvNeXtTiny":  # has no batch normalisation
        with_kernels(model)
        assert difference(frozen_answer(ssd.freeze(model), rows), answer(model, rows)) < LIMIT
    else:
        check(with_kernels(model), rows)
