"""Stages, embedding and logits equal those of PyTorch modules with the same weights."""

import zlib

import numpy as np
import pytest

from keras_ssd import (
    checkpoints,
    models,
    named_outputs,
    with_auxiliary_classifiers,
    with_projection,
)

torch = pytest.importorskip("torch", reason="the references are PyTorch modules: install torch")

from . import torch_networks  # noqa: E402  # it imports torch

torch.set_num_threads(1)  # PyTorch's threads and TensorFlow's wait for each other: 20 times slower

CLASSES = 10
SMALLEST = ["resnet8x4", "wrn_16_2", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]
LARGE = ["resnet50", "resnet18_imagenet"]  # the smallest of their families
TOLERANCES = {"float32": 1e-4, "float64": 1e-10}


def reference_images(size):
    """Two normalised images, channels last."""
    return np.random.RandomState(0).standard_normal((2, size, size, 3))


def reference_weights(shapes):
    """Weights by PyTorch's names, for a dictionary of shapes in PyTorch's layout.

    Each is drawn from a generator that is seeded by the CRC-32 of its name: scaled normals for
    kernels, positive scales and variances.
    """
    weights = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        if len(shape) > 1:
            weights[name] = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var") or name.endswith("weight"):
            weights[name] = random.uniform(0.5, 1.5, shape)
        else:
            weights[name] = 0.2 * random.standard_normal(shape)
    return weights


def loaded(network):
    """The module in float64 with reference weights, and these by name."""
    network = network.double()
    counters = {n: v for n, v in network.state_dict().items() if n.endswith("num_batches_tracked")}
    shapes = {n: v.shape for n, v in network.state_dict().items() if n not in counters}
    weights = reference_weights(shapes)
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    network.load_state_dict({**tensors, **counters})
    return network, weights


def expected_outputs(network, images):
    """What the module gives, by the names of this library, channels last."""
    with torch.no_grad():
        outputs = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    stages = {f"stage_{i}": stage.permute(0, 2, 3, 1) for i, stage in enumerate(outputs.stages)}
    heads = {f"auxiliary_{i}": head for i, head in enumerate(outputs.auxiliary_logits, 1)}
    vectors = {"embedding": outputs.embedding, "logits": outputs.logits}
    return {name: value.numpy() for name, value in {**stages, **vectors, **heads}.items()}


def outputs_of(model, weights, images, names):
    checkpoints.load_torch_weights(model, weights)
    taps = {n: n for n in names if n != "logits" and not n.startswith("auxiliary")}
    return named_outputs(model, taps)(images)


def assert_equal(outputs, expected, tolerance):
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        output = np.asarray(outputs[name])
        assert output.shape == value.shape, name
        error = np.linalg.norm(output - value) / np.linalg.norm(value)
        assert error <= tolerance, f"{name}: {error}"


def check(name, *, heads, size=32, dtypes=tuple(TOLERANCES), **arguments):
    """Compare in each precision with the module, which computes in float64."""
    network = torch_networks.build(name, CLASSES, **arguments)
    if heads:
        network = torch_networks.with_auxiliary_classifiers(network, CLASSES)
    network, weights = loaded(network)
    images = reference_images(size)
    expected = expected_outputs(network, images)
    for dtype in dtypes:
        model = models.build(
            name, num_classes=CLASSES, input_shape=(size, size, 3), dtype=dtype, **arguments
        )
        if heads:
            model = with_auxiliary_classifiers(model)
        assert_equal(outputs_of(model, weights, images, expected), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("name", SMALLEST + LARGE)
def test_networks(name):
    check(name, heads=False, dtypes=["float32"])


@pytest.mark.parametrize("name", SMALLEST)
def test_networks_with_auxiliary_classifiers(name):
    check(name, heads=True, size=16, dtypes=["float64"])


def test_vgg_pools_once_more_in_images_of_64():
    check("vgg8", heads=False, size=64, dtypes=["float64"])


def test_mobilenet_with_the_stem_of_hsakd():
    check("mobilenet_v2", heads=False, stem_stride=1, dtypes=["float64"])


def test_a_network_with_projection_is_written_for_the_module_of_sskd():
    model = with_projection(
        models.build("vgg8", num_classes=CLASSES, input_shape=(16, 16, 3), dtype="float64")
    )
    network = torch_networks.with_projection(torch_networks.build("vgg8", CLASSES)).double()
    written = checkpoints.to_torch_state_dict(model)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in written.items()})
    images = reference_images(16)
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    outputs = {name: getattr(expected, name).numpy() for name in ("logits", "projection")}
    assert_equal(model(images), outputs, TOLERANCES["float64"])


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_all_networks_in_both_precisions(name):
    check(name, heads=True)


@pytest.mark.slow
def test_larger_images():
    check("vgg13", heads=False, size=64)
    check("resnet18_imagenet", heads=True, size=64)
    check("mobilenet_v2", heads=True, stem_stride=1)
