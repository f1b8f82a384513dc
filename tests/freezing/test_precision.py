import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from freezing.networks import (
    IMAGES,
    answer,
    chain,
    difference,
    drawn,
    frozen_answer,
    operations,
    pool,
)
from keras_ssd.freezing import precision
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.shufflenet_v1 import ShuffleNetV1
from keras_ssd.models.shufflenet_v2 import ShuffleNetV2

ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}


def network(**options):
    return chain(
        layers.Rescaling(2.0, -1.0),
        layers.Conv2D(8, 3),
        layers.BatchNormalization(),
        layers.ReLU(name="map"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3),
        layers.LayerNormalization(),
        pool(),
        layers.Dense(3),
        **options,
    )


def as_run(model, dtype, images=IMAGES):
    """The types of what each operation of a kind gives, in a graph."""
    frozen = ssd.freeze(model, dtype=dtype)
    graph = tf.function(frozen).get_concrete_function(tf.constant(images)).graph
    types = {}
    for operation in graph.get_operations():
        if operation.outputs:
            types.setdefault(operation.type, set()).add(operation.outputs[0].dtype.name)
    return types


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_feature_maps_are_halved_and_nothing_else(dtype):
    types = as_run(network(), dtype)
    for kind in ("Conv2D", "DepthwiseConv2dNative", "Relu", "FusedBatchNormV3"):
        assert types[kind] == {dtype}, kind
    assert types["MatMul"] == {"float32"}  # the classifier
    assert types["BiasAdd"] == {dtype, "float32"}
    assert types["Mean"] == {"float32"}  # pooling, and the moments of the layer normalisation
    assert "float32" in types["Mul"]  # the normalisation of the images


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_outputs_are_near_and_float32(dtype):
    model = ssd.named_outputs(network(), {"map": "map"})
    frozen = ssd.freeze(model, dtype=dtype)
    outputs = frozen(tf.constant(IMAGES))
    assert {name: tensor.dtype.name for name, tensor in outputs.items()} == {
        "logits": "float32",
        "map": "float32",
    }
    wrong = difference(frozen_answer(frozen), answer(model))
    assert ROUNDING[dtype] / 100 < wrong < 4 * ROUNDING[dtype]


def test_a_network_in_bfloat16_stays_in_it():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network()
    keras.config.set_dtype_policy("float32")
    types = as_run(model, None)
    for kind in ("Conv2D", "DepthwiseConv2dNative", "BiasAdd", "FusedBatchNormV3"):
        assert types[kind] == {"bfloat16"}, kind


def test_operations_take_what_they_are_given(caplog):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same")(2 * inputs - 1)
    model = keras.Model(inputs, pool()(keras.ops.maximum(x, 0) * x + inputs))
    frozen = ssd.freeze(model, dtype="bfloat16")
    assert difference(frozen_answer(frozen), answer(model)) < 4 * ROUNDING["bfloat16"]
    assert caplog.text == ""


def test_a_float16_dtype_of_a_network_in_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert as_run(network(), "float16")["Conv2D"] == {"float16"}


def test_kernels_are_stored_halved():
    frozen = ssd.freeze(chain(layers.Conv2D(8, 3), layers.BatchNormalization()), dtype="bfloat16")
    assert {variable.dtype for variable in frozen.variables} == {"bfloat16", "float32"}
    assert next(v for v in frozen.variables if len(v.shape) == 4).dtype == "bfloat16"


@pytest.mark.parametrize("family", [ShuffleNetV1, ShuffleNetV2])
def test_layers_of_the_papers_are_halved(family, caplog):
    network = family(blocks=(1, 2, 1), widths=(48, 72, 96))
    blocks = Blocks(keras.DTypePolicy("float32"), network.initialization)
    images = blocks.images((8, 8, 4))
    model = drawn(keras.Model(images, network(blocks, images, 3)))
    types = as_run(model, "bfloat16")
    assert caplog.text == ""
    for kind in ("Conv2D", "DepthwiseConv2dNative", "ConcatV2", "Reshape"):
        assert types[kind] == {"bfloat16"}, kind


def test_channels_first():
    model = chain(
        layers.Permute((3, 1, 2)),
        layers.Conv2D(5, 3, data_format="channels_first"),
        layers.BatchNormalization(axis=1),
        layers.GlobalAveragePooling2D(data_format="channels_first"),
    )
    wrong = difference(frozen_answer(ssd.freeze(model, dtype="bfloat16")), answer(model))
    assert ROUNDING["bfloat16"] / 100 < wrong < 4 * ROUNDING["bfloat16"]


def test_no_variable_is_trained():
    assert not any(v.trainable for v in ssd.freeze(network(), dtype="bfloat16").variables)


def test_without_folding():
    model = network()
    frozen = ssd.freeze(model, dtype="bfloat16", fold_batch_norm=False)
    assert "FusedBatchNormV3" not in operations(frozen)
    assert as_run(model, "bfloat16")["Conv2D"] == {"bfloat16"}
    assert difference(frozen_answer(frozen), answer(model)) < 4 * ROUNDING["bfloat16"]


def test_layers_of_the_user_keep_their_precision(caplog):
    class Shift(layers.Layer):
        def call(self, x):
            return x + 1

    model = chain(layers.Conv2D(5, 3), Shift(name="shift"), layers.Conv2D(5, 3), pool())
    frozen = ssd.freeze(model, dtype="bfloat16")
    assert "1 layer(s) of" in caplog.text
    assert "not in bfloat16" in caplog.text
    assert caplog.text.rstrip().endswith("shift")
    assert difference(frozen_answer(frozen), answer(model)) < 4 * ROUNDING["bfloat16"]


def adapted():
    layer = layers.Normalization()
    layer.adapt(IMAGES[..., :1] * 3 - 1)
    return layer


def with_lora(model):
    model.layers[1].enable_lora(2)
    return model


LEFT = {
    "normalization": lambda: chain(layers.Conv2D(1, 3), adapted(), pool()),
    "lambda": lambda: chain(layers.Conv2D(5, 3), layers.Lambda(lambda x: x + 1), pool()),
    "activation": lambda: chain(layers.Conv2D(5, 3), layers.Activation(lambda x: x * x), pool()),
    "lora": lambda: with_lora(chain(layers.Conv2D(5, 3), layers.ReLU(), pool())),
    "wrapper": lambda: chain(
        layers.Conv2D(5, 3), layers.TimeDistributed(layers.Conv1D(5, 2)), pool()
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_layers_that_cannot_be_made_anew_keep_their_precision(case, caplog):
    model = LEFT[case]()
    frozen = ssd.freeze(model, dtype="bfloat16")
    assert difference(frozen_answer(frozen), answer(model)) < 4 * ROUNDING["bfloat16"]
    assert "1 layer(s) of" in caplog.text


def test_attention_in_half():
    inputs = keras.Input((8, 8, 4))
    x = layers.Reshape((64, 5))(layers.Conv2D(5, 1)(inputs))
    x = layers.MultiHeadAttention(2, 3, dropout=0.5)(x, x)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    frozen = ssd.freeze(model, dtype="bfloat16")
    wrong = difference(frozen_answer(frozen), answer(model))
    assert ROUNDING["bfloat16"] / 100 < wrong < 4 * ROUNDING["bfloat16"]


def test_vectors_alone_are_never_halved(caplog):
    model = chain(pool(), layers.Dense(5), layers.Dense(3))
    assert difference(frozen_answer(ssd.freeze(model, dtype="bfloat16")), answer(model)) < 1e-6
    assert "has no feature maps to put in bfloat16" in caplog.text


@pytest.mark.parametrize("dtype", ["int8", "float32", "mixed_bfloat16", 16])
def test_unknown_dtype(dtype):
    with pytest.raises(ValueError, match="`dtype` must be None"):
        ssd.freeze(network(), dtype=dtype)


@pytest.mark.parametrize("dtype", [tf.bfloat16, np.float16, np.dtype("float16")])
def test_dtypes_of_tensorflow_and_numpy(dtype):
    assert ssd.freeze(network(), dtype=dtype)(tf.constant(IMAGES))["logits"].shape == (6, 3)


STARTS = {
    "wrapped": lambda: layers.SpectralNormalization(layers.Conv2D(5, 3)),
    "einsum": lambda: layers.EinsumDense("bhwc,cd->bhwd", (None, None, 5)),
}


@pytest.mark.parametrize("case", STARTS)
def test_any_kind_of_convolution_is_the_first(case, caplog):
    model = chain(STARTS[case](), layers.DepthwiseConv2D(3), layers.ReLU(), pool())
    types = as_run(model, "bfloat16")
    assert types["DepthwiseConv2dNative"] == types["Relu"] == {"bfloat16"}
    assert (case == "wrapped") == ("1 layer(s) of" in caplog.text)


# --- What the machine can do -------------------------------------------------------------------


def test_a_machine_that_is_slower_in_half(monkeypatch):
    rates = {"float32": 100.0, "bfloat16": 12.5, "float16": 200.0}
    monkeypatch.setattr(precision, "_matmul_rate", rates.get)
    with pytest.warns(UserWarning, match=r"at 12.5 GFLOP/s in bfloat16 and at 100 in float32"):
        frozen = ssd.freeze(network(), dtype="bfloat16")
    assert frozen(tf.constant(IMAGES))["logits"].dtype == tf.float32
    ssd.freeze(network(), dtype="float16")  # no warning


def test_the_rate_is_measured(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(precision.time, "perf_counter", iter([1.0, 1.4, 2.0, 2.2, 9.0]).__next__)
    precision._matmul_rate.cache_clear()
    rate = precision._matmul_rate("bfloat16", 64)  # two turns, then half a second is over
    precision._matmul_rate.cache_clear()
    assert rate == pytest.approx(2 * 64**3 / 0.2 / 1e9)
