"""What does not fit is told in one sentence, and nothing changes."""

import numpy as np
import pytest

from keras_ssd import Distiller, presets, with_auxiliary_classifiers, with_projection
from keras_ssd.checkpoints import load_torch_weights, to_torch_state_dict

from .states import network, prefixed, random_state, unchanged


def refusal(model, state, **arguments):
    with unchanged(model), pytest.raises(ValueError) as error:  # noqa: PT011  # compared below
        load_torch_weights(model, state, **arguments)
    begin = f"The weights do not fit {model.name!r}, which is unchanged: "
    assert str(error.value).startswith(begin)
    return str(error.value).removeprefix(begin)


def drop(state):
    del state["layer2.0.bn1.running_mean"]


def drop_the_classifier(state):
    del state["fc.weight"]


def add(state):
    state["layer4.0.conv1.weight"] = np.zeros((2, 2, 1, 1), "float32")


def transpose(state):
    state["fc.weight"] = state["fc.weight"].T


def transpose_a_kernel(state):
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)


def narrow(state):
    state["bn1.weight"] = state["bn1.weight"][:3]


def shorten_the_bias(state):
    state["fc.bias"] = state["fc.bias"][:3]


def prefix_one(state):
    state["backbone.fc.bias"] = state["fc.bias"]


def round_to_integers(state):
    state["bn1.bias"] = state["bn1.bias"].astype("int64")


MISFITS = {  # what is done to the weights: what the sentence says
    drop: "missing: layer2.0.bn1.running_mean.",
    drop_the_classifier: "missing: fc.weight.",
    add: "unexpected: layer4.0.conv1.weight.",
    transpose: "of another shape: fc.weight (64, 5) for (5, 64), transposed.",
    transpose_a_kernel: (
        "of another shape: layer1.0.conv1.weight (3, 3, 16, 16) for (16, 16, 3, 3), transposed."
    ),
    narrow: "of another shape: bn1.weight (3,) for (16,).",
    shorten_the_bias: "of another shape: fc.bias (3,) for (5,).",
    prefix_one: "unexpected: backbone.fc.bias.",
    round_to_integers: "bn1.bias holds int64, not floating-point numbers.",
}


@pytest.mark.parametrize("change", MISFITS, ids=lambda change: change.__name__)
def test_single_arrays(change):
    model = network()
    state = random_state(model)
    change(state)
    assert refusal(model, state) == MISFITS[change]


def test_several_reasons_are_all_told():
    model = network()
    state = random_state(model)
    for change in (drop, add, narrow):
        change(state)
    expected = [MISFITS[change].removesuffix(".") for change in (drop, add, narrow)]
    assert refusal(model, state) == "; ".join(expected) + "."


def test_long_lists_are_cut():
    state = {f"layer{i}.weight": np.zeros(2, "float32") for i in range(13)}
    listed = refusal(network(), {**random_state(network()), **state})
    names = ", ".join(f"layer{i}.weight" for i in range(10))
    assert listed == f"unexpected: {names} and 3 more."


def test_two_classifiers():
    model = network("vgg8")
    state = random_state(model)
    state["classifier.0.bias"] = state["classifier.bias"]
    assert refusal(model, state) == "unexpected: classifier.0.bias."


def test_another_number_of_classes():
    model = network()
    state = random_state(network(num_classes=7))
    advice = "the checkpoint has 7 classes, the network 5: build the network with `num_classes=7`."
    assert refusal(model, state) == advice
    headed = random_state(with_auxiliary_classifiers(network(num_classes=7)))
    assert refusal(with_auxiliary_classifiers(model), headed) == advice
    assert refusal(model, headed, prefix="backbone.") == advice


def test_another_number_of_views():
    state = random_state(with_auxiliary_classifiers(network(), num_views=2))
    assert refusal(with_auxiliary_classifiers(network()), state) == (
        "an auxiliary classifier gives 10 logits in the checkpoint, 20 in the network: attach them "
        "with the `num_views=` of the checkpoint."
    )


@pytest.mark.parametrize(
    ("name", "classes"), [("resnet14", 5), ("vgg8", 5), ("vgg8", 3), ("wrn_16_1", 3)]
)
def test_another_network_is_named(name, classes):
    state = random_state(network(name, num_classes=classes))
    advice = (
        f"the checkpoint is one of '{name}' with {classes} classes: build that with "
        f"`models.build('{name}', num_classes={classes}, ...)`."
    )
    assert refusal(network(), state) == advice
    assert refusal(network("vgg11"), state) == advice


def test_another_network_is_named_with_heads():
    state = random_state(with_auxiliary_classifiers(network("resnet8x4")))
    advice = "the checkpoint is one of 'resnet8x4' with 5 classes: build that with "
    assert refusal(with_auxiliary_classifiers(network()), state).startswith(advice)
    without = refusal(network(), state)
    assert without.startswith("the checkpoint has auxiliary classifiers, the network has not")
    assert f"; {advice}" in without


def test_a_network_of_nobody_is_listed():
    state = {f"features.{name}": array for name, array in random_state(network()).items()}
    listed = refusal(network(), state)
    assert listed.startswith("missing: conv1.weight, bn1.weight, ")
    assert "more; unexpected: features.conv1.weight, " in listed


def test_other_heads_on_the_same_network():
    state = random_state(with_auxiliary_classifiers(network()))
    state = {name: array for name, array in state.items() if "block_extractor1" not in name}
    listed = refusal(with_auxiliary_classifiers(network()), state)
    assert listed.startswith("missing: auxiliary_classifier.block_extractor1.0.0.")


HEADS = {
    "a projection head": with_projection,
    "auxiliary classifiers": with_auxiliary_classifiers,
}


@pytest.mark.parametrize("title", HEADS)
def test_heads_of_the_checkpoint_alone(title):
    attach = HEADS[title]
    model = network()
    state = random_state(attach(network()))
    assert refusal(model, {"net": state}) == (
        f"the checkpoint has {title}, the network has not: attach them with "
        f'`{attach.__name__}`, or read the backbone alone with `prefix="backbone."`.'
    )
    load_torch_weights(model, {"net": state}, prefix="backbone.")


@pytest.mark.parametrize("title", HEADS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_heads_of_the_network_alone(title, prefix):
    attach = HEADS[title]
    state = random_state(network())
    assert refusal(attach(network()), prefixed(prefix, state)) == (
        f"the network has {title}, the checkpoint has not: load it before `{attach.__name__}`, or "
        "its backbone alone into `strip_heads(network)`, which shares the layers."
    )


def test_another_head():
    state = random_state(with_projection(network()))
    told = refusal(with_auxiliary_classifiers(network()), state)
    assert "the checkpoint has a projection head, the network has not" in told
    assert "the network has auxiliary classifiers, the checkpoint has not" in told
    assert "missing" not in told
    assert "unexpected" not in told


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("fc.bias", np.nan, "fc.bias holds NaN or infinite values"),
        ("layer1.0.conv1.weight", np.inf, "layer1.0.conv1.weight holds NaN or infinite values"),
        ("bn1.running_var", -1e-3, "bn1.running_var holds negative variances"),
    ],
)
def test_numbers_that_no_network_has(name, value, reason):
    model = network("resnet8")
    state = random_state(model)
    state[name].flat[-1] = value
    assert refusal(model, state) == f"{reason}."


def test_things_that_are_no_networks_or_files():
    model = network("resnet8")
    with pytest.raises(TypeError, match=r"got a list: .*`module.state_dict\(\)`"):
        load_torch_weights(model, [1, 2])
    with pytest.raises(TypeError, match="must be a Keras model, got 'resnet8'"):
        load_torch_weights("resnet8", {})
    distiller = Distiller(student=model, **presets.labels_only())
    with pytest.raises(TypeError, match=r"give `distiller\.student`"):
        to_torch_state_dict(distiller)
