"""Auxiliary classifiers of the papers' networks: what they share, what reaches what, precision."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd import models
from keras_ssd.heads import (
    strip_heads,
    with_auxiliary_classifiers,
    with_peer,
    with_projection,
)
from keras_ssd.layers import BatchNormalization, FrozenBackbone

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype("uint8")
UNITS = {"resnet8": ["layer1", "layer2", "layer3"], "wrn_16_1": ["block1", "block2", "block3"]}
HEADS = ["auxiliary_1", "auxiliary_2", "auxiliary_3"]


def build(name="resnet8", **arguments):
    """A network of 3 classes for small images, with statistics and offsets as of a trained one."""
    arguments = {"num_classes": 3, "input_shape": (8, 8, 3), **arguments}
    model = models.build(name, mean=(0.5,) * 3, std=(0.25,) * 3, **arguments)
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(weight + generator.uniform(0, 0.5, weight.shape))
    return model


@functools.cache
def made(name="resnet8", backbone="trainable"):
    """A network and the same with heads; for tests that change neither."""
    model = build(name)
    return model, with_auxiliary_classifiers(model, backbone=backbone)


def weights_of(network, output):
    """The weights that an output of a network depends on, by id."""
    return {id(w): w for w in keras.Model(network.input, network.output[output]).weights}


def numbers(weights):
    return [weight.numpy() for weight in weights]


def assert_equal(weights, before):
    for weight, value in zip(weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


both = pytest.mark.parametrize("backbone", ["trainable", "frozen"])
each = pytest.mark.parametrize("name", UNITS)


# --- Outputs ----------------------------------------------------------------------------------


@each
@both
def test_the_logits_are_those_of_the_model(name, backbone):
    model, network = made(name, backbone)
    assert list(network.output) == ["logits", *HEADS]
    assert network.name == name
    outputs = network(IMAGES)
    np.testing.assert_array_equal(outputs["logits"], model(IMAGES))
    assert {outputs[head].shape for head in HEADS} == {(6, 12)}
    assert len({outputs[head].numpy().tobytes() for head in HEADS}) == 3


def test_the_logits_of_a_training_step_are_those_of_the_model():
    model, network = build(), None
    expected = model(IMAGES, training=True).numpy()
    network = with_auxiliary_classifiers(model)
    np.testing.assert_array_equal(network(IMAGES, training=True)["logits"], expected)


@pytest.mark.parametrize("num_views", [2, np.int64(3)])
def test_the_width_is_classes_times_views(num_views):
    network = with_auxiliary_classifiers(build(num_classes=5), num_views=num_views)
    assert {network.output[head].shape for head in HEADS} == {(None, 5 * num_views)}


@both
def test_strip_heads_gives_exactly_the_backbone(backbone):
    model, network = made(backbone=backbone)
    stripped = strip_heads(network)
    assert isinstance(stripped.output, keras.KerasTensor)
    assert stripped.count_params() == model.count_params()
    np.testing.assert_array_equal(stripped(IMAGES), model(IMAGES))
    shared = {id(w) for w in stripped.weights} == {id(w) for w in model.weights}
    assert shared == (backbone == "trainable")
    assert len(stripped.trainable_weights) == len(model.trainable_weights) * shared


@pytest.mark.parametrize("first", ["projection", "auxiliary"])
@pytest.mark.parametrize("kinds", [("trainable", "trainable"), ("trainable", "frozen")])
def test_both_kinds_of_heads_in_either_order(first, kinds):
    """One backbone, frozen or not; the heads are trained."""
    model = build()
    makers = {"projection": with_projection, "auxiliary": with_auxiliary_classifiers}
    second = "auxiliary" if first == "projection" else "projection"
    network = makers[second](makers[first](model, backbone=kinds[1]), backbone=kinds[0])
    outputs = network(IMAGES)
    assert outputs.keys() == {"logits", "projection", *HEADS}
    np.testing.assert_array_equal(outputs["logits"], model(IMAGES))
    head = [network.get_layer(f"proj_head.{i}") for i in range(3)]
    embedding = keras.Model(model.input, model.get_layer("embedding").output)(IMAGES)
    expected = head[2](head[1](head[0](embedding)))
    np.testing.assert_allclose(outputs["projection"], expected, rtol=1e-5, atol=1e-6)
    plain = sum(np.prod(w.shape) for w in strip_heads(network).weights)
    assert plain == model.count_params()
    frozen = kinds[1] == "frozen"
    own = {id(w) for w in model.trainable_weights}
    assert bool(own & {id(w) for w in network.trainable_weights}) is not frozen
    trained = len(network.trainable_weights) - (0 if frozen else len(own))
    assert trained == 4 + len(made(backbone="frozen")[1].trainable_weights)


def test_heads_that_the_model_has_are_frozen_with_it():
    network = with_auxiliary_classifiers(with_projection(build()), backbone="frozen")
    assert list(network.output) == ["logits", "projection", *HEADS]
    assert not any(layer.name.startswith("proj_head") for layer in network.layers)


# --- What is shared, and what a gradient reaches ----------------------------------------------


@both
def test_heads_share_no_weight(backbone):
    model, network = made(backbone=backbone)
    own = {id(w) for w in model.weights} | weights_of(network, "logits").keys()
    heads = [weights_of(network, head).keys() - own for head in HEADS]
    assert all(heads)
    assert len(set.union(*heads)) == sum(map(len, heads))
    assert len(network.weights) == len(weights_of(network, "logits")) + sum(map(len, heads))


def test_heads_draw_their_own_first_weights():
    """They are copies neither of the backbone's nor of another head's."""
    _, network = made()
    kernels = {}
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            kernels.setdefault(tuple(layer.kernel.shape), []).append(layer.kernel.numpy().tobytes())
    repeated = [values for values in kernels.values() if len(values) > 1]
    assert len(repeated) > 2
    assert all(len(set(values)) == len(values) for values in repeated)


@each
@pytest.mark.parametrize("head", [1, 2, 3])
def test_the_gradient_of_a_head_ends_at_its_tap(name, head):
    model, network = made(name)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.square(network(IMAGES)[f"auxiliary_{head}"]))
    gradients = tape.gradient(total, model.trainable_variables)
    reached = {}
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        reached.setdefault(variable.path.split("/")[0].split(".")[0], []).append(gradient)
    behind = {*UNITS[name][head:], "logits"} | ({"bn1"} if name == "wrn_16_1" else set())
    assert set(UNITS[name]) < reached.keys()
    for unit, parts in reached.items():
        if unit in behind:
            assert all(gradient is None for gradient in parts), unit
        else:
            assert all(np.any(gradient) for gradient in parts), unit


def test_the_gradient_of_the_logits_reaches_no_head():
    model, network = made()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.square(network(IMAGES)["logits"]))
    own = {id(v) for v in model.trainable_variables}
    gradients = tape.gradient(total, network.trainable_variables)
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert (gradient is None) == (id(variable) not in own), variable.path


# --- A frozen backbone ------------------------------------------------------------------------


def test_only_the_heads_of_a_frozen_backbone_are_trained():
    model, network = made(backbone="frozen")
    assert not {id(w) for w in model.weights} & {id(w) for w in network.weights}
    backbone = network.get_layer("backbone")
    assert isinstance(backbone, FrozenBackbone)
    assert len(backbone.weights) == len(model.weights)
    heads = [w for w in network.weights if id(w) not in {id(c) for c in backbone.weights}]
    statistics = [w for w in heads if "moving" in w.path]
    trained = [id(w) for w in network.trainable_weights]
    assert trained == [id(w) for w in heads if "moving" not in w.path]
    assert len(statistics) == len(heads) - len(trained) > 0


def test_batch_normalisation_of_frozen_layers_stands_still_while_that_of_heads_moves():
    model = build()
    network = with_auxiliary_classifiers(model, backbone="frozen")
    backbone = network.get_layer("backbone")
    before = numbers(model.weights)
    expected = network(IMAGES)["logits"]
    still = [*model.weights, *backbone.weights]
    heads = [w for w in network.weights if "moving" in w.path and "classifier" in w.path]
    started = numbers(heads)
    np.testing.assert_array_equal(network(IMAGES, training=True)["logits"], expected)
    assert_equal(still, before * 2)
    assert len(heads) == 2 * (6 + 3 + 2)  # normalisations of the heads
    for weight, value in zip(heads, started, strict=True):
        assert np.any(weight.numpy() != value), weight.path


def test_a_frozen_backbone_keeps_its_values_when_the_model_changes():
    model = build()
    network = with_auxiliary_classifiers(model, backbone="frozen")
    expected = network(IMAGES)
    for weight in model.weights:
        weight.assign(weight * 2 + 1)
    further = with_projection(network)  # taps the frozen layer once more
    for name, value in expected.items():
        np.testing.assert_array_equal(network(IMAGES)[name], value)
        np.testing.assert_array_equal(further(IMAGES)[name], value)


def test_heads_on_a_backbone_that_is_frozen_already():
    model = build()
    frozen = strip_heads(with_projection(model, backbone="frozen"))
    network = with_auxiliary_classifiers(frozen)
    _, expected = made(backbone="frozen")
    assert [w.path for w in network.trainable_weights] == [
        w.path for w in expected.trainable_weights
    ]
    np.testing.assert_array_equal(network(IMAGES)["logits"], model(IMAGES))
    twice = with_auxiliary_classifiers(frozen, backbone="frozen")
    assert len(twice.trainable_weights) == len(expected.trainable_weights)
    taps = [network, twice]
    for other in taps:
        for one, value in zip(other.trainable_weights, expected.trainable_weights, strict=True):
            one.assign(value)
    for head in HEADS:
        np.testing.assert_array_equal(network(IMAGES)[head], twice(IMAGES)[head])


# --- Saving, precision, replicas --------------------------------------------------------------


@both
def test_saving(backbone, tmp_path):
    _, network = made(backbone=backbone)
    network.save(tmp_path / "net.keras")
    network.save_weights(tmp_path / "net.weights.h5")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    fresh = with_auxiliary_classifiers(build(), backbone=backbone)
    fresh.load_weights(tmp_path / "net.weights.h5")
    for read in (loaded, fresh):
        assert read.name == network.name
        assert [w.path for w in read.trainable_weights] == [
            w.path for w in network.trainable_weights
        ]
        for name, value in network(IMAGES).items():
            np.testing.assert_array_equal(read(IMAGES)[name], value)
    assert_equal(strip_heads(loaded).weights, numbers(strip_heads(network).weights))


@pytest.mark.parametrize(
    ("policy", "backbone"),
    [("mixed_float16", "frozen"), ("mixed_bfloat16", "trainable"), ("float64", "frozen")],
)
def test_precision(policy, backbone):
    network = with_auxiliary_classifiers(build(dtype=policy), backbone=backbone)
    full = "float64" if policy == "float64" else "float32"
    assert network.dtype_policy.name == policy
    if backbone == "frozen":
        assert network.get_layer("backbone").frozen.model.dtype_policy.name == policy
    assert {rows.dtype.name for rows in network(IMAGES).values()} == {full}
    heads = [layer for layer in network.layers if layer.name.startswith("auxiliary_classifier")]
    convolutions = [layer for layer in heads if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.dtype_policy.name for layer in convolutions} == {policy}
    assert {w.dtype for w in network.trainable_weights} == {full}


@pytest.mark.parametrize(
    ("synchronized", "backbone"), [(False, "trainable"), (True, "trainable"), (True, "frozen")]
)
def test_heads_are_synchronized_as_their_backbone_is(backbone, synchronized):
    model = build(synchronized_batch_norm=synchronized)
    network = with_auxiliary_classifiers(model, backbone=backbone)
    norms = [x for x in network.layers if isinstance(x, BatchNormalization)]
    assert {norm.synchronized for norm in norms} == {synchronized}


# --- Mistakes ---------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def call(self, images):
        return images


def test_mistakes():
    model, network = made()
    with pytest.raises(ValueError, match="must be 'trainable' or 'frozen', got 'fixed'"):
        with_auxiliary_classifiers(model, backbone="fixed")
    with pytest.raises(ValueError, match=r"'resnet8' has auxiliary classifiers already.*strip_hea"):
        with_auxiliary_classifiers(network)
    with pytest.raises(
        ValueError, match=r"subclassed model.*\{'logits'.*'auxiliary_1': ...\} from"
    ):
        with_auxiliary_classifiers(Subclassed())
    with pytest.raises(TypeError, match="Expected a Keras model, got function"):
        with_auxiliary_classifiers(lambda images: images)
    with pytest.raises(ValueError, match="not built: begin it with keras"):
        with_auxiliary_classifiers(keras.Sequential([keras.layers.Dense(3)]))
    for num_views in (1, 0, -4, True, 2.0, "4", None):
        with pytest.raises(ValueError, match="`num_views` must be an integer of 2 or more, got"):
            with_auxiliary_classifiers(model, num_views=num_views)


def test_precision_of_a_loaded_network(tmp_path):
    build(dtype="mixed_bfloat16").save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    network = with_auxiliary_classifiers(loaded)
    head = network.get_layer("auxiliary_classifier.block_extractor3.0.0.conv1")
    assert head.compute_dtype == "bfloat16"
    assert network.get_layer("auxiliary_classifier.fc3").compute_dtype == "float32"


def test_peers_get_their_heads_before():
    with pytest.raises(ValueError, match="has a peer: give each of the two networks its"):
        with_auxiliary_classifiers(with_peer(build(), build()))


def test_other_outputs_named_like_a_head():
    model = build()
    taken = keras.Model(model.input, {"logits": model.output, "auxiliary_2": model.output})
    with pytest.raises(ValueError, match="has auxiliary classifiers already"):
        with_auxiliary_classifiers(taken)


def test_a_network_of_ones_own_with_our_names_is_none_of_ours():
    images = keras.Input((16, 16, 3))
    x = images
    for stage in range(4):
        stride = 2 if stage > 1 else 1
        x = keras.layers.Conv2D(4, 3, stride, "same", name=f"my_convolution_{stage}")(x)
        x = keras.layers.ReLU(name=f"stage_{stage}")(x)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(3)(pooled), name="resnet8")
    assert models.network_of(model) is None
    names = {layer.name for layer in with_auxiliary_classifiers(model).layers}
    assert "auxiliary_classifier.1.my_convolution_3" in names
