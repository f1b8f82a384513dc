"""What tells one network from another: a digest of all that decides its outputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.freezing.calls import Calls
from keras_ssd.layers.frozen_backbone import FrozenCopy
from keras_ssd.layers.functional import as_functional, is_functional
from keras_ssd.teacher import FrozenTeacher, freeze

_OF_A_COPY = ("build_config", "dtype", "module", "name", "registered_name", "trainable")
_OF_TRAINING = ("_initializer", "_regularizer", "_constraint")


def frozen_to_be_known(teacher: Any) -> FrozenTeacher:
    """The teacher, frozen; refuses one whose answers are not a function of an image and its digest.

    Raises:
        TypeError: If the teacher, its preprocessing or what names its outputs is a function.
        ValueError: If it does not run in inference mode.
    """
    model = teacher.model if isinstance(teacher, FrozenTeacher) else teacher
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`teacher` must be a Keras model or a FrozenTeacher of one, as nothing tells a "
            f"function from another, got {teacher!r}."
        )
    frozen = freeze(teacher)
    if frozen.batch_norm != "inference":
        raise ValueError(
            "The teacher must run in inference mode, got one frozen with "
            f"`batch_norm={frozen.batch_norm!r}`, whose answer for an image depends on the images "
            "beside it: give the model itself."
        )
    preprocessing = frozen.preprocessing
    if preprocessing is not None and not isinstance(preprocessing, keras.layers.Layer | FrozenCopy):
        raise TypeError(
            "The preprocessing of the teacher must be a Keras layer, as nothing tells a function "
            f"from another, got {preprocessing!r}."
        )
    if isinstance(frozen.read, types.FunctionType | types.MethodType):
        raise TypeError(
            "The outputs of the teacher must be named by its model, as nothing tells "
            f"`freeze(read=)` {frozen.read!r} from another: use `named_outputs`."
        )
    return frozen


def fingerprint_of(frozen: FrozenTeacher) -> str:
    """SHA-256 of what decides the outputs of a teacher, and so not of names of its layers."""
    parts = [digest_of_weights(frozen), kind_of(frozen.read), _structure(frozen.model)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_of_weights(frozen: FrozenTeacher) -> str:
    """SHA-256 of the types, shapes and values of the weights that run, and of the preprocessing."""
    digest = hashlib.sha256()
    for variable in frozen.variables:
        _update(digest, variable)
    digest.update(json.dumps(frozen.compute_dtypes).encode())
    preprocessing: Any = frozen.preprocessing
    if isinstance(preprocessing, FrozenCopy):
        for variable in preprocessing.variables:
            _update(digest, variable)
        preprocessing = preprocessing.model
    if preprocessing is not None:
        digest.update(json.dumps(_wiring(preprocessing), sort_keys=True).encode())
    return digest.hexdigest()


def _wiring(layer: Any) -> list[Any]:
    """As `_structure`, of a layer or a network that may not have been built."""
    if isinstance(layer, keras.Sequential):
        return [_wiring(each) for each in layer.layers]
    return _structure(layer) if isinstance(layer, keras.Model) else kind_of(layer)


def _structure(model: Any) -> list[Any]:
    """What a network computes with its weights: each call, and whose outputs it takes."""
    if not is_functional(model):  # no graph tells, so what its `get_config` does not is not seen
        with contextlib.suppress(NotImplementedError):
            return [type(model).__name__, _plain(model.get_config())]
        return [type(model).__qualname__]
    network = Calls.of(as_functional(model))
    numbers = {id(tensor): n for n, tensor in enumerate(keras.tree.flatten(network.inputs))}

    def noted(value: Any) -> Any:
        return _plain(keras.tree.map_structure(lambda x: numbers.get(id(x), x), value))

    structure = []
    for call in network.calls:
        structure.append([kind_of(call.layer), noted((call.args, dict(call.kwargs)))])
        for tensor in keras.tree.flatten(call.outputs):
            numbers.setdefault(id(tensor), len(numbers))
    return [*structure, noted(network.outputs)]


def kind_of(layer: Any) -> list[Any]:
    """The class and the settings of a layer, without what a copy of it may have otherwise.

    Raises:
        ValueError: If a layer does not tell its settings.
    """
    if not isinstance(layer, keras.layers.Layer):
        return [type(layer).__name__, _plain(getattr(layer, "__dict__", {}))]
    try:
        config = layer.get_config()
    except NotImplementedError:
        raise ValueError(
            f"The layers of the teacher must tell their settings, and {layer.name!r} of "
            f"{type(layer).__name__} has no `get_config`, so that nothing tells it from another: "
            "give it one."
        ) from None
    return [type(layer).__name__, _plain(config, _is_of_keras(type(layer).__module__))]


def _is_of_keras(module: Any) -> bool:
    """Whether Keras made a layer, whose seed then matters in training alone, and is random."""
    return str(module).startswith("keras.")


def _plain(value: Any, of_keras: bool = False) -> Any:
    if isinstance(value, Mapping):
        inner = _is_of_keras(value.get("module"))
        return {
            str(key): _plain(entry, of_keras=inner)
            for key, entry in value.items()
            if key not in _OF_A_COPY
            and not (of_keras and key == "seed")
            and not str(key).startswith("_")
            and not str(key).endswith(_OF_TRAINING)
        }
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | tf.Tensor):
        array = np.asarray(value)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _update(digest: Any, variable: keras.Variable) -> None:
    values = tf.convert_to_tensor(variable.value).numpy()
    digest.update(f"{values.dtype}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
