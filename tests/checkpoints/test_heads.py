"""Files with auxiliary classifiers, and networks whose backbone is frozen."""

import numpy as np
import pytest

from keras_ssd import strip_heads, with_auxiliary_classifiers, with_projection
from keras_ssd.checkpoints import load_torch_weights, to_torch_state_dict

from .states import assert_holds, network, prefixed, random_state, unchanged

IMAGES = np.random.RandomState(0).uniform(-1, 1, (2, 8, 8, 3)).astype("float32")


def test_names_of_all_heads():
    model = with_projection(with_auxiliary_classifiers(network()))
    names = set(to_torch_state_dict(model))
    assert {name.partition(".")[0] for name in names} == {
        "backbone",
        "auxiliary_classifier",
        "proj_head",
    }
    assert {
        "backbone.fc.weight",
        "auxiliary_classifier.fc3.bias",
        "auxiliary_classifier.block_extractor1.1.0.downsample.1.running_var",
    } <= names


@pytest.mark.parametrize("prefix", ["", "module."])
def test_both_halves_are_loaded(prefix):
    model = with_auxiliary_classifiers(network())
    state = random_state(model)
    load_torch_weights(model, {"net": prefixed(prefix, state), "acc": 0.7})
    assert_holds(model, state)


def test_the_backbone_alone_gives_the_class_logits_of_the_whole():
    model, plain = with_auxiliary_classifiers(network()), network()
    state = random_state(model)
    load_torch_weights(model, state)
    load_torch_weights(plain, state, prefix="backbone.")
    np.testing.assert_array_equal(model(IMAGES)["logits"], plain(IMAGES))


@pytest.mark.parametrize("backbone", ["trainable", "frozen"])
def test_a_plain_file_leaves_heads_untouched(backbone):
    model = with_auxiliary_classifiers(network(), backbone=backbone)
    before = to_torch_state_dict(model)
    state = random_state(network())
    load_torch_weights(strip_heads(model), state)
    after = to_torch_state_dict(model)
    heads = [name for name in before if name.startswith("auxiliary_classifier.")]
    assert_holds(strip_heads(model), state)
    for name in heads:
        np.testing.assert_array_equal(before[name], after[name])
    assert len(before) - len(heads) == len([name for name in state if "num_batches" not in name])


FROZEN = {
    "auxiliary": lambda plain: with_auxiliary_classifiers(plain, backbone="frozen"),
    "projection": lambda plain: with_projection(plain, backbone="frozen"),
    "both": lambda plain: with_projection(
        with_auxiliary_classifiers(plain, backbone="frozen"), backbone="frozen"
    ),
    "head on frozen": lambda plain: with_projection(
        with_auxiliary_classifiers(plain, backbone="frozen")
    ),
}


@pytest.mark.parametrize("attach", FROZEN.values(), ids=FROZEN)
def test_a_frozen_backbone_is_its_copies(attach):
    plain = network()
    model = attach(plain)
    copied = to_torch_state_dict(plain)
    state = random_state(model)
    with unchanged(plain):
        load_torch_weights(model, state)
    assert_holds(model, state)
    for name, array in copied.items():
        assert (to_torch_state_dict(model)[f"backbone.{name}"] != array).any(), name
    load_torch_weights(plain, random_state(plain, seed=1))
    assert_holds(model, state)


@pytest.mark.parametrize("attach", FROZEN.values(), ids=FROZEN)
def test_a_frozen_network_computes_with_what_is_loaded(attach):
    model, trainable = attach(network()), with_projection(with_auxiliary_classifiers(network()))
    names = to_torch_state_dict(model)
    state = random_state(trainable)
    load_torch_weights(trainable, state)
    load_torch_weights(model, {name: state[name] for name in names})
    outputs, expected = model(IMAGES), trainable(IMAGES)
    for name, output in outputs.items():
        np.testing.assert_allclose(output, expected[name], rtol=1e-5, err_msg=name)
