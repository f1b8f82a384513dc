"""PyTorch's weights into Keras networks: every container, every name, all or nothing."""

import argparse
import os
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from keras_ssd import checkpoints, models
from keras_ssd.checkpoints import load_torch_weights, torch_weights


def network(name="resnet8x4", **arguments):
    return models.build(name, num_classes=5, input_shape=(8, 8, 3), **arguments)


def with_head(model):
    embedding = model.get_layer("embedding").output
    width = embedding.shape[-1]
    hidden = keras.layers.Dense(width, activation="relu", name="proj_head.0")(embedding)
    projection = keras.layers.Dense(width, name="proj_head.2")(hidden)
    return keras.Model(model.input, {"logits": model.output, "projection": projection})


def random_state(model, seed=0):
    """A random state dictionary as PyTorch would save it, step counters included."""
    random = np.random.RandomState(seed)
    state = {}
    for name, array in torch_weights(model).items():
        state[name] = random.uniform(0.5, 1.5, array.shape).astype("float32")
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = np.asarray(17, "int64")
    return state


def as_tensors(state):
    return {name: torch.from_numpy(array) for name, array in state.items()}


def assert_holds(model, state):
    for name, array in torch_weights(model).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


# The names and shapes of the authors' modules, written out by hand.
SOME_SHAPES = {
    "resnet20": {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.running_mean": (16,),
        "layer1.2.bn2.weight": (16,),
        "layer2.0.conv1.weight": (32, 16, 3, 3),
        "layer2.0.downsample.0.weight": (32, 16, 1, 1),
        "layer2.0.downsample.1.running_var": (32,),
        "layer3.2.conv2.weight": (64, 64, 3, 3),
        "fc.weight": (5, 64),
        "fc.bias": (5,),
    },
    "resnet8x4": {
        "conv1.weight": (32, 3, 3, 3),
        "layer1.0.downsample.0.weight": (64, 32, 1, 1),
        "fc.weight": (5, 256),
    },
}
ENTRIES = {  # of a full state dictionary, step counters included
    "resnet8": 56,
    "resnet14": 92,
    "resnet20": 128,
    "resnet8x4": 62,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_names_are_those_of_the_authors(name):
    state = random_state(network(name))
    assert len(state) == ENTRIES[name]
    for key, shape in SOME_SHAPES.get(name, {}).items():
        assert state[key].shape == shape


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_bfloat16"])
def test_a_dictionary_of_arrays(dtype):
    model = network(dtype=dtype)
    state = random_state(model)
    assert load_torch_weights(model, state) is None
    assert_holds(model, state)
    kernel = model.get_layer("layer1.0.conv1").kernel.numpy()
    np.testing.assert_array_equal(kernel[2, 0, 5, 7], state["layer1.0.conv1.weight"][7, 5, 2, 0])
    kernel = model.get_layer("logits").kernel.numpy()
    np.testing.assert_array_equal(kernel[3, 4], state["fc.weight"][4, 3])


CONTAINERS = {
    "bare": lambda state: state,
    "SSKD": lambda state: {"epoch": 239, "state_dict": state, "acc": 73.44},
    "CRD": lambda state: {"epoch": 240, "model": state, "best_acc": torch.tensor(75.6)},
    "HSAKD": lambda state: {"net": state, "acc": 0.7, "epoch": 3, "optimizer": {"state": {}}},
    "data parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "CRD last": lambda state: {"opt": argparse.Namespace(lr=0.05, trial="1"), "model": state},
    "parameters": lambda state: {
        name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    },
    "no counters": lambda state: {
        name: tensor for name, tensor in state.items() if "num_batches" not in name
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old layout"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_files_of_torch(tmp_path, container, zipped):
    model = network("resnet8")
    state = random_state(model)
    path = tmp_path / "student.pth.tar"
    content = CONTAINERS[container](as_tensors(state))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    load_torch_weights(model, str(path))
    assert_holds(model, state)


@pytest.mark.parametrize("container", ["bare", "SSKD", "CRD", "HSAKD", "data parallel"])
def test_dictionaries_of_tensors(container):
    model = network("resnet8")
    state = random_state(model)
    load_torch_weights(model, CONTAINERS[container](as_tensors(state)))
    assert_holds(model, state)


def test_safetensors(tmp_path):
    model = network("resnet8")
    state = random_state(model)
    safetensors.numpy.save_file(state, tmp_path / "student.safetensors")
    load_torch_weights(model, tmp_path / "student.safetensors")
    assert_holds(model, state)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bfloat16_files(tmp_path, suffix):
    model = network("resnet8")
    tensors = {name: t.bfloat16() for name, t in as_tensors(random_state(model)).items()}
    path = tmp_path / f"student{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    load_torch_weights(model, path)
    assert_holds(model, {name: tensor.float().numpy() for name, tensor in tensors.items()})


def test_a_projection_head_has_its_own_names():
    model = with_head(network("resnet8"))
    state = random_state(model)
    assert state["proj_head.0.weight"].shape == state["proj_head.2.weight"].shape == (64, 64)
    assert "backbone.layer1.0.conv1.weight" in state
    load_torch_weights(model, {"state_dict": state})
    assert_holds(model, state)


def test_backbone_names_fit_a_bare_network():
    model = network("resnet8")
    state = random_state(model)
    load_torch_weights(model, {f"backbone.{name}": array for name, array in state.items()})
    assert_holds(model, state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_export_and_import_is_the_identity(dtype):
    model, other = network(dtype=dtype), network(dtype=dtype)
    load_torch_weights(other, torch_weights(model))
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)


def drop(state):
    del state["layer2.0.bn1.running_mean"]


def add(state):
    state["layer4.0.conv1.weight"] = np.zeros((2, 2, 1, 1), "float32")


def transpose(state):
    state["fc.weight"] = state["fc.weight"].T


def head_only_in_the_file(state):
    for name in list(state):
        state[f"backbone.{name}"] = state.pop(name)
    state["proj_head.0.weight"] = np.zeros((256, 256), "float32")


def partly_prefixed(state):
    state["backbone.fc.bias"] = state["fc.bias"]


MISFITS = {  # what is done to the weights: what the sentence names
    drop: "unchanged; missing: layer2.0.bn1.running_mean.",
    add: "unchanged; unexpected: layer4.0.conv1.weight.",
    transpose: "of another shape: fc.weight (256, 5) for (5, 256).",
    head_only_in_the_file: "unexpected: proj_head.0.weight. Only one of the two has a projection",
    partly_prefixed: "unexpected: backbone.fc.bias.",
}


@pytest.mark.parametrize("change", MISFITS, ids=lambda change: change.__name__)
def test_what_does_not_fit_is_named_and_nothing_changes(change):
    model = network()
    before = model.get_weights()
    state = random_state(model)
    change(state)
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the sentence is compared below
        load_torch_weights(model, state)
    assert MISFITS[change] in str(error.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_bare_file_does_not_fill_a_head():
    model = network("resnet8")
    with pytest.raises(ValueError, match=r"missing: proj_head.0.weight, .* before or after"):
        load_torch_weights(with_head(model), random_state(model))


def test_another_network_gets_a_short_list():
    with pytest.raises(ValueError, match=r"unexpected: (\S+, ){19}\S+ and \d+ more"):
        load_torch_weights(network("resnet8"), random_state(network("resnet20")))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old layout"])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    model, path = network("resnet8"), tmp_path / "teacher.pth"
    content = {"opt": Malicious(), "model": as_tensors(random_state(model))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"teacher.pth is damaged, or holds Python objects"):
        load_torch_weights(model, path)
    assert not (tmp_path / "executed").exists()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
@pytest.mark.parametrize("content", [b"", b"abc" * 100, b"PK\x03\x04"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_torch_weights(network("resnet8"), tmp_path / name)


def test_files_without_weights(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run.pt holds no dictionary from names to arrays"):
        load_torch_weights(network("resnet8"), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="The mapping holds no dictionary"):
        load_torch_weights(network("resnet8"), {})
    with pytest.raises(FileNotFoundError):
        load_torch_weights(network("resnet8"), tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("name", "package"), [("a.pth", "torch"), ("a.safetensors", "safetensors")]
)
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'keras-ssd\[checkpoints\]'"):
        load_torch_weights(network("resnet8"), tmp_path / name)


def test_layers_unknown_to_the_papers_are_refused():
    inputs = keras.Input((8, 8, 3))
    nested = keras.Model(inputs, network("resnet8")(inputs))
    with pytest.raises(ValueError, match=r"'resnet8' \(Functional\) has no counterpart"):
        checkpoints.torch_weights(nested)
