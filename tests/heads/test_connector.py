"""Connectors: shapes, layers, first weights, precision, training, saving, taking off again."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers

import keras_ssd as ssd
from keras_ssd.heads import named_outputs, strip_heads
from keras_ssd.heads.connector import with_connector
from keras_ssd.layers import BatchNormalization
from keras_ssd.objectives import HardLabels
from keras_ssd.objectives.features import Hint

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("uint8")


def network(width=6, synchronized=False):
    """A map 8x8, and a vector; 5 logits."""
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(width, 3, padding="same", name="map")(layers.Rescaling(1 / 255)(images))
    x = BatchNormalization(name="norm", synchronized=synchronized)(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(5, name="logits", dtype="float32")(x), name="net")


def test_a_vector_is_connected_by_one_linear_layer():
    model = network()
    connected = with_connector(model, "pool", (9,))
    assert list(connected.output) == ["logits", "connector"]
    assert connected.name == "net"
    assert connected.count_params() - model.count_params() == 6 * 9 + 9
    pooled = keras.Model(model.input, model.get_layer("pool").output)(IMAGES).numpy()
    kernel, bias = connected.get_layer("connector.dense").get_weights()
    outputs = connected(IMAGES)
    np.testing.assert_allclose(outputs["connector"], pooled @ kernel + bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs["logits"], model(IMAGES))


MAPS = {  # name: (shape to reach, kernel, stride)
    "equal": ((8, 8, 7), (1, 1), 1),
    "half": ((4, 4, 7), (3, 3), 2),
    "twice": ((16, 16, 7), (4, 4), 2),
    "smaller": ((5, 3, 7), (4, 6), 1),
    "one": ((1, 1, 7), (8, 8), 1),
}


@pytest.mark.parametrize(("like", "kernel", "stride"), MAPS.values(), ids=MAPS)
def test_a_map_is_connected_by_a_convolution(like, kernel, stride, float64):
    """Against PyTorch's layers, with batch statistics."""
    model = network()
    connected = with_connector(model, "map", like)
    assert connected.output["connector"].shape == (None, *like)
    convolution = connected.get_layer("connector.convolution")
    assert convolution.kernel_size == kernel
    weights, bias = (torch.tensor(w) for w in convolution.get_weights())
    norm = connected.get_layer("connector.batch_norm")
    assert isinstance(norm, BatchNormalization)
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    scale, offset = np.random.default_rng(1).normal(size=(2, 7))
    norm.gamma.assign(scale)
    norm.beta.assign(offset)

    rows = keras.Model(model.input, model.get_layer("map").output)(IMAGES)
    x = torch.tensor(rows.numpy()).permute(0, 3, 1, 2)
    function = torch.nn.functional
    if like[0] > 8:
        # Keras: height, width, out, in; PyTorch: in, out, height, width
        x = function.conv_transpose2d(x, weights.permute(3, 2, 0, 1), bias, stride, padding=1)
    else:
        padding = 1 if stride == 2 else 0
        x = function.conv2d(x, weights.permute(3, 2, 0, 1), bias, stride, padding)
    x = function.batch_norm(x, None, None, torch.tensor(scale), torch.tensor(offset), training=True)
    expected = function.relu(x).permute(0, 2, 3, 1)
    found = connected(IMAGES, training=True)["connector"]
    assert np.any(found.numpy() == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


FANS = {(100,): 64, (8, 8, 100): 64, (4, 4, 100): 9 * 64, (16, 16, 100): 1600, (6, 5, 100): 768}


@pytest.mark.parametrize("like", [(8,), (4, 4, 9)], ids=str)
def test_sizes_of_numpy(like):
    output = "pool" if len(like) == 1 else "map"
    connected = with_connector(network(), output, tuple(np.int64(size) for size in like))
    assert connected.output["connector"].shape == (None, *like)
    assert "int64" not in connected.to_json()  # as a number, not as one of NumPy


@pytest.mark.parametrize(("like", "fan_in"), FANS.items(), ids=str)
def test_first_weights_are_uniform(like, fan_in):
    connected = with_connector(network(64), "pool" if len(like) == 1 else "map", like)
    kind = "dense" if len(like) == 1 else "convolution"
    bound = fan_in**-0.5
    for values in connected.get_layer(f"connector.{kind}").get_weights():
        assert np.abs(values).max() <= bound
        assert np.std(values) == pytest.approx(bound / np.sqrt(3), rel=0.2)


def test_what_is_connected():
    """Outputs before layers, layers of nested models, a shape as a tensor; another name."""
    model = named_outputs(network(), {"embedding": "pool", "map": "pool"})
    connected = with_connector(model, "map", keras.KerasTensor((None, 9)))
    assert connected.output["connector"].shape == (None, 9)
    twice = with_connector(connected, "norm", np.zeros((3, 4, 4, 2)), name="second")
    assert list(twice.output) == ["logits", "embedding", "map", "connector", "second"]
    nested = keras.Sequential([keras.Input((8, 8, 3)), network()])
    inner = with_connector(nested, "net/pool", (9,))
    assert inner(IMAGES)["connector"].shape == (4, 9)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("like", [(9,), (4, 4, 9)], ids=str)
def test_precision(policy, like):
    keras.config.set_dtype_policy(policy)
    model = network()
    keras.config.set_dtype_policy("float32")
    connected = with_connector(model, "pool" if len(like) == 1 else "map", like)
    full = "float64" if policy == "float64" else "float32"
    assert connected(IMAGES)["connector"].dtype == full
    if len(like) == 3:
        assert connected.get_layer("connector.convolution").dtype_policy.name == policy
        assert connected.get_layer("connector.convolution").kernel.dtype == full


@pytest.mark.parametrize("synchronized", [False, True])
def test_batch_statistics_are_taken_as_in_the_network(synchronized):
    connected = with_connector(network(synchronized=synchronized), "map", (4, 4, 7))
    assert connected.get_layer("connector.batch_norm").synchronized == synchronized


@pytest.mark.parametrize("like", [(9,), (4, 4, 9)], ids=str)
def test_it_is_trained_with_the_network_by_hints_and_exported_without(like, tmp_path):
    output = "pool" if len(like) == 1 else "map"
    teacher = with_connector(network(), output, like, name="hint")
    student = with_connector(network(), output, like)
    before = {v.path: v.numpy() for v in student.trainable_variables}
    assert any(path.startswith("connector.") for path in before)
    distiller = ssd.Distiller(
        teacher, student, objectives=[HardLabels(), Hint(1.0, teacher_output="hint")]
    )
    distiller.compile(ssd.optimizers.SGD(0.1), run_eagerly=True)
    distiller.train_on_batch(IMAGES, np.arange(4))
    for variable in distiller.student.trainable_variables:
        if "bias" not in variable.path or "convolution" not in variable.path:  # batch norm follows
            assert np.any(variable.numpy() != before[variable.path]), variable.path

    distiller.student.save(tmp_path / "student.keras")
    read = keras.models.load_model(tmp_path / "student.keras")
    for name, value in distiller.student(IMAGES).items():
        np.testing.assert_array_equal(read(IMAGES)[name], value)
    plain = strip_heads(read)
    assert plain.count_params() == network().count_params()
    path = ssd.export_student(distiller, tmp_path / "exported")
    exported = tf.saved_model.load(str(path)).signatures["serving_default"](image=IMAGES)
    assert list(exported) == ["logits"]
    np.testing.assert_allclose(exported["logits"], plain(IMAGES), rtol=1e-4, atol=1e-5)


def test_mistakes():
    with pytest.raises(ValueError, match="has an output named 'connector' already: give the conn"):
        with_connector(with_connector(network(), "pool", (9,)), "pool", (9,))
    with pytest.raises(ValueError, match=r"No layer 'pooll' in model 'net'\. Close names: pool"):
        with_connector(network(), "pooll", (9,))
    for like in ((4, 9), (None, None, 9), (0,), 9, ("9",), (9.0,)):
        with pytest.raises(ValueError, match=r"`like` must be the shape of a vector, .*got"):
            with_connector(network(), "pool", like)
    with pytest.raises(ValueError, match=r"not from \(6,\) to \(4, 4, 9\): name another output"):
        with_connector(network(), "pool", (4, 4, 9))
    with pytest.raises(ValueError, match=r"not from \(8, 8, 6\) to \(9,\): name another output"):
        with_connector(network(), "map", (9,))
    for like in ((9, 9, 3), (16, 8, 3), (4, 16, 3)):
        with pytest.raises(
            ValueError, match=r"from a map of 8x8 to one of .*: a map may be shrunk"
        ):
            with_connector(network(), "map", like)
    images = keras.Input((None, None, 3))
    logits = layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.ReLU(name="map")(images)))
    with pytest.raises(ValueError, match=r"not from \(None, None, 3\) to"):
        with_connector(keras.Model(images, logits), "map", (4, 4, 9))
    with pytest.raises(TypeError, match="Expected a Keras model"):
        with_connector("resnet8", "pool", (9,))
