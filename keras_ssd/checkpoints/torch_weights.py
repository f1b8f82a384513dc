"""Weights of PyTorch networks whose modules have the names of this library's layers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ssd.checkpoints.files import read_state_dict
from keras_ssd.checkpoints.misfits import HEADS, misfits
from keras_ssd.checkpoints.places import places

BACKBONE = "backbone."
PEERS = ("net1.", "net2.")  # the two networks of HSAKD's online variant
CLASSIFIER_OF_CRD = "classifier.0."  # of its MobileNetV2; "classifier." everywhere else


def load_torch_weights(
    model: keras.Model, source: str | os.PathLike | Mapping[str, Any], *, prefix: str = ""
) -> None:
    """Load weights of SSKD's, CRD's or HSAKD's code into a network of `models.build`.

    Every array must have its place and every weight its array: otherwise nothing is changed. In a
    network with a frozen backbone (`with_auxiliary_classifiers(..., backbone="frozen")`) the frozen
    copies are loaded, not the model that they were made of.

    The files of MobileNetV2 do not tell the stride of its stem: build it with `stem_stride=1` for
    those of HSAKD.

    Args:
        model: A network of `models.build`, or one with a projection head or auxiliary classifiers.
        source: Path of a `.pth`, `.pth.tar`, `.pt` (either layout of `torch.save`) or
            `.safetensors` file, or a mapping from names to arrays or tensors. No code in a file is
            run. The weights may be under "state_dict", "model" or "net" and their names may all
            begin with "module."; names that begin with "backbone." belong to the network, those
            with "proj_head." or "auxiliary_classifier." to its heads. Step counters
            (`num_batches_tracked`) are ignored.
        prefix: Only the names that begin with it are read, without it: "backbone." leaves the heads
            of a file out, "net1." and "net2." read the two networks of an online HSAKD file.

    Raises:
        TypeError: If `model` is no Keras model, or `source` of another kind.
        ValueError: If names are missing, unexpected or of another shape, or no name begins with
            `prefix`; or if the file is not one that can be read without running code.
        ImportError: If torch or safetensors, the extra `checkpoints`, is needed and not installed.

    Source: the module names of https://github.com/HobbitLong/RepDistiller,
    https://github.com/xuguodong03/SSKD and https://github.com/winycg/HSAKD.
    """
    _check_model(model)
    arrays = _named_as_here(_chosen(read_state_dict(source), prefix))
    targets = places(model)
    reasons = misfits(
        model,
        {name: place.shape for name, place in targets.items()},
        {name: array.shape for name, array in arrays.items()},
    ) or _bad_numbers(arrays)
    if reasons:
        raise ValueError(
            f"The weights do not fit {model.name!r}, which is unchanged: {'; '.join(reasons)}."
        )
    for name, (variable, axes) in targets.items():
        variable.assign(np.transpose(arrays[name], axes))


def to_torch_state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights of a network under the names and in the layout of the authors' PyTorch code.

    Args:
        model: A network of `models.build`, or one with a projection head or auxiliary classifiers,
            on a frozen backbone or not.

    Returns:
        Dictionary from names to arrays, which `load_torch_weights` and, as tensors,
        `torch.nn.Module.load_state_dict` take. With a head the names begin with "backbone.",
        "proj_head." and "auxiliary_classifier.". CRD's MobileNetV2 alone has another name: there
        "classifier." is "classifier.0.".

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If a layer of the network has no counterpart in that code.
    """
    _check_model(model)
    arrays = {
        name: np.transpose(_as_numpy(variable), np.argsort(axes))
        for name, (variable, axes) in places(model).items()
    }
    heads = tuple(HEADS)
    if not any(name.startswith(heads) for name in arrays):
        return arrays
    return {
        name if name.startswith(heads) else BACKBONE + name: array for name, array in arrays.items()
    }


def _chosen(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it, and without step counters."""
    if not prefix and all(any(n.startswith(peer) for n in arrays) for peer in PEERS):
        raise ValueError(
            "The checkpoint holds two networks that taught each other: pass "
            f"{' or '.join(f'`prefix={peer!r}`' for peer in PEERS)}."
        )
    chosen = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
    if not chosen:
        raise ValueError(
            f"No weight in the checkpoint has a name that begins with {prefix!r}; one is called "
            f"{next(iter(arrays))!r}."
        )
    return chosen


def _named_as_here(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays without the authors' name of what carries heads; CRD's classifier renamed."""
    if all(name.startswith((BACKBONE, *HEADS)) for name in arrays):
        arrays = {name.removeprefix(BACKBONE): array for name, array in arrays.items()}
    if "classifier.weight" in arrays:
        return dict(arrays)
    return {
        f"classifier.{name.removeprefix(CLASSIFIER_OF_CRD)}"
        if name.startswith(CLASSIFIER_OF_CRD)
        else name: array
        for name, array in arrays.items()
    }


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model, got {model!r}.")
    if hasattr(model, "student"):
        raise TypeError(f"`model` must be a network, got {model.name!r}: give `distiller.student`.")


def _as_numpy(variable: keras.Variable) -> np.ndarray:
    array = variable.numpy()  # PyTorch makes no tensor of NumPy's bfloat16
    return array.astype("float32") if variable.dtype == "bfloat16" else array


def _bad_numbers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    reasons = []
    for name, array in arrays.items():
        if not keras.backend.is_float_dtype(str(array.dtype)):
            reasons.append(f"{name} holds {array.dtype}, not floating-point numbers")
        elif not np.isfinite(array.astype("float32")).all():
            reasons.append(f"{name} holds NaN or infinite values")
        elif name.endswith("running_var") and array.min() < 0:
            reasons.append(f"{name} holds negative variances")
    return reasons
