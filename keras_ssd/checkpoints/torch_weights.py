"""Weights of PyTorch networks whose modules have the names of this library's layers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_ssd.checkpoints.files import read_state_dict

CLASSIFIER = "fc"  # the authors' name of the layer `logits`
HEAD = "proj_head."
PARTS = ("backbone.", HEAD)
MOST_NAMES = 20


def load_torch_weights(model: keras.Model, source: str | os.PathLike | Mapping[str, Any]) -> None:
    """Load weights of SSKD's, CRD's or HSAKD's code into a network of `models.build`.

    Every array must have its place and every weight its array: otherwise nothing is changed.

    Args:
        model: A network of `models.build`, or one with a projection head around it.
        source: Path of a `.pth`, `.pth.tar`, `.pt` (either layout of `torch.save`) or
            `.safetensors` file, or a mapping from names to arrays or tensors. No code in a file is
            run. The weights may be under "state_dict", "model" or "net" and their names may all
            begin with "module."; names that begin with "backbone." belong to the network, those
            with "proj_head." to its projection head. Step counters (`num_batches_tracked`) are
            ignored.

    Raises:
        ValueError: If names are missing, unexpected or of another shape (all are listed), or if the
            file is not one that can be read without running code.
        ImportError: If torch or safetensors, the extra `checkpoints`, is needed and not installed.

    Source: the module names of https://github.com/HobbitLong/RepDistiller and
    https://github.com/xuguodong03/SSKD.
    """
    arrays = {
        name: array
        for name, array in read_state_dict(source).items()
        if not name.endswith("num_batches_tracked")
    }
    if all(name.startswith(PARTS) for name in arrays):
        arrays = {name.removeprefix("backbone."): array for name, array in arrays.items()}
    places = {name: (variable, axes) for name, variable, axes in _places(model)}
    _check_fit(model, places, arrays)
    for name, (variable, axes) in places.items():
        variable.assign(np.transpose(arrays[name], axes))


def torch_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights of a network under the names and in the layout of the authors' PyTorch code.

    Args:
        model: A network of `models.build`, or one with a projection head around it.

    Returns:
        Dictionary from names to arrays, which `load_torch_weights` and, as tensors,
        `torch.nn.Module.load_state_dict` take. With a head the names begin with "backbone." and
        "proj_head.".

    Raises:
        ValueError: If a layer of the network has no counterpart in that code.
    """
    arrays = {
        name: np.transpose(variable.numpy(), np.argsort(axes))
        for name, variable, axes in _places(model)
    }
    if not any(name.startswith(HEAD) for name in arrays):
        return arrays
    return {
        name if name.startswith(HEAD) else f"backbone.{name}": array
        for name, array in arrays.items()
    }


def _places(model: keras.Model) -> Iterator[tuple[str, keras.Variable, tuple[int, ...]]]:
    """Name in PyTorch, variable, and the order of PyTorch's axes in Keras, of every weight."""
    for layer in model.layers:
        name = CLASSIFIER if layer.name == "logits" else layer.name
        if isinstance(layer, keras.layers.BatchNormalization):
            yield f"{name}.weight", layer.gamma, (0,)
            yield f"{name}.bias", layer.beta, (0,)
            yield f"{name}.running_mean", layer.moving_mean, (0,)
            yield f"{name}.running_var", layer.moving_variance, (0,)
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            convolution = isinstance(layer, keras.layers.Conv2D)
            yield f"{name}.weight", layer.kernel, (2, 3, 1, 0) if convolution else (1, 0)
            if layer.use_bias:
                yield f"{name}.bias", layer.bias, (0,)
        elif layer.weights:
            raise ValueError(
                f"The layer {layer.name!r} ({type(layer).__name__}) has no counterpart in the "
                "papers' code: load the weights into the network of `models.build` before it is "
                "frozen or nested."
            )


def _check_fit(
    model: keras.Model,
    places: Mapping[str, tuple[keras.Variable, tuple[int, ...]]],
    arrays: Mapping[str, np.ndarray],
) -> None:
    shapes = {
        name: tuple(variable.shape[axis] for axis in np.argsort(axes))
        for name, (variable, axes) in places.items()
    }
    problems = {
        "missing": [name for name in shapes if name not in arrays],
        "unexpected": [name for name in arrays if name not in shapes],
        "of another shape": [
            f"{name} {arrays[name].shape} for {shape}"
            for name, shape in shapes.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    found = [f"{problem}: {_listed(names)}" for problem, names in problems.items() if names]
    if not found:
        return
    advice = ""
    if any(name.startswith(HEAD) for name in problems["missing"] + problems["unexpected"]):
        advice = (
            " Only one of the two has a projection head: load before or after `with_projection`."
        )
    raise ValueError(
        f"The weights do not fit {model.name!r}, which is unchanged; {'; '.join(found)}.{advice}"
    )


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
