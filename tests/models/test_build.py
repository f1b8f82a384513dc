"""`models.build`: the published sizes of every network, names, precision, normalisation, errors."""

import types

import keras
import numpy as np
import pytest

from keras_ssd import models
from keras_ssd.layers import BatchNormalization

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PLAIN, WIDE, HALF = (16, 16, 32, 64), (32, 64, 128, 256), (8, 8, 16, 32)

TABLE = {  # for 100 classes and 32x32 images: parameters, statistics, MACs, widths of the stages
    "resnet8": (83_892, 672, 12_507_392, PLAIN),
    "resnet14": (181_108, 1_120, 26_663_168, PLAIN),
    "resnet20": (278_324, 1_568, 40_818_944, PLAIN),
    "resnet32": (472_756, 2_464, 69_130_496, PLAIN),
    "resnet44": (667_188, 3_360, 97_442_048, PLAIN),
    "resnet56": (861_620, 4_256, 125_753_600, PLAIN),
    "resnet110": (1_736_564, 8_288, 253_155_584, PLAIN),
    "resnet8x4": (1_233_540, 2_752, 177_071_104, WIDE),
    "resnet32x4": (7_433_860, 9_920, 1_083_040_768, WIDE),
    "resnet14x05": (47_340, 560, 6_777_984, HALF),
    "resnet20x05": (71_756, 784, 10_316_928, HALF),
    "resnet20x0375": (41_194, 588, 5_845_344, (6, 6, 12, 24)),
}


def small(name="resnet8", **arguments):
    defaults = {"num_classes": 10, "input_shape": (8, 8, 3)}
    return models.build(name, **{**defaults, **arguments})


def size(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def macs(model):
    """Multiply-adds of one image: each kernel entry acts once at every place of the output."""
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:-1]))
        for layer in kernels
    )


def test_names():
    assert models.names() == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_sizes_equal_the_published_table(name):
    parameters, statistics, multiply_adds, widths = TABLE[name]
    model = models.build(name, num_classes=100, input_shape=(32, 32, 3))
    assert model.name == name
    assert size(model.trainable_variables) == parameters
    assert size(model.non_trainable_variables) == statistics
    assert macs(model) == multiply_adds
    for stage, (width, pixels) in enumerate(zip(widths, (32, 32, 16, 8), strict=True)):
        layer = model.get_layer(f"stage_{stage}")
        assert layer.output.shape == (None, pixels, pixels, width)
        assert not layer.weights
    assert model.get_layer("embedding").output.shape == (None, widths[-1])
    assert model.get_layer("logits").output is model.output
    assert model.output.shape == (None, 100)


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4"])
def test_another_number_of_classes_changes_the_classifier_alone(name):
    parameters, _, _, widths = TABLE[name]
    model = models.build(name, num_classes=10, input_shape=(32, 32, 3))
    assert size(model.trainable_variables) == parameters - 90 * (widths[-1] + 1)


@pytest.mark.parametrize("shape", [(4, 4, 1), (17, 30, 3), (None, None, 3)])
def test_any_input_size(shape):
    model = small(input_shape=shape)
    images = np.zeros((2, shape[0] or 9, shape[1] or 12, shape[2]))
    assert model(images).shape == (2, 10)


def test_info_gives_what_is_not_given():
    info = types.SimpleNamespace(num_classes=7, input_shape=(8, 12, 3), mean=MEAN, std=STD)
    model = models.build("resnet8", info)
    assert model.output.shape == (None, 7)
    assert model.input.shape == (None, 8, 12, 3)
    assert isinstance(model.layers[1], keras.layers.Rescaling)
    model = models.build("resnet8", info, num_classes=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert model.output.shape == (None, 3)
    np.testing.assert_array_equal(model.layers[1].offset, np.zeros(3))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16", "float64"])
def test_pixels_are_normalised_without_loss(policy):
    model = small(mean=MEAN, std=STD, dtype=policy)
    normalize = keras.Model(model.input, model.get_layer("normalization").output)
    images = np.random.RandomState(0).randint(0, 256, (2, 8, 8, 3))
    expected = (images / 255 - MEAN) / STD
    tolerance = 1e-13 if policy == "float64" else 1e-6
    for dtype in ("uint8", "int32", "float32", "float64"):
        outputs = np.asarray(normalize(images.astype(dtype)))
        assert outputs.dtype == ("float64" if policy == "float64" else "float32")
        np.testing.assert_allclose(outputs, expected, rtol=tolerance, atol=tolerance)


def test_pixels_between_the_levels_are_not_rounded_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small(mean=(0.0,) * 3, std=(1.0,) * 3)
    normalize = keras.Model(model.input, model.get_layer("normalization").output)
    images = np.full((1, 8, 8, 3), 128.3, "float32")
    np.testing.assert_allclose(normalize(images), images / 255, rtol=1e-6)
    np.testing.assert_allclose(normalize.predict(images, verbose=0), images / 255, rtol=1e-6)


def test_without_constants_images_pass_unchanged():
    model = small()
    assert [type(layer).__name__ for layer in model.layers[:2]] == ["InputLayer", "Conv2D"]


@pytest.mark.parametrize(
    ("policy", "inner", "outer"),
    [
        ("float32", "float32", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("mixed_float16", "float16", "float32"),
        ("float64", "float64", "float64"),
    ],
)
@pytest.mark.parametrize("given", ["argument", "policy object", "global"])
def test_precision(policy, inner, outer, given):
    dtype = {"argument": policy, "policy object": keras.DTypePolicy(policy), "global": None}[given]
    if given == "global":
        keras.config.set_dtype_policy(policy)
    model = small(mean=MEAN, std=STD, dtype=dtype)
    assert model.dtype_policy.name == policy
    for layer in model.layers[2:-2]:
        assert layer.compute_dtype == inner, layer.name
    assert model.get_layer("stage_3").output.dtype == inner
    assert model.output.dtype == outer
    assert {variable.dtype for variable in model.weights} == {outer}
    assert model(np.zeros((1, 8, 8, 3), "uint8")).dtype == outer


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "jit_compile",
    [pytest.param(False, id="graph"), pytest.param(True, id="xla", marks=pytest.mark.slow)],
)
def test_training_lowers_the_loss(policy, jit_compile):
    model = small("resnet20", mean=MEAN, std=STD, dtype=policy)
    images = np.random.RandomState(0).randint(0, 256, (16, 8, 8, 3)).astype("uint8")
    labels = np.arange(16) % 10
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, jit_compile=jit_compile)
    history = model.fit(images, labels, epochs=6, batch_size=16, verbose=0)
    assert history.history["loss"][-1] < 0.7 * history.history["loss"][0]


def test_saved_and_loaded_again(tmp_path):
    model = small(mean=MEAN, std=STD, dtype="mixed_bfloat16")
    images = np.random.RandomState(0).randint(0, 256, (4, 8, 8, 3)).astype("uint8")
    model(images, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(loaded(images), model(images))
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = small(mean=MEAN, std=STD, dtype="mixed_bfloat16")
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh(images), model(images))


@pytest.mark.parametrize("synchronized", [False, True])
def test_synchronized_statistics_reach_every_layer(synchronized):
    model = small("resnet8x4", synchronized_batch_norm=synchronized)
    layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    assert len(layers) == 10
    assert {layer.synchronized for layer in layers} == {synchronized}
    assert {(layer.momentum, layer.epsilon) for layer in layers} == {(0.9, 1e-5)}


ERRORS = {  # name: (arguments, part of the sentence)
    "near names": ({"name": "resnet8x5"}, "'resnet8x5'.*Near names: resnet8x4"),
    "no near name": ({"name": "vit"}, "Near names: resnet8, resnet14"),
    "no classes": ({"num_classes": None}, "number of classes is missing"),
    "zero classes": ({"num_classes": 0}, "`num_classes` must be an integer of 1 or more, got 0"),
    "half a class": ({"num_classes": 2.5}, "`num_classes` must be .* got 2.5"),
    "no shape": ({"input_shape": None}, "shape of an image is missing"),
    "no channels": ({"input_shape": (32, 32)}, r"\(height, width, channels\), got \(32, 32\)"),
    "batch in the shape": ({"input_shape": (None, 32, 32, 3)}, "height, width, channels"),
    "unknown channels": ({"input_shape": (32, 32, None)}, "end in 1 channel or more"),
    "too small": ({"input_shape": (32, 3, 3)}, "needs images of 4 x 4 pixels or more"),
    "only the mean": ({"mean": MEAN}, "both `mean` and `std`"),
    "one value": ({"mean": [0.5], "std": [0.2]}, "each of the 3 channels, got 1 and 1"),
    "levels": ({"mean": (129.3, 124.1, 112.4), "std": STD}, "must lie in 0..1"),
    "no spread": ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, "must lie in 0..1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_get_a_sentence(case):
    arguments, sentence = ERRORS[case]
    with pytest.raises(ValueError, match=sentence):
        small(**arguments)
