"""Auxiliary classifiers of any network: what they repeat, and what cannot be cut."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from heads.networks import (
    CLASSES,
    IMAGES,
    STAGES,
    classified,
    conv,
    flat,
    layers_of_head,
    parameters_of_head,
    plain,
    pooled,
    residual,
    unit,
    with_heads,
)
from keras_ssd import models
from keras_ssd.heads import strip_heads, with_projection

PUBLISHED = {  # network: parameters of each classifier at 100 classes x 4 views
    "resnet20": (283_344, 231_696, 247_952),
    "resnet8x4": (1_251_984, 1_021_840, 1_283_472),
    "wrn_16_2": (708_560, 577_040, 642_704),
    "vgg8": (4_117_008, 4_042_896, 3_747_216, 4_926_864),
}
LARGE = {
    "vgg13": (9_577_104, 9_355_152, 8_468_880, 9_648_528),
    "resnet56": (838_608, 675_600, 691_856),
    "wrn_40_2": (2_186_192, 1_758_736, 1_824_400),
    "shufflenet_v2": (1_632_716, 1_388_536, 1_498_736),
    "resnet50": (24_102_288, 22_882_704, 15_784_336, 14_207_376),
}
TAPS = {"vgg8": ["stage_0", "stage_1", "stage_2", "stage_4"]}  # its first stage has one convolution


def check_published_size(name, expected):
    model = models.build(name, num_classes=100, input_shape=(32, 32, 3))
    unknown = keras.Model(model.input, model.output)  # of no known family
    network = with_heads(unknown, TAPS.get(name), num_views=4)
    heads = range(1, len(expected) + 1)
    assert tuple(parameters_of_head(network, head) for head in heads) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    check_published_size(name, PUBLISHED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_published_sizes_of_large_networks(name):
    check_published_size(name, LARGE[name])


def nested():
    images = keras.Input((16, 16, 3))
    base = residual(None)
    base = keras.Model(base.input, base.get_layer("stage_3").output, name="base")
    base.trainable = False
    x = base(layers.Rescaling(1 / 2)(images), training=False)
    return classified(images, x)


def operations():
    """Operations and constants, a sum and a pooling among them."""
    images = keras.Input((16, 16, 3))
    x = unit(unit(images, 4), 4, name="stage_1")
    x = ops.relu(conv(x, 6, strides=2, name="a") * np.float32(3) + 1.0)
    x = layers.ReLU(name="stage_2")(x + conv(x, 6, name="b"))
    x = ops.multiply(conv(x, 6, strides=2, name="c"), 2.0)
    x = ops.mean(layers.ReLU(name="stage_3")(x), axis=(1, 2))
    return keras.Model(images, layers.Dense(CLASSES, name="logits")(x), name="net")


def gated():
    """Squeeze and excitation, two branches that are concatenated, a split."""
    images = keras.Input((16, 16, 3))
    x = unit(unit(images, 4), 4, name="stage_1")
    x = conv(x, 6, strides=2, name="a")
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.ReLU(name="stage_2")(layers.Multiply()([x, conv(gate, 6, 1, name="gate")]))
    one, other = ops.split(conv(x, 8, strides=2, name="b"), 2, axis=-1)
    x = layers.Concatenate(name="concat")([one, conv(other, 4, name="c")])
    return classified(images, layers.BatchNormalization(name="end")(x))


def shared():
    """One convolution called three times, on both sides of a tap."""
    images = keras.Input((16, 16, 3))
    again = layers.Conv2D(4, 3, padding="same", name="again")
    x = layers.ReLU(name="stage_1")(again(unit(images, 4)))
    x = again(layers.ReLU()(again(layers.AveragePooling2D(2)(x))))
    return classified(images, layers.ReLU(name="stage_2")(x))


def bare():
    """A nested model that ends with an operation is tapped as a whole."""
    images = keras.Input((16, 16, 3))
    inner = keras.Input((None, None, 3))
    base = keras.Model(inner, ops.relu(conv(unit(inner, 4), 5)), name="base")
    return classified(images, unit(base(images), 6, 2, name="end"))


NETWORKS = {
    "residual": (residual, STAGES),
    "plain": (plain, ["b", "c2"]),
    "nested": (nested, [f"base/{stage}" for stage in STAGES]),
    "bare": (bare, ["base", "end"]),
    "operations": (operations, STAGES),
    "gated": (gated, ["stage_1", "stage_2", "concat"]),
    "shared": (shared, ["stage_1", "stage_2"]),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    build, taps = NETWORKS[request.param]
    return build(), taps


def test_all_but_the_last_repeat_the_rest_of_the_network(case):
    """With the original weights they give what the network gives."""
    model, taps = case
    network = with_heads(model, taps)
    originals = flat(model)
    for head in range(1, len(taps)):
        for name, layer in layers_of_head(network, head).items():
            if name != "logits" and layer.weights:
                layer.set_weights(originals[name].get_weights())
        kernel, bias = model.get_layer("logits").get_weights()
        expected = np.asarray(model(IMAGES)) - bias
        got = pooled(network, head)(IMAGES) @ kernel
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_logits_stay_and_every_classifier_learns(case):
    model, taps = case
    network = with_heads(model, taps)
    names = [f"auxiliary_{head}" for head in range(1, len(taps) + 1)]
    assert list(network.output) == ["logits", *names]
    with tf.GradientTape() as tape:
        outputs = network(IMAGES, training=True)
        loss = sum(ops.mean(outputs[name] ** 2) for name in names)
    fresh = [layers_of_head(network, head).values() for head in range(1, len(taps) + 1)]
    weights = [v.value for each in fresh for layer in each for v in layer.trainable_weights]
    assert all(gradient is not None for gradient in tape.gradient(loss, weights))
    assert all(outputs[name].shape == (4, 2 * CLASSES) for name in names)
    np.testing.assert_array_equal(network(IMAGES)["logits"], model(IMAGES))
    assert {id(v) for v in strip_heads(network).weights} == {id(v) for v in model.weights}


@pytest.mark.parametrize("build", [operations, nested])
def test_saving(build, tmp_path):
    network = with_heads(build(), NETWORKS[build.__name__][1])
    network.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    for name, value in network(IMAGES).items():
        np.testing.assert_allclose(loaded(IMAGES)[name], value, atol=1e-6)


def test_the_last_repeats_its_own_stage_in_one_size():
    model = residual()
    network = with_heads(model)
    fresh = layers_of_head(network, 3)
    assert "stage_3_shortcut" not in fresh
    assert "stage_3_shortcut_norm" not in fresh
    tap = keras.Model(model.input, model.get_layer("stage_3").output)(IMAGES)
    x = keras.ops.relu(fresh["stage_3_unit_norm"](fresh["stage_3_unit_conv"](tap)))
    x = keras.ops.relu(fresh["stage_3_norm"](fresh["stage_3_conv"](x)) + tap)
    expected = fresh["logits"](keras.ops.mean(x, axis=(1, 2)))
    np.testing.assert_allclose(network(IMAGES)["auxiliary_3"], expected, rtol=1e-5, atol=1e-6)


def test_what_follows_the_last_tap_is_in_every_classifier():
    model = plain()
    network = with_heads(model, ["a", "b", "c1"])
    assert [sorted(layers_of_head(network, head)) for head in (1, 2, 3)] == [
        sorted({f"{unit}{part}" for unit in units for part in ("", "_conv", "_norm")} | more)
        for units, more in [
            (["b", "c1", "c2"], {"logits", *pools(model)}),
            (["c1", "c2"], {"logits", pools(model)[1]}),
            (["c1", "c2"], {"logits"}),
        ]
    ]


def pools(model):
    return [x.name for x in model.layers if isinstance(x, layers.MaxPooling2D)]


def test_fresh_layers_are_the_classifiers_own():
    model = residual()
    network = with_heads(model)
    for head in (1, 2, 3):
        for layer in layers_of_head(network, head).values():
            assert all(layer is not other for other in model.layers)
    norm = layers_of_head(network, 1)["stage_2_unit_norm"]
    assert norm.momentum == 0.9


def test_layers_of_one_name_in_two_nested_models():
    images = keras.Input((16, 16, 3))
    x = unit(images, 4, name="stage_1")
    for filters, name in ((5, "one"), (6, "two")):
        inner = keras.Input((None, None, x.shape[-1]))
        outputs = unit(inner, filters, 2, name="same")
        x = keras.Model(inner, outputs, name=name)(x)
    network = with_heads(classified(images, x), ["stage_1", "one/same", "two/same"])
    fresh = layers_of_head(network, 1)
    assert fresh["same_conv"].filters == 5
    assert fresh["same_conv.2"].filters == 6


def seeded():
    images = keras.Input((16, 16, 3))
    x = images
    for name, strides in (("a", 1), ("stage_1", 1), ("stage_2", 2), ("c", 2), ("stage_3", 1)):
        initializer = keras.initializers.GlorotUniform(seed=keras.random.SeedGenerator(3))
        if name == "stage_3":
            initializer = keras.initializers.HeNormal(seed=3)
        x = conv(x, 4, strides=strides, name=name, kernel_initializer=initializer)
    return classified(images, x)


def test_first_weights_are_drawn_anew_whatever_seed_the_originals_had():
    model = seeded()
    network = with_heads(model)
    kernels = [layers_of_head(network, head)["stage_3"].kernel.numpy() for head in (1, 2, 3)]
    kernels.append(model.get_layer("stage_3").kernel.numpy())
    for index, kernel in enumerate(kernels):
        assert all((kernel != other).any() for other in kernels[:index])


def test_classifiers_of_a_frozen_network_learn():
    model = residual()
    model.trainable = False
    network = with_heads(model)
    fresh = [layer for head in (1, 2, 3) for layer in layers_of_head(network, head).values()]
    own = {id(v) for layer in fresh for v in layer.trainable_weights}
    assert own == {id(v) for v in network.trainable_weights}
    assert len(own) == 20 + 11 + 8


def test_the_layers_of_a_frozen_backbone_are_repeated_unfrozen():
    network = with_heads(with_projection(residual(), backbone="frozen"))
    assert list(network.output) == ["logits", "projection", *(f"auxiliary_{i}" for i in (1, 2, 3))]
    assert [len(layers_of_head(network, head)) for head in (1, 2, 3)] == [19, 10, 8]
    assert len(network.trainable_weights) == 4 + 20 + 11 + 8


def test_precisions_are_those_of_the_originals():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = residual()
    keras.config.set_dtype_policy("float32")
    network = with_heads(model)
    fresh = layers_of_head(network, 1)
    assert fresh["stage_2_conv"].dtype_policy.name == "mixed_bfloat16"
    assert fresh["logits"].compute_dtype == "float32"
    assert network(IMAGES)["auxiliary_1"].dtype == "float32"


@pytest.mark.usefixtures("float64")
def test_double_precision_reaches_the_joint_logits():
    model = residual()
    keras.config.set_dtype_policy("float32")
    assert with_heads(model)(IMAGES.astype("float64"))["auxiliary_3"].dtype == "float64"


class Unsaved(layers.Layer):
    """A layer with weights whose argument no config can hold."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def unsaved():
    images = keras.Input((16, 16, 3))
    x = layers.Rescaling(2.0, dtype="float32")(images)
    x = unit(unit(x, 4), 4, name="stage_1")
    x = unit(x, 6, 2, name="stage_2")
    x = Unsaved(layers.Conv2D(7, 3, 2, padding="same"), name="mine")(x)
    return classified(images, layers.ReLU(name="stage_3")(x))


def test_where_a_layer_cannot_be_made_again_the_classifier_is_a_small_one(caplog):
    network = with_heads(unsaved())
    found = [
        sorted(x.split(".")[1] for x in layers_of_head(network, h) if "." in x) for h in (1, 3)
    ]
    assert set(found[0]) == {"0", "1"}  # blocks: to stage 2 and to stage 3
    assert set(found[1]) == {"0"}
    shapes = [pooled(network, head).output_shape for head in (1, 2, 3)]
    assert shapes == [(None, 8)] * 3  # 7 channels, rounded up to bottlenecks of 2
    last = layers_of_head(network, 3)
    assert last["small.0.conv2"].strides == (1, 1)
    assert layers_of_head(network, 1)["small.1.conv2"].strides == (2, 2)
    assert network(IMAGES)["auxiliary_3"].shape == (4, 2 * CLASSES)
    lines = caplog.text.splitlines()
    assert [line.split("Auxiliary classifier ")[1][:1] for line in lines] == ["1", "2", "3"]
    assert (
        "3 of 'net' is a small one and not the paper's: 'mine' cannot be made again: Object"
        in (lines[2])
    )


def test_an_activation_that_no_config_holds(caplog):
    images = keras.Input((16, 16, 3))
    x = unit(unit(images, 4), 4, name="stage_1")
    x = conv(x, 6, strides=2, name="lambda", activation=lambda x: x * 2)
    model = classified(images, layers.ReLU(name="stage_2")(x))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with_heads(model)
    assert not warned
    assert "'lambda' cannot be made again: " in caplog.text


def test_a_small_classifier_has_the_precision_of_what_it_begins_at():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = unsaved()
    keras.config.set_dtype_policy("float32")
    fresh = layers_of_head(with_heads(model), 3)
    assert fresh["small.0.conv1"].dtype_policy.name == "mixed_bfloat16"
    assert fresh["logits"].compute_dtype == "float32"


def test_layers_without_weights_that_no_config_holds_are_called_as_they_are(caplog):
    images = keras.Input((16, 16, 3))
    x = unit(unit(images, 4), 4, name="stage_1")
    x = layers.Lambda(lambda x: x[..., ::-1], name="swap")(unit(x, 6, 2))
    network = with_heads(classified(images, layers.ReLU(name="stage_2")(x)))
    assert caplog.text == ""
    fresh = layers_of_head(network, 2)["logits"]
    assert fresh.kernel.shape == (6, 2 * CLASSES)
    assert network.get_layer("swap") in network.layers


def tokens():
    """Attention among the places of a map."""
    images = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 6), name="tokens")(conv(images, 6, 4, 4))
    for index in (1, 2, 3):
        y = layers.MultiHeadAttention(2, 3)(layers.LayerNormalization()(x), x)
        x = layers.Add(name=f"block_{index}")([x, y])
    x = layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(name="norm")(x))
    return keras.Model(images, layers.Dense(CLASSES, name="logits")(x), name="net")


def test_blocks_of_attention_with_taps():
    network = with_heads(tokens(), ["block_1", "block_2", "block_3"])
    assert [len(layers_of_head(network, head)) for head in (1, 2, 3)] == [8, 5, 5]
    assert network(IMAGES)["auxiliary_3"].shape == (4, 2 * CLASSES)
    with pytest.raises(ValueError, match=r"what it pools is no map.*Pass `taps=`"):
        with_heads(tokens())


def test_no_small_classifier_for_what_is_no_map():
    images = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 6), name="tokens")(conv(images, 6, 4, 4))
    x = layers.ReLU(name="end")(Unsaved(layers.Dense(6), name="mine")(x))
    x = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))
    with pytest.raises(
        ValueError, match=r"Auxiliary classifier 1 of .* cannot repeat.*'mine' cannot be made again"
    ):
        with_heads(keras.Model(images, x), ["tokens", "end"])


def branched():
    model = residual()
    side = layers.Conv2D(2, 3, name="side")(model.get_layer("stage_1").output)
    return keras.Model(model.input, {"logits": model.output, "side": side}, name="net")


MISTAKES = {
    "unknown": (residual, ["stage_1", "stage_4"], "No layer 'stage_4' in model 'net'. Close names"),
    "order": (
        residual,
        ["stage_3", "stage_1", "stage_2"],
        r"from shallow to deep, \['stage_1', 'stage_2', 'stage_3'\], got \['stage_3'",
    ),
    "twice": (residual, ["stage_1", "stage_1"], "Tap 'stage_1' is given twice"),
    "one": (residual, ["stage_1"], r"a list of two layers or more, got \['stage_1'\]"),
    "a string": (residual, "stage_1", "a list of two layers or more, got 'stage_1'"),
    "inside a block": (residual, ["stage_1", "stage_2_conv"], "'stage_2_conv' cannot be tapped"),
    "no way to the logits": (branched, ["stage_1", "side"], "'side' cannot be tapped: all ways"),
    "behind the pooling": (residual, ["stage_1", "pool"], "'pool' cannot be tapped: all ways from"),
    "one map": (nested, ["base", "base/stage_3"], "'base' and 'base/stage_3' are one map"),
    "called twice": (shared, ["stage_1", "again"], "'again' is called several times"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_taps_that_cannot_be_cut_at(mistake):
    build, taps, message = MISTAKES[mistake]
    model = build()
    before = [layer.name for layer in flat(model).values()]
    with pytest.raises(ValueError, match=message):
        with_heads(model, taps)
    assert [layer.name for layer in flat(model).values()] == before


def channels_first():
    images = keras.Input((3, 16, 16))
    x = layers.Conv2D(4, 3, data_format="channels_first")(images)
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    return keras.Model(images, layers.Dense(CLASSES)(x), name="net")


def two_inputs():
    one, other = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(conv(one + other, 3))
    return keras.Model([one, other], layers.Dense(CLASSES)(x), name="net")


def never_pooled():
    images = keras.Input((16, 16, 3))
    return keras.Model(images, conv(images, 3), name="net")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (channels_first, "'net' has layers with data_format='channels_first'"),
        (two_inputs, "takes one tensor, the images; 'net' takes 2"),
        (never_pooled, "'net' must pool or flatten feature maps before its logits"),
    ],
)
def test_networks_that_cannot_have_heads(build, message):
    with pytest.raises(ValueError, match=message):
        with_heads(build())
