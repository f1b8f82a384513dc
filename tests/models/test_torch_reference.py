"""Stage outputs, embedding and logits equal PyTorch's, stored by `make_torch_reference.py`."""

import pathlib
import zlib

import keras
import numpy as np
import pytest

from keras_ssd import checkpoints, models

STORED = pathlib.Path(__file__).with_name("resnet_torch_reference.npz")
NETWORKS = ("resnet8", "resnet8x4")
OUTPUTS = ("stage_0", "stage_1", "stage_2", "stage_3", "embedding", "logits")


def reference_images():
    """Two normalised images, channels last."""
    return np.random.RandomState(0).standard_normal((2, 32, 32, 3))


def reference_weights(shapes):
    """Weights by PyTorch's names, for a dictionary of shapes in PyTorch's layout.

    Each is drawn from a generator (`RandomState`, whose numbers NumPy keeps as they are) that is
    seeded by the CRC-32 of its name: scaled normals for kernels, positive scales and variances.
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


def sample(output):
    """A few places and a quarter of the channels of a map (borders included); vectors whole."""
    if output.ndim == 2:
        return output
    size = output.shape[1]
    places = [0, 1, size // 2, size - 2, size - 1]
    return output[:, places][:, :, places][..., ::4]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_those_of_torch(name, dtype, tolerance):
    model = models.build(name, num_classes=100, input_shape=(32, 32, 3), dtype=dtype)
    shapes = {key: array.shape for key, array in checkpoints.torch_weights(model).items()}
    checkpoints.load_torch_weights(model, reference_weights(shapes))
    taps = keras.Model(model.input, [model.get_layer(layer).output for layer in OUTPUTS])
    with np.load(STORED) as stored:
        for layer, output in zip(OUTPUTS, taps(reference_images()), strict=True):
            expected = stored[f"{name}/{layer}"]
            difference = np.abs(sample(np.asarray(output)) - expected).max()
            assert difference <= tolerance * np.abs(expected).max(), layer
