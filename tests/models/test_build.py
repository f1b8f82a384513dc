"""`models.build`: the published sizes of every network, names, precision, normalisation, errors."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd import models
from keras_ssd.layers import BatchNormalization

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PLAIN = ((32, 16), (32, 16), (16, 32), (8, 64))
HALF = ((32, 8), (32, 8), (16, 16), (8, 32))
WIDE = ((32, 32), (32, 64), (16, 128), (8, 256))
WIDER = ((32, 16), (32, 32), (16, 64), (8, 128))
GROUPS = ((32, 64), (16, 128), (8, 256), (4, 512), (4, 512))

CIFAR = {  # 100 classes, 32x32: parameters, statistics, MACs, sizes and widths of the stages
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
    "resnet20x0375": (41_194, 588, 5_845_344, ((32, 6), (32, 6), (16, 12), (8, 24))),
    "wrn_16_1": (180_916, 928, 26_663_168, PLAIN),
    "wrn_16_2": (703_284, 1_824, 101_118_464, WIDER),
    "wrn_40_1": (569_780, 2_720, 83_286_272, PLAIN),
    "wrn_40_2": (2_255_156, 5_408, 327_610_880, WIDER),
    "vgg8": (3_965_028, 2_944, 96_192_512, GROUPS),
    "vgg11": (9_277_284, 5_504, 209_438_720, GROUPS),
    "vgg13": (9_462_180, 5_888, 284_936_192, GROUPS),
    "vgg16": (14_774_436, 8_448, 398_182_400, GROUPS),
    "vgg19": (20_086_692, 11_008, 511_428_608, GROUPS),
    "mobilenet_v2": (812_836, 18_368, 6_523_648, ((16, 16), (16, 12), (8, 16), (4, 48), (2, 160))),
    "shufflenet_v1": (949_258, 23_736, 38_691_456, ((32, 24), (16, 240), (8, 480), (4, 960))),
    "shufflenet_v2": (1_355_528, 16_180, 44_504_448, ((32, 24), (16, 116), (8, 232), (4, 464))),
    "resnet50": (
        23_705_252,
        53_120,
        1_298_014_208,
        ((32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048)),
    ),
}
BASIC = ((56, 64), (56, 64), (28, 128), (14, 256), (7, 512))
IMAGENET = {  # 1000 classes, 224x224
    "resnet18_imagenet": (11_689_512, 9_600, 1_814_073_344, BASIC),
    "resnet34_imagenet": (21_797_672, 17_024, 3_663_761_408, BASIC),
    "resnet50_imagenet": (
        25_557_032,
        53_120,
        # resnet50's, less stem and classifier, at 56 / 32 of the size; stem 7x7, 1000 classes
        (1_298_014_208 - 1_769_472 - 204_800) * 49 // 16 + 118_013_952 + 2_048_000,
        ((56, 64), (56, 256), (28, 512), (14, 1024), (7, 2048)),
    ),
}
EMBEDDINGS = {"mobilenet_v2": 1280, "shufflenet_v2": 1024}  # others: as wide as the last stage


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


def check_sizes(model, row, num_classes):
    parameters, statistics, multiply_adds, stages = row
    assert size(model.trainable_variables) == parameters
    assert size(model.non_trainable_variables) == statistics
    assert macs(model) == multiply_adds
    for stage, (pixels, width) in enumerate(stages):
        layer = model.get_layer(f"stage_{stage}")
        assert layer.output.shape == (None, pixels, pixels, width)
        assert not layer.weights
    assert sum(layer.name.startswith("stage_") for layer in model.layers) == len(stages)
    embedding = EMBEDDINGS.get(model.name, stages[-1][1])
    assert model.get_layer("embedding").output.shape == (None, embedding)
    assert model.get_layer("logits").output is model.output
    assert model.output.shape == (None, num_classes)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        *("resnet8", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v2"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("shufflenet_v1", "resnet50", "resnet18_imagenet", "resnet50_imagenet")
        ),
    ],
)
def test_saving(tmp_path, name, policy):
    size = 32 if name.endswith("imagenet") else 8
    model = small(name, input_shape=(size, size, 3), dtype=policy)
    model.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert [each.dtype_policy.name for each in loaded.layers] == [
        each.dtype_policy.name for each in model.layers
    ]
    images = np.random.RandomState(0).standard_normal((2, size, size, 3))
    np.testing.assert_array_equal(loaded(images), model(images))


def test_names():
    assert models.names() == [*CIFAR, *IMAGENET]


@pytest.mark.parametrize("name", CIFAR)
def test_sizes_equal_the_published_table(name):
    model = models.build(name, num_classes=100, input_shape=(32, 32, 3))
    assert model.name == name
    check_sizes(model, CIFAR[name], 100)


@pytest.mark.parametrize("name", IMAGENET)
def test_sizes_of_imagenet_networks(name):
    model = models.build(name, num_classes=1000, input_shape=(224, 224, 3))
    check_sizes(model, IMAGENET[name], 1000)


def test_mobilenet_v2_as_hsakd_runs_it():
    parameters, statistics, *_ = CIFAR["mobilenet_v2"]
    stages = ((32, 16), (32, 12), (16, 16), (8, 48), (4, 160))
    arguments = {"num_classes": 100, "input_shape": (32, 32, 3)}
    model = models.build("mobilenet_v2", stem_stride=1, **arguments)
    check_sizes(model, (parameters, statistics, 25_710_592, stages), 100)
    usual = models.build("mobilenet_v2", stem_stride=2, **arguments)
    check_sizes(usual, CIFAR["mobilenet_v2"], 100)
    model.set_weights(usual.get_weights())
    assert models.network_of(model) == models.network_of(usual)


@pytest.mark.parametrize("name", ["resnet20", "vgg8", "shufflenet_v2"])
def test_another_number_of_classes_changes_the_classifier_alone(name):
    model = models.build(name, num_classes=10, input_shape=(32, 32, 3))
    width = EMBEDDINGS.get(name, CIFAR[name][-1][-1][1])
    assert size(model.trainable_variables) == CIFAR[name][0] - 90 * (width + 1)


@pytest.mark.parametrize("shape", [(4, 4, 1), (17, 30, 3), (None, None, 3)])
def test_any_input_size(shape):
    model = small(input_shape=shape)
    images = np.zeros((2, shape[0] or 9, shape[1] or 12, shape[2]))
    assert model(images).shape == (2, 10)


SMALLEST = {"wrn_16_1": 4, "vgg8": 8, "mobilenet_v2": 8, "shufflenet_v1": 8, "shufflenet_v2": 8}
DEEP = {"resnet50": 8, "resnet18_imagenet": 32, "resnet50_imagenet": 32}


@pytest.mark.parametrize(
    "name", [*SMALLEST, *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP)]
)
def test_smallest_and_unknown_size(name):
    smallest = {**SMALLEST, **DEEP}[name]
    model = small(name, input_shape=(smallest, smallest, 3))
    images = np.random.RandomState(0).standard_normal((2, smallest, smallest, 3))
    unknown = small(name, input_shape=(None, None, 3))
    unknown.set_weights(model.get_weights())
    np.testing.assert_allclose(unknown(images), model(images), rtol=1e-4, atol=1e-5)
    assert unknown(np.zeros((1, smallest + 9, smallest + 6, 3))).shape == (1, 10)
    with pytest.raises(ValueError, match=f"{name} needs images of {smallest} x {smallest} pixels"):
        small(name, input_shape=(smallest, smallest - 1, 3))


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


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", [*SMALLEST, *DEEP])
def test_every_family_can_be_differentiated_in_a_graph(name, policy):
    size = 32 if "imagenet" in name else 16
    model = small(name, input_shape=(None, None, 3), dtype=policy)
    images = np.random.RandomState(0).standard_normal((8, size, size, 3)).astype("float32")

    @tf.function
    def gradients(rows):
        with tf.GradientTape() as tape:
            logits = model(rows, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(np.arange(8), logits, True)
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, {v.path: v.value for v in model.trainable_variables})

    for path, gradient in gradients(images).items():
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient) or not path.endswith("kernel"), path


@pytest.mark.parametrize(
    "name",
    [
        "vgg8",
        *(pytest.param(f"shufflenet_v{version}", marks=pytest.mark.slow) for version in (1, 2)),
    ],
)
def test_families_saved_and_loaded_again(name, tmp_path):
    model = small(name, mean=MEAN, std=STD, dtype="mixed_bfloat16")
    images = np.random.RandomState(0).randint(0, 256, (2, 8, 8, 3)).astype("uint8")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_array_equal(loaded(images), model(images))


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
    "stem of another": ({"stem_stride": 1}, "argument of 'mobilenet_v2' alone.*for 'resnet8'"),
    "stem by three": ({"name": "mobilenet_v2", "stem_stride": 3}, "must be 1, .* got 3"),
    "no stem": ({"name": "mobilenet_v2", "stem_stride": 0}, "must be 1, .* got 0"),
    "half a stem": ({"name": "mobilenet_v2", "stem_stride": 1.5}, "must be 1, .* got 1.5"),
    "no spread": ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, "must lie in 0..1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_get_a_sentence(case):
    arguments, sentence = ERRORS[case]
    with pytest.raises(ValueError, match=sentence):
        small(**arguments)
