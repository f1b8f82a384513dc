"""What a CIFAR residual network computes: padding, blocks, first weights, rows by themselves."""

import keras
import numpy as np
import pytest

from keras_ssd import models


def build(name="resnet8", size=8, **arguments):
    return models.build(name, num_classes=10, input_shape=(size, size, 3), **arguments)


def images(count, size=8, seed=0):
    return np.random.RandomState(seed).standard_normal((count, size, size, 3))


def symmetric_convolution(x, kernel, stride):
    """Direct convolution of one image with (k - 1) / 2 zeros on all four sides."""
    k = len(kernel)
    padded = np.pad(x, [(k // 2,) * 2] * 2 + [(0, 0)])
    rows, columns = ((n + 2 * (k // 2) - k) // stride + 1 for n in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[-1]))
    for row in range(rows):
        for column in range(columns):
            window = padded[row * stride :, column * stride :][:k, :k]
            out[row, column] = np.einsum("ijc,ijcd->d", window, kernel)
    return out


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("name", ["conv1", "layer2.0.conv1", "layer2.0.downsample.0"])
def test_convolutions_pad_symmetrically(float64, name, size):
    model = build(size=size)
    layer = model.get_layer(name)
    stride = 2 if "layer2" in name else 1
    before = {"conv1": model.input}.get(name, model.get_layer("stage_1").output)
    x, y = keras.Model(model.input, [before, layer.output])(images(1, size))
    expected = symmetric_convolution(np.asarray(x[0]), layer.kernel.numpy(), stride)
    np.testing.assert_allclose(y[0], expected, rtol=1e-12, atol=1e-12)


def test_padding_same_is_not_symmetric_where_the_stride_is_2(float64):
    model = build()
    kernel = model.get_layer("layer2.0.conv1").kernel
    x = images(1)[..., :1].repeat(16, -1)
    same = keras.ops.conv(x, kernel, strides=2, padding="same")
    expected = symmetric_convolution(x[0], kernel.numpy(), 2)
    assert np.abs(same[0] - expected).max() > 0.1


def test_stages_and_embedding_are_never_negative():
    model = build("resnet14")
    names = [f"stage_{stage}" for stage in range(4)] + ["embedding"]
    taps = keras.Model(model.input, [model.get_layer(name).output for name in names])
    for output in taps(images(4)):
        assert np.min(output) >= 0
        assert np.max(output) > 0


@pytest.mark.parametrize("stage", [1, 2])
def test_a_block_with_a_silenced_branch_is_its_shortcut(stage):
    model = build()
    norm = model.get_layer(f"layer{stage}.0.bn2")
    norm.gamma.assign(np.zeros(norm.gamma.shape))
    shortcut = "stage_0" if stage == 1 else "layer2.0.downsample.1"
    taps = [model.get_layer(name).output for name in (shortcut, f"stage_{stage}")]
    expected, output = keras.Model(model.input, taps)(images(2))
    np.testing.assert_array_equal(output, np.maximum(expected, 0))


def test_first_weights():
    model = build("resnet32x4")
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 34
    for layer in convolutions:
        size, _, _, filters = layer.kernel.shape
        kernel = layer.kernel.numpy()
        deviation = np.sqrt(2 / (size * size * filters))
        if kernel.size > 30_000:  # the sample's own deviation is 1 / sqrt(2 * size)
            np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
            assert abs(kernel.mean()) < 0.02 * deviation
            assert np.abs(kernel).max() > 2.5 * deviation  # truncated normals end before
        assert not layer.use_bias
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            np.testing.assert_array_equal(layer.gamma, np.ones(layer.gamma.shape))
            np.testing.assert_array_equal(layer.beta, np.zeros(layer.beta.shape))


def test_first_weights_of_the_classifier():
    logits = models.build("resnet8x4", num_classes=100, input_shape=(8, 8, 3)).get_layer("logits")
    for values in (logits.kernel.numpy(), logits.bias.numpy()):
        assert 0.9 / 16 < np.abs(values).max() <= 1 / 16  # 1 / sqrt(256)
        assert np.unique(values).size > 0.9 * values.size
    np.testing.assert_allclose(logits.kernel.numpy().std(), 1 / 16 / np.sqrt(3), rtol=0.02)


def test_layers_draw_different_weights():
    model = build("resnet14")
    first, second = (model.get_layer(f"layer1.{i}.conv1").kernel.numpy() for i in (0, 1))
    assert np.abs(first - second).max() > 0.1


def test_images_are_independent_in_inference_only(float64):
    model = build()
    first, others = images(1), images(3, seed=1)
    batch, other_batch = (np.concatenate([first, rest]) for rest in (others, 3 * others))
    np.testing.assert_allclose(model(batch)[0], model(other_batch)[0], rtol=1e-12)
    apart = model(batch, training=True)[0] - model(other_batch, training=True)[0]
    assert np.abs(apart).max() > 1e-3


def test_weighted_layers_have_the_authors_names():
    names = {layer.name for layer in build("resnet8x4").layers if layer.weights}
    blocks = {
        f"layer{stage}.0.{part}"
        for stage in (1, 2, 3)
        for part in ("conv1", "bn1", "conv2", "bn2", "downsample.0", "downsample.1")
    }
    assert names == {"conv1", "bn1", "logits"} | blocks
