"""Two networks in one: their outputs, what is shared, what is refused."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_ssd.heads import named_outputs, strip_heads, with_peer, with_projection

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("float32")


def network(width=4, *, classes=5, shape=(8, 8, 3), dropout=0.0, name="net"):
    """Peers usually have one name, and layers of the same names."""
    images = keras.Input(shape)
    x = layers.Conv2D(width, 3, name="conv")(images)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(images, layers.Dense(classes, dtype="float32", name="logits")(x), name=name)


def sequential():
    return keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(5)], name="sequence"
    )


def headed(width=4):
    return named_outputs(with_projection(network(width)), {"map": "conv"})


PEERS = {
    "equal": (network, network),
    "of other widths": (network, lambda: network(7)),
    "with heads": (headed, lambda: headed(3)),
    "with other heads": (headed, network),
    "sequential": (sequential, network),
    "beside sequential": (network, sequential),
}


def named(outputs):
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


@pytest.mark.parametrize("case", PEERS)
def test_the_outputs_are_those_of_both(case):
    model, peer = (make() for make in PEERS[case])
    both = with_peer(model, peer)
    assert both.name == model.name
    own, others = named(model(IMAGES)), named(peer(IMAGES))
    expected = {**own, **{f"peer_{name}": value for name, value in others.items()}}
    outputs = both(IMAGES)
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value)
    assert np.any(outputs["logits"] != outputs["peer_logits"])


@pytest.mark.parametrize("case", PEERS)
def test_strip_heads_gives_exactly_the_model(case):
    model, peer = (make() for make in PEERS[case])
    stripped = strip_heads(with_peer(model, peer))
    assert {id(w) for w in stripped.weights} == {id(w) for w in strip_heads(model).weights}
    assert stripped.count_params() == strip_heads(model).count_params()
    np.testing.assert_array_equal(stripped(IMAGES), named(model(IMAGES))["logits"])


def test_both_are_trained():
    model, peer = network(), network(6)
    both = with_peer(model, peer)
    assert [id(w) for w in both.trainable_weights] == [
        id(w) for w in [*model.trainable_weights, *peer.trainable_weights]
    ]
    assert {id(w) for w in both.weights} == {id(w) for w in [*model.weights, *peer.weights]}
    before = [w.numpy() for w in both.weights]
    both.compile("sgd", loss={"logits": "mse", "peer_logits": "mse"})
    targets = np.ones((4, 5), "float32")
    both.train_on_batch(IMAGES, {"logits": targets, "peer_logits": targets})
    for weight, value in zip(both.weights, before, strict=True):
        assert np.any(weight.numpy() != value), weight.path
    assert isinstance(both.get_layer("peer"), keras.Model)


def test_saving(tmp_path):
    both = with_peer(headed(), headed(3))
    both(IMAGES, training=True)
    both.save(tmp_path / "net.keras")
    both.save_weights(tmp_path / "net.weights.h5")
    fresh = with_peer(headed(), headed(3))
    fresh.load_weights(tmp_path / "net.weights.h5")
    for read in (keras.models.load_model(tmp_path / "net.keras"), fresh):
        assert len(read.trainable_weights) == len(both.trainable_weights)
        for name, value in both(IMAGES).items():
            np.testing.assert_array_equal(read(IMAGES)[name], value)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_precision(policy):
    keras.config.set_dtype_policy(policy)
    model, peer = network(), network()
    keras.config.set_dtype_policy("float32")
    both = with_peer(model, peer)
    assert both.dtype_policy.name == policy
    assert both.get_layer("peer").dtype_policy.name == policy
    np.testing.assert_array_equal(both(IMAGES)["peer_logits"], peer(IMAGES))


def test_each_draws_its_own_dropout():
    both = with_peer(network(dropout=0.5), network(dropout=0.5))
    both.get_layer("peer").set_weights(strip_heads(both).get_weights())
    outputs = both(IMAGES)
    np.testing.assert_array_equal(outputs["logits"], outputs["peer_logits"])
    outputs = both(IMAGES, training=True)
    assert np.any(outputs["logits"] != outputs["peer_logits"])


class Subclassed(keras.Model):
    def call(self, images):
        return images


def test_mistakes():
    model = network()
    for peer in (model, with_projection(model)):
        with pytest.raises(ValueError, match="'net' and 'net' share weights: build the network tw"):
            with_peer(model, peer)
    with pytest.raises(ValueError, match=r"different shapes, \(None, 8, 8, 3\) and \(None, 6, 6"):
        with_peer(model, network(shape=(6, 6, 3)))
    with pytest.raises(ValueError, match="know 5 and 4 classes: build both for the same"):
        with_peer(model, network(classes=4))
    paired = with_peer(network(), network())
    for pair in ((paired, model), (model, paired)):
        with pytest.raises(ValueError, match="'net' has a peer already: `strip_heads` first"):
            with_peer(*pair)
    for pair in ((Subclassed(), model), (model, Subclassed())):
        with pytest.raises(ValueError, match=r"subclassed model.* build both as functional models"):
            with_peer(*pair)
        with pytest.raises(TypeError, match="Expected a Keras model, got int"):
            with_peer(*(3 if isinstance(part, Subclassed) else part for part in pair))
    images = keras.Input((8, 8, 3))
    scores = keras.Model(images, {"scores": layers.Flatten()(images)}, name="scores")
    with pytest.raises(ValueError, match=r"'scores' must return a tensor .* a dict with 'logits'"):
        with_peer(model, scores)
