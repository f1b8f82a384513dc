"""The resize is Pillow's, the constants are CLIP's."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.layers import image_preprocessing
from keras_ssd.layers.image_preprocessing import ImagePreprocessing

Image = pytest.importorskip("PIL.Image", reason="Pillow, the reference, is not installed")
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


def noise(height, width, channels=3, rows=2):
    shape = (rows, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def step_edge(height, width):
    """Black and white: the kernel overshoots, and is clipped between the two passes."""
    places = np.add.outer(np.arange(height), 2 * np.arange(width)) > height
    return np.repeat(255 * places[None, :, :, None], 3, axis=-1).astype("uint8")


def smooth(height, width):
    waves = np.sin(np.add.outer(np.arange(height) / 5, np.arange(width) / 3))
    return np.repeat(127 + 120 * waves[None, :, :, None], 3, axis=-1).astype("uint8")


def pillow(images, height, width):
    """Of any version: the order of the two passes is Pillow's own choice from 13 on."""

    def resized(image, *size):
        return image.resize(size, Image.Resampling.BICUBIC)

    wide = [resized(Image.fromarray(image), width, len(image)) for image in images]
    return np.stack([np.asarray(resized(image, width, height)) for image in wide])


def grey_levels(images, size, **options):
    return np.asarray(ImagePreprocessing(size, None, None, **options)(images))


SIZES = [
    ((32, 32), (224, 224)),
    ((40, 57), (31, 16)),
    ((9, 100), (65, 3)),
    ((96, 8), (1, 8)),
    ((97, 61), (33, 50)),
    ((32, 32), (16, 64)),
]


@pytest.mark.parametrize("images", [noise, step_edge, smooth])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_resize_is_that_of_pillow(images, old, new):
    raw = images(*old)
    np.testing.assert_array_equal(grey_levels(raw, new), pillow(raw, *new))


@pytest.mark.parametrize(("old", "new"), [((5, 9), (9, 5)), ((5, 9), (5, 4)), ((5, 9), (7, 9))])
def test_resize_under_xla(old, new):
    raw = noise(*old)
    layer = ImagePreprocessing(new, None, None)
    got = tf.function(layer, jit_compile=True)(tf.constant(raw))
    np.testing.assert_array_equal(got, pillow(raw, *new))


def test_first_products_are_exact_in_bfloat16():
    for old, new in itertools.permutations([1, 7, 8, 32, 33, 64, 224], 2):
        coarse, fine = image_preprocessing._split_weights(old, new)
        rounded = tf.cast(tf.cast(coarse, tf.bfloat16), tf.float32)
        np.testing.assert_array_equal(rounded, coarse)
        assert np.abs(fine).max() <= np.abs(coarse).max() / 128
        assert 255 * np.abs(fine).sum(axis=1).max() < 4  # so that 24 bits hold multiples of 2^-22
        total = coarse.astype("float64") + fine
        np.testing.assert_allclose(total.sum(axis=1), 1, atol=old * 2.0**-23)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int32"])
def test_images_of_any_type(dtype):
    raw = noise(6, 8)
    got = grey_levels(tf.cast(raw, dtype), (12, 5))
    assert got.dtype == "float32"
    np.testing.assert_array_equal(got, pillow(raw, 12, 5))


def test_floats_are_rounded_before_they_are_resized():
    raw = noise(6, 8)
    off = raw + np.random.default_rng(1).uniform(-0.49, 0.49, raw.shape)
    np.testing.assert_array_equal(grey_levels(off, (12, 5)), pillow(raw, 12, 5))
    outside = np.where(raw > 127, 300.0, -40.0)
    black_and_white = np.where(raw > 127, 255, 0).astype("uint8")
    np.testing.assert_array_equal(grey_levels(outside, (12, 5)), pillow(black_and_white, 12, 5))


def test_images_of_the_right_size_are_left_alone():
    floats = np.random.default_rng(0).uniform(-9, 300, (2, 4, 5, 3)).astype("float32")
    np.testing.assert_array_equal(grey_levels(floats, (4, 5)), floats)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16", "float64"])
def test_normalisation(policy):
    raw = noise(6, 6)
    keras.config.set_dtype_policy(policy)
    images = keras.Input((6, 6, 3), dtype="uint8")
    layer = ImagePreprocessing(8)
    model = keras.Model(images, layer(images))
    assert model.output.dtype == "float32"
    assert model.output.shape == (None, 8, 8, 3)
    expected = (pillow(raw, 8, 8) / 255 - CLIP_MEAN) / CLIP_STD
    for got in (model(raw), layer(raw), ImagePreprocessing(8)(raw.astype("float32"))):
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_other_statistics_and_channels():
    raw = noise(4, 4, 2)
    got = ImagePreprocessing(4, [0.5, 0.25], (0.1, 2))(raw)
    np.testing.assert_allclose(got, (raw / 255 - [0.5, 0.25]) / [0.1, 2], atol=1e-6)
    assert grey_levels(raw, 5).shape == (2, 5, 5, 2)


def test_empty_and_unknown_batches():
    layer = ImagePreprocessing((5, 7))
    assert layer(noise(3, 4, rows=0)).shape == (0, 5, 7, 3)
    shape = tf.TensorSpec([None, 3, 4, 3], tf.uint8)
    function = tf.function(layer).get_concrete_function(shape)
    assert function.structured_outputs.shape.as_list() == [None, 5, 7, 3]
    np.testing.assert_array_equal(function(tf.constant(noise(3, 4))), layer(noise(3, 4)))


@pytest.mark.parametrize("options", [{}, {"mean": None, "std": None}, {"mean": [0.5], "std": [2]}])
def test_config(options):
    layer = ImagePreprocessing((5, 7), **options, name="first", dtype="mixed_float16")
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    raw = noise(3, 4, 1 if layer.mean and len(layer.mean) == 1 else 3)
    np.testing.assert_array_equal(again(raw), layer(raw))


def test_saved_in_a_model(tmp_path):
    images = keras.Input((None, None, 3))
    model = keras.Model(images, ImagePreprocessing(7)(images))
    assert model.output.shape == (None, 7, 7, 3)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(noise(3, 4)), ImagePreprocessing(7)(noise(3, 4)))


@pytest.mark.parametrize("size", [None, 2.0, True, "224", (2, 3.0), [4, None], (4, False)])
def test_sizes_of_the_wrong_kind(size):
    with pytest.raises(TypeError, match="`image_size` must be an integer or a pair"):
        ImagePreprocessing(size)


@pytest.mark.parametrize("size", [0, -1, (), (4,), (4, 4, 3), (4, 0)])
def test_sizes_out_of_range(size):
    with pytest.raises(ValueError, match="`image_size` must be one integer > 0 or a pair"):
        ImagePreprocessing(size)


def test_sizes_of_other_kinds():
    assert ImagePreprocessing([3, 4]).image_size == (3, 4)
    assert ImagePreprocessing(np.int64(3)).image_size == (3, 3)


WRONG = {
    "mean alone": ([0.5], None, TypeError, "`std` must be a number for each channel"),
    "std alone": (None, [0.5], TypeError, "`mean` must be a number for each channel"),
    "one number": (0.5, 0.5, TypeError, "`mean` must be a number for each channel"),
    "words": (["a"], [0.5], TypeError, "`mean` must be a number for each channel"),
    "endless": ([float("nan")], [1.0], ValueError, "`mean` must be finite"),
    "infinite": ([0.0], [float("inf")], ValueError, "`std` must be finite"),
    "zero": ([0.5, 0.5], [1, 0], ValueError, "number > 0 for each of the 2 of `mean`"),
    "negative": ([0.5], [-1], ValueError, "number > 0 for each of the 1 of `mean`"),
    "lengths": ([0.5], [1, 1], ValueError, "number > 0 for each of the 1 of `mean`"),
    "none": ([], [], ValueError, "number > 0 for each of the 0 of `mean`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_statistics(case):
    mean, std, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        ImagePreprocessing(4, mean, std)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("kind", ["eager", "graph", "symbolic"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8, 1), "^`mean` and `std` are those of 3 channels, and the images have 1"),
        ((8, 8, 4), "^`mean` and `std` are those of 3 channels, and the images have 4"),
        ((8, 8), r"^Images must be \[rows, height, width, channels\]"),
    ],
    ids=str,
)
def test_wrong_images(kind, shape, message, built):
    layer = ImagePreprocessing(4)
    if built:
        layer(noise(8, 8))
    calls = {
        "eager": lambda: layer(np.zeros((2, *shape), "uint8")),
        "graph": lambda: tf.function(layer, autograph=False).get_concrete_function(
            tf.TensorSpec([None, *shape])
        ),
        "symbolic": lambda: layer(keras.Input(shape)),
    }
    with pytest.raises(ValueError, match=message) as raised:
        calls[kind]()
    assert "\n" not in str(raised.value)


def test_images_of_unknown_size():
    layer = ImagePreprocessing(4)
    shape = tf.TensorSpec([None, None, 8, 3])
    with pytest.raises(ValueError, match="size of images must be known to resize them"):
        tf.function(layer).get_concrete_function(shape)
