"""PyTorch's weights into Keras networks and back: every container, every name."""

import argparse
import os
import sys

import numpy as np
import pytest
import safetensors.numpy

from keras_ssd import with_projection
from keras_ssd.checkpoints import load_torch_weights, to_torch_state_dict

from .states import assert_holds, network, prefixed, random_state, unchanged

torch = pytest.importorskip("torch", reason="the files are PyTorch's: install torch")


def as_tensors(state):
    return {name: torch.from_numpy(array) for name, array in state.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_bfloat16"])
def test_a_dictionary_of_arrays(dtype):
    model = network("resnet8x4", dtype=dtype)
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
    model = network()
    state = random_state(model)
    path = tmp_path / "student.pth.tar"
    content = CONTAINERS[container](as_tensors(state))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    load_torch_weights(model, str(path))
    assert_holds(model, state)


@pytest.mark.parametrize("container", ["bare", "SSKD", "CRD", "HSAKD", "data parallel"])
def test_dictionaries_of_tensors(container):
    model = network()
    state = random_state(model)
    load_torch_weights(model, CONTAINERS[container](as_tensors(state)))
    assert_holds(model, state)


def test_safetensors(tmp_path):
    model = network()
    state = random_state(model)
    safetensors.numpy.save_file(state, tmp_path / "student.safetensors")
    load_torch_weights(model, tmp_path / "student.safetensors")
    assert_holds(model, state)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bfloat16_files(tmp_path, suffix):
    import safetensors.torch

    model = network()
    tensors = {name: t.bfloat16() for name, t in as_tensors(random_state(model)).items()}
    path = tmp_path / f"student{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    load_torch_weights(model, path)
    assert_holds(model, {name: tensor.float().numpy() for name, tensor in tensors.items()})


def test_a_projection_head_has_its_own_names():
    model = with_projection(network())
    state = random_state(model)
    assert state["proj_head.0.weight"].shape == state["proj_head.2.weight"].shape == (64, 64)
    assert "backbone.layer1.0.conv1.weight" in state
    load_torch_weights(model, {"state_dict": state})
    assert_holds(model, state)


def test_backbone_names_fit_a_bare_network():
    model = network()
    state = random_state(model)
    load_torch_weights(model, prefixed("backbone.", state))
    assert_holds(model, state)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("resnet8x4", "float32"),
        ("vgg8", "float64"),
        ("mobilenet_v2", "float32"),
        ("shufflenet_v1", "float64"),
    ],
)
def test_export_and_import_is_the_identity(name, dtype):
    """Square, grouped, depthwise and biased kernels, and bit for bit."""
    model, other = network(name, dtype=dtype), network(name, dtype=dtype)
    load_torch_weights(other, to_torch_state_dict(model))
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)


def test_the_classifier_of_mobilenet_in_crd():
    model = network("mobilenet_v2")
    state = random_state(model)
    crd = {name.replace("classifier.", "classifier.0."): array for name, array in state.items()}
    assert {name for name in crd if name not in state} == {
        "classifier.0.weight",
        "classifier.0.bias",
    }
    load_torch_weights(model, {"model": crd})
    assert_holds(model, state)


def test_a_prefix_reads_a_part():
    model = network()
    state = random_state(with_projection(model))
    load_torch_weights(model, {"state_dict": state}, prefix="backbone.")
    assert_holds(model, {name.removeprefix("backbone."): array for name, array in state.items()})


def test_an_online_file_holds_two_networks(tmp_path):
    one, other = network(), network()
    states = [random_state(model, seed) for seed, model in enumerate([one, other])]
    state = {**prefixed("net1.", states[0]), **prefixed("net2.", states[1])}
    torch.save({"net": as_tensors(state), "acc": 0.7}, tmp_path / "online.pth.tar")
    load_torch_weights(one, tmp_path / "online.pth.tar", prefix="net1.")
    load_torch_weights(other, tmp_path / "online.pth.tar", prefix="net2.")
    assert_holds(one, states[0])
    assert_holds(other, states[1])
    with (
        unchanged(one),
        pytest.raises(ValueError, match=r"two networks .* `prefix='net1.'` or `prefix='net2.'`"),
    ):
        load_torch_weights(one, tmp_path / "online.pth.tar")


def test_a_prefix_that_nothing_begins_with():
    model = network()
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"begins with 'net1\.'; one is called 'conv1\.weight'"),
    ):
        load_torch_weights(model, random_state(model), prefix="net1.")


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old layout"])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    model, path = network(), tmp_path / "teacher.pth"
    content = {"opt": Malicious(tmp_path / "ran"), "model": as_tensors(random_state(model))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with unchanged(model), pytest.raises(ValueError, match=r"teacher.pth is damaged, or holds "):
        load_torch_weights(model, path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
@pytest.mark.parametrize("content", [b"", b"abc" * 100, b"PK\x03\x04"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_torch_weights(network(), tmp_path / name)


def save(state, path):
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(state, path)
    else:
        torch.save(as_tensors(state), path, _use_new_zipfile_serialization="zip" in path.name)


@pytest.mark.parametrize("name", ["zip.pth", "old.pth", "teacher.safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_files(tmp_path, name, kept):
    model, path = network(), tmp_path / name
    save(random_state(model), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with unchanged(model), pytest.raises(ValueError, match=f"{name} is damaged"):
        load_torch_weights(model, path)


def test_files_without_weights(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run.pt holds no dictionary from names to arrays"):
        load_torch_weights(network(), tmp_path / "run.pt")
    with pytest.raises(ValueError, match="The mapping holds no dictionary"):
        load_torch_weights(network(), {})
    with pytest.raises(FileNotFoundError):
        load_torch_weights(network(), tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("name", "package"), [("a.pth", "torch"), ("a.safetensors", "safetensors")]
)
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'keras-ssd\[checkpoints\]'"):
        load_torch_weights(network(), tmp_path / name)
