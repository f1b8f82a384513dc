import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from keras import layers

from keras_ssd import models
from keras_ssd.heads import named_outputs, with_projection
from keras_ssd.layers import FrozenBackbone

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("uint8")


def network(width=6, pooled="pool", dropout=0.5):
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(width, 3, name="conv")(layers.Rescaling(1 / 255)(images))
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name=pooled)(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(images, layers.Dense(5, name="logits", dtype="float32")(x), name="net")


@pytest.mark.parametrize("case", golden_cases("sskd", "projection_head"))
def test_golden(case, float64):
    given = {name: np.array(value) for name, value in case["inputs"].items()}
    vectors = keras.Input((given["x"].shape[1],))
    head = with_projection(keras.Model(vectors, layers.Dense(2)(vectors)))
    for name, kernel, bias in (("proj_head.0", "w0", "b0"), ("proj_head.2", "w2", "b2")):
        head.get_layer(name).set_weights([given[kernel].T, given[bias]])
    x = tf.constant(given["x"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        projection = head(x)["projection"]
    np.testing.assert_allclose(projection, case["expected"]["output"], rtol=1e-12)
    gradient = tape.gradient(projection, x)
    np.testing.assert_allclose(gradient, case["gradients"]["x"], rtol=1e-11)


@pytest.mark.parametrize("backbone", ["trainable", "frozen"])
def test_outputs_and_parameters(backbone):
    model = network(width=6)
    projected = with_projection(model, backbone=backbone)
    assert list(projected.output) == ["logits", "projection"]
    assert projected.name == "net"
    assert projected(IMAGES)["projection"].shape == (4, 6)
    assert projected.count_params() - model.count_params() == 2 * (6 * 6 + 6)
    np.testing.assert_array_equal(projected(IMAGES)["logits"], model(IMAGES))
    assert {layer.name for layer in projected.layers} >= {"proj_head.0", "proj_head.2"}


def test_initial_values_are_uniform():
    projected = with_projection(network(width=100))
    bound = 0.1
    for name in ("proj_head.0", "proj_head.2"):
        for values in projected.get_layer(name).get_weights():
            assert np.all(np.abs(values) <= bound)
            spread = bound / np.sqrt(3)  # standard deviation of the uniform distribution
            # 100 values: relative standard error of the spread 0.045
            assert np.std(values) == pytest.approx(spread, rel=0.2)
    first, second = (projected.get_layer(f"proj_head.{i}").get_weights() for i in (0, 2))
    assert not np.any(first[0] == second[0])
    assert not np.any(first[1] == second[1])


def test_the_embedding_that_is_found():
    def projection_reads(model, **options):
        """The layer in front of the first Dense of the head."""
        head = with_projection(model, **options).get_layer("proj_head.0")
        return head.input._keras_history.operation.name

    assert projection_reads(network()) == "dropout"  # the input of the last Dense layer
    assert projection_reads(network(pooled="embedding")) == "embedding"
    assert projection_reads(network(), embedding="pool") == "pool"
    named = named_outputs(network(pooled="embedding"), {"embedding": "dropout"})
    assert projection_reads(named) == "dropout"
    assert list(with_projection(named).output) == ["logits", "embedding", "projection"]


def test_embedding_inside_a_nested_model():
    inner = network(pooled="embedding")
    model = keras.Sequential([keras.Input((8, 8, 3)), inner])
    pooled = keras.Model(inner.input, inner.get_layer("embedding").output)(IMAGES)
    projected = with_projection(model)
    head = [projected.get_layer(f"proj_head.{i}") for i in (0, 1, 2)]
    expected = head[2](head[1](head[0](pooled)))
    np.testing.assert_array_equal(projected(IMAGES)["projection"], expected)


def test_the_last_dense_layer_is_looked_for_on_the_way_to_the_logits():
    images = keras.Input((8, 8, 3))
    vector = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3)(images))
    hidden = layers.ReLU(name="hidden")(layers.Dense(7)(vector))
    outputs = {"logits": layers.Dense(5)(hidden), "node": layers.Dense(5)(layers.Dense(9)(vector))}
    projected = with_projection(keras.Model(images, outputs))
    assert projected.get_layer("proj_head.0").input._keras_history.operation.name == "hidden"
    assert list(projected.output) == ["logits", "node", "projection"]


def test_trainable_backbone_is_shared():
    model = network()
    projected = with_projection(model)
    head = 4
    assert len(projected.trainable_variables) == len(model.trainable_variables) + head
    projected.compile("sgd", loss={"logits": "mse", "projection": "mse"})
    kernel = model.get_layer("conv").kernel.numpy()
    projected.train_on_batch(
        IMAGES, {"logits": np.ones((4, 5), "f"), "projection": np.ones((4, 6), "f")}
    )
    assert np.any(model.get_layer("conv").kernel.numpy() != kernel)


def test_frozen_backbone_never_moves():
    model = network()
    projected = with_projection(model, backbone="frozen")
    assert not {id(v) for v in projected.variables} & {id(v) for v in model.variables}
    frozen = projected.get_layer("backbone")
    before = [v.numpy() for v in [*frozen.variables, *model.variables]]
    head = [v.numpy() for v in projected.trainable_variables]
    projected.compile("sgd", loss={"projection": "mse"})
    projected.fit(IMAGES, {"projection": np.ones((4, 6), "f")}, epochs=2, verbose=0)
    for old, variable in zip(before, [*frozen.variables, *model.variables], strict=True):
        np.testing.assert_array_equal(variable, old)
    for old, variable in zip(head, projected.trainable_variables, strict=True):
        assert np.any(variable.numpy() != old)


@pytest.mark.parametrize("backbone", ["trainable", "frozen"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_precision(policy, backbone):
    keras.config.set_dtype_policy(policy)
    model = network()
    keras.config.set_dtype_policy("float32")
    projected = with_projection(model, backbone=backbone)
    assert projected.get_layer("proj_head.0").dtype_policy.name == policy
    full = "float64" if policy == "float64" else "float32"
    assert projected(IMAGES)["projection"].dtype == full
    assert projected.get_layer("proj_head.0").kernel.dtype == full


def test_mistakes():
    with pytest.raises(ValueError, match="must be 'trainable' or 'frozen', got 'fixed'"):
        with_projection(network(), backbone="fixed")
    with pytest.raises(ValueError, match="has a projection head already"):
        with_projection(with_projection(network()))
    with pytest.raises(ValueError, match=r"got \(None, 6, 6, 6\): pass `embedding=`"):
        with_projection(network(), embedding="conv")
    with pytest.raises(ValueError, match=r"No layer 'pooll' in model 'net'\. Close names: pool"):
        with_projection(network(), embedding="pooll")
    with pytest.raises(ValueError, match="has an output named 'embedding' already"):
        with_projection(named_outputs(network(), {"embedding": "pool"}), embedding="pool")
    images = keras.Input((8, 8, 3))
    convolutional = keras.Model(
        images, layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3)(images))
    )
    with pytest.raises(ValueError, match="neither a layer named 'embedding' nor a Dense layer"):
        with_projection(convolutional)


READ_AND_PROJECT = """
import sys
import keras, numpy as np
import keras_ssd.heads
network = keras.models.load_model(sys.argv[1] + "/phase2.keras")
outputs = network(np.load(sys.argv[1] + "/images.npy"), training=True)
np.save(sys.argv[1] + "/projection.npy", outputs["projection"])
np.save(sys.argv[1] + "/logits.npy", outputs["logits"])
assert len(network.trainable_variables) == 4
"""


@pytest.mark.slow
def test_phase_two_is_read_back_bit_for_bit(tmp_path):
    """Saved by one process, read by a fresh one: the same projections."""
    model = network()
    model(IMAGES, training=True)
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(y - p))  # need not be known elsewhere
    projected = with_projection(model, backbone="frozen")
    projected.compile("sgd", loss={"projection": "mse"})
    projected.fit(IMAGES, {"projection": np.ones((4, 6), "f")}, verbose=0)
    projected.save(tmp_path / "phase2.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    subprocess.run([sys.executable, "-c", READ_AND_PROJECT, tmp_path], check=True)
    for name, value in projected(IMAGES).items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), value)


def test_the_frozen_backbone_is_one_layer():
    projected = with_projection(network(), backbone="frozen")
    names = [layer.name for layer in projected.layers]
    assert names[1:] == ["backbone", "proj_head.0", "proj_head.1", "proj_head.2"]
    assert isinstance(projected.get_layer("backbone"), FrozenBackbone)


def test_precision_of_a_loaded_network(tmp_path):
    arguments = {"num_classes": 3, "input_shape": (8, 8, 3), "dtype": "mixed_bfloat16"}
    models.build("resnet8", **arguments).save(tmp_path / "network.keras")
    network = with_projection(keras.models.load_model(tmp_path / "network.keras"))
    assert network.get_layer("proj_head.0").compute_dtype == "bfloat16"
    assert network.get_layer("proj_head.2").compute_dtype == "float32"
