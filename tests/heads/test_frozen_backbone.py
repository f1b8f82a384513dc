"""`with_frozen_backbone`: the classifier alone trains, at another image size if wanted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distiller.tiny import KD
from keras import layers

import keras_ssd as ssd
from keras_ssd import models
from keras_ssd.heads import with_auxiliary_classifiers, with_peer, with_projection
from keras_ssd.heads.frozen_backbone import with_frozen_backbone
from keras_ssd.layers import FrozenBackbone

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 8, 8, 3)).astype("uint8")
LARGER = RANDOM.integers(0, 256, (6, 12, 10, 3)).astype("uint8")
LABELS = np.arange(6) % 3


def network(size=8, dropout=0.5):
    """Batch normalisation with statistics of its own, dropout, raw images in."""
    images = keras.Input((size, size, 3), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 128, -1, dtype="float32")(images)
    x = layers.Conv2D(6, 3, strides=2, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm", momentum=0.5)(x))
    x = layers.Dropout(dropout)(layers.GlobalAveragePooling2D(name="embedding")(x))
    wide = keras.initializers.RandomNormal(stddev=2.0)
    x = layers.Dense(3, kernel_initializer=wide, name="logits", dtype="float32")(x)
    model = keras.Model(images, x, name="net")
    model(IMAGES, training=True)
    return model


def values(model):
    return [v.numpy() for v in model.variables]


def assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_at_first_it_is_the_model_in_inference_mode():
    model = network()
    frozen = with_frozen_backbone(model)
    for training in (False, True):
        np.testing.assert_array_equal(frozen(IMAGES, training=training), model(IMAGES))
    assert [layer.name for layer in frozen.layers] == ["pixels", "backbone", "logits"]
    assert isinstance(frozen.get_layer("backbone"), FrozenBackbone)
    assert (frozen.name, frozen.input.dtype) == ("net", "uint8")
    assert [v.path for v in frozen.trainable_variables] == ["logits/kernel", "logits/bias"]
    assert not {id(v) for v in frozen.variables} & {id(v) for v in model.variables}
    assert frozen.count_params() == model.count_params()


def test_another_size_is_the_same_layers_on_larger_maps():
    model = network()
    larger = with_frozen_backbone(model, (12, 10))
    assert larger.input.shape == (None, 12, 10, 3)
    any_size = network(size=None)
    any_size.set_weights(model.get_weights())
    np.testing.assert_array_equal(larger(LARGER, training=True), any_size(LARGER))
    smaller = with_frozen_backbone(larger, (8, 8))
    np.testing.assert_array_equal(smaller(IMAGES), model(IMAGES))
    open_size = with_frozen_backbone(any_size)
    assert open_size.input.shape == (None, None, None, 3)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_fix_stage_moves_the_classifier_alone(policy):
    """SSLD's last stage, in a real fit: no weight but the classifier's, and no statistic."""
    keras.config.set_dtype_policy(policy)
    model = network()
    teacher = network(size=None, dropout=0.0)
    keras.config.set_dtype_policy("float32")
    student = with_frozen_backbone(model, image_size=(12, 10))
    before = {v.path: v.numpy() for v in student.variables}
    originals = values(model)
    distiller = ssd.Distiller(teacher, student, objectives=KD["objectives"])
    distiller.compile(ssd.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), run_eagerly=True)
    distiller.fit(LARGER, LABELS, batch_size=3, verbose=0)
    moved = {v.path for v in student.variables if (v.numpy() != before[v.path]).any()}
    assert moved == {"logits/kernel", "logits/bias"}
    assert_equal(values(model), originals)
    assert len(distiller.optimizer.variables) >= 2 + len(moved)


def test_the_model_and_the_network_go_their_own_ways():
    model = network()
    frozen = with_frozen_backbone(model)
    expected = frozen(IMAGES).numpy()
    for weight in model.weights:
        weight.assign(weight + 1)
    np.testing.assert_array_equal(frozen(IMAGES), expected)
    originals = values(model)
    classifier = frozen.get_layer("logits")
    classifier.kernel.assign(classifier.kernel * 2)
    assert_equal(values(model), originals)


def test_a_model_that_is_not_trained_has_a_classifier_that_is():
    model = network()
    model.trainable = False
    assert len(with_frozen_backbone(model).trainable_variables) == 2
    assert not model.trainable_variables


def test_saved_and_loaded(tmp_path):
    model = network()
    frozen = with_frozen_backbone(model, (12, 10))
    frozen.get_layer("logits").bias.assign([1.0, 2.0, 3.0])
    frozen.save(tmp_path / "fixed.keras")
    loaded = keras.models.load_model(tmp_path / "fixed.keras")
    np.testing.assert_array_equal(loaded(LARGER, training=True), frozen(LARGER))
    assert len(loaded.trainable_variables) == 2
    again = with_frozen_backbone(loaded)
    np.testing.assert_array_equal(again(LARGER), frozen(LARGER))


def test_exported(tmp_path):
    frozen = with_frozen_backbone(network(), (12, 10))
    path = ssd.export_student(frozen, tmp_path / "exported")
    exported = tf.saved_model.load(path).signatures["serving_default"]
    logits = exported(image=tf.constant(LARGER))["logits"]
    np.testing.assert_allclose(logits, frozen(LARGER), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- kinds of networks


def test_further_heads_are_left_out():
    model = models.build("resnet8", num_classes=3, input_shape=(8, 8, 3))
    peer = models.build("resnet8", num_classes=3, input_shape=(8, 8, 3))
    expected = model(IMAGES)
    for network_with_heads in (
        with_projection(with_auxiliary_classifiers(model)),
        with_peer(model, peer),
    ):
        frozen = with_frozen_backbone(network_with_heads, (8, 8))
        assert frozen.count_params() == model.count_params()
        np.testing.assert_array_equal(frozen(IMAGES), expected)


def test_a_backbone_that_was_frozen_already():
    """The copies count, not the layers that they were made of."""
    model = network()
    projected = with_projection(model, backbone="frozen")
    for weight in model.weights:
        weight.assign(weight + 1)
    frozen = with_frozen_backbone(projected)
    np.testing.assert_array_equal(frozen(IMAGES), projected(IMAGES)["logits"])
    assert len(frozen.trainable_variables) == 2
    larger = with_frozen_backbone(projected, (12, 10))
    assert_equal(larger.get_weights(), frozen.get_weights())


def test_nested_sequential_with_layers_behind_the_classifier():
    inner = network()
    layers_of = [keras.Input((8, 8, 3), dtype="uint8"), inner]
    model = keras.Sequential([*layers_of, layers.Activation("linear", dtype="float32")])
    frozen = with_frozen_backbone(model, (12, 10))
    expected = with_frozen_backbone(inner, (12, 10))
    np.testing.assert_array_equal(frozen(LARGER), expected(LARGER))
    assert len(frozen.trainable_variables) == 2


def test_a_convolution_may_be_the_classifier():
    """As in MobileNetV3: 1x1 on the pooled map, then flattened."""
    images = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(images))
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Flatten()(layers.Conv2D(3, 1, name="logits")(x))
    model = keras.Model(images, x)
    frozen = with_frozen_backbone(model)
    np.testing.assert_array_equal(frozen(IMAGES), model(IMAGES))
    assert with_frozen_backbone(model, (12, 10))(LARGER).shape == (6, 3)
    assert [v.path for v in frozen.trainable_variables] == ["logits/kernel", "logits/bias"]


def test_a_lone_classifier_of_vectors():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="logits")])
    frozen = with_frozen_backbone(model)
    vectors = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(frozen(vectors), model(vectors))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_precision(policy):
    options = {"num_classes": 3, "input_shape": (8, 8, 3), "mean": [0.5] * 3, "std": [0.2] * 3}
    model = models.build("resnet8", **options, dtype=policy)
    frozen = with_frozen_backbone(model, (12, 10))
    assert frozen.dtype_policy.name == policy
    assert frozen.output.dtype == model.output.dtype
    assert frozen.get_layer("logits").kernel.dtype == model.get_layer("logits").kernel.dtype
    np.testing.assert_array_equal(with_frozen_backbone(model)(IMAGES), model(IMAGES))


def test_vgg_keeps_the_maxima_that_it_was_built_with():
    """A maximum more where the images are twice as large: of `build`, not of the frozen one."""
    options = {"num_classes": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    small = models.build("vgg8", input_shape=(32, 32, 3), **options)
    large = models.build("vgg8", input_shape=(64, 64, 3), **options)
    large.set_weights(small.get_weights())
    images = RANDOM.integers(0, 256, (1, 64, 64, 3)).astype("uint8")
    frozen = with_frozen_backbone(small, (64, 64))(images)
    assert (frozen.numpy() != large(images).numpy()).all()
    back = with_frozen_backbone(large, (32, 32))
    assert back(images[:, ::2, ::2]).shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_network_can_be_enlarged(name):
    options = {"num_classes": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    model = models.build(name, input_shape=(32, 32, 3), **options)
    images = RANDOM.integers(0, 256, (1, 40, 40, 3)).astype("uint8")
    np.testing.assert_array_equal(
        with_frozen_backbone(model)(images[:, :32, :32]), model(images[:, :32, :32])
    )
    larger = with_frozen_backbone(model, (40, 40))
    as_built = models.build(name, input_shape=(40, 40, 3), **options)
    as_built.set_weights(model.get_weights())
    np.testing.assert_array_equal(larger(images, training=True), as_built(images))
    assert [v.path for v in larger.trainable_variables] == ["logits/kernel", "logits/bias"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1"])
def test_families_are_saved(name, tmp_path):
    larger = with_frozen_backbone(
        models.build(name, num_classes=3, input_shape=(8, 8, 3)), image_size=(12, 10)
    )
    larger.save(tmp_path / "larger.keras")
    loaded = keras.models.load_model(tmp_path / "larger.keras")
    np.testing.assert_array_equal(loaded(LARGER), larger(LARGER))


APPLICATIONS = {  # of Keras: the classifier
    "ResNet50": "predictions",
    "MobileNet": "conv_preds",
    "MobileNetV2": "predictions",
    "MobileNetV3Small": "logits",
    "EfficientNetB0": "predictions",
    "DenseNet121": "predictions",
    "ConvNeXtTiny": "convnext_tiny_head_dense",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_keras(name, tmp_path):
    build = getattr(keras.applications, name)
    options = {"weights": None, "classifier_activation": None, "classes": 3}
    model = build(input_shape=(32, 32, 3), **options)
    images = RANDOM.uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    np.testing.assert_array_equal(
        with_frozen_backbone(model)(images[:, :32, :32]), model(images[:, :32, :32])
    )
    larger = with_frozen_backbone(model, (64, 64))
    as_built = build(input_shape=(64, 64, 3), **options)
    as_built.set_weights(model.get_weights())
    np.testing.assert_allclose(larger(images), as_built(images), rtol=1e-5, atol=1e-6)
    classifier = APPLICATIONS[name]
    kernel, bias = larger.trainable_variables
    assert [kernel.path, bias.path] == [f"{classifier}/kernel", f"{classifier}/bias"]
    larger.save(tmp_path / "larger.keras")
    loaded = keras.models.load_model(tmp_path / "larger.keras")
    np.testing.assert_array_equal(loaded(images), larger(images))


# ---------------------------------------------------------------------------- mistakes


class Subclassed(keras.Model):
    def call(self, x):
        return x


def of_one_size(*behind):
    images = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv")]
    return keras.Sequential([*images, *behind], name="net")


SIZES = {  # what does not fit images of another size: the layers, the size, the message
    "flattened": (
        [layers.Flatten(), layers.Dense(3)],
        (12, 10),
        r"net' cannot take images \(12, 10, 3\): what was \(None, 144\) would be \(None, 320\)",
    ),
    "hidden": (
        [layers.Flatten(), layers.Dense(4, name="hidden"), layers.Dense(3)],
        (12, 10),
        r"cannot take images \(12, 10, 3\): its layer 'hidden' does not fit them\. Leave",
    ),
    "pooled": (
        [layers.AveragePooling2D(6, name="pool"), layers.Flatten(), layers.Dense(3)],
        (7, 7),
        "its layer 'pool' does not fit them.* that pools globally before its classifier",
    ),
    "classified": (
        [layers.Conv2D(3, 1), layers.AveragePooling2D(6), layers.Flatten()],
        (14, 14),
        r"what was \(None, 3\) would be \(None, 12\)",
    ),
}


@pytest.mark.parametrize("case", SIZES)
def test_layers_that_depend_on_the_size(case):
    behind, size, message = SIZES[case]
    model = of_one_size(*behind)
    images = np.ones((2, 8, 8, 3), "float32")
    np.testing.assert_array_equal(with_frozen_backbone(model)(images), model(images))
    with pytest.raises(ValueError, match=message):
        with_frozen_backbone(model, size)


@pytest.mark.parametrize("size", [12, (12,), (12, 0), (12, 1.5), (None, None), "ab", (1, 2, 3)])
def test_a_size_is_two_integers(size):
    with pytest.raises(ValueError, match="`image_size` must be None or a pair of integers >= 1"):
        with_frozen_backbone(network(), size)


def test_a_network_that_takes_no_images():
    vectors = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    first = keras.layers.GlobalAveragePooling2D(data_format="channels_first")
    channels_first = keras.Sequential([keras.Input((3, 8, 8)), first, layers.Dense(3)])
    for model in (vectors, channels_first):
        assert with_frozen_backbone(model).output.shape == (None, 3)
        with pytest.raises(ValueError, match="`image_size` needs a network of images"):
            with_frozen_backbone(model, (12, 12))
    pair = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    pooled = layers.GlobalAveragePooling2D()(layers.Add()(pair))
    with pytest.raises(ValueError, match="must take one tensor, the images, and takes 2"):
        with_frozen_backbone(keras.Model(pair, layers.Dense(3)(pooled)))


def test_what_has_no_classifier():
    images = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(images)
    ends = {
        "pool": x,
        "norm": layers.BatchNormalization(name="norm")(layers.Dense(3)(x)),
        "sum": layers.Add(name="sum")([layers.Dense(3)(x), layers.Dense(3)(x)]),
    }
    for name, end in ends.items():
        with pytest.raises(ValueError, match=f"must end in a classifier.* ends in '{name}'"):
            with_frozen_backbone(keras.Model(images, end))
    with pytest.raises(ValueError, match="ends in its input"):
        with_frozen_backbone(keras.Model(images, images))


def test_other_mistakes():
    with pytest.raises(TypeError, match="Expected a Keras model, got str"):
        with_frozen_backbone("resnet8")
    with pytest.raises(ValueError, match=r"subclassed model.*: build it as a functional model"):
        with_frozen_backbone(Subclassed())
    inside = [
        keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 1, name="conv")], name=name)
        for name in ("first", "second")
    ]
    top = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
    with pytest.raises(ValueError, match=r"has 2 layers named 'conv'.* different names"):
        with_frozen_backbone(keras.Sequential([keras.Input((8, 8, 3)), *inside, *top]))
