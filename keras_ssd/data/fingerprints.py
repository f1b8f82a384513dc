"""What tells one network from another: a digest of all that decides its outputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import types
import warnings
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
_WRAPPED = ("build", "quantize")  # methods that Keras wraps in a function for each layer
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
        return [type(layer).__name__, _plain(getattr(layer, "__dict__", {}), ("name",))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of functions, which nobody loads here
            config = layer.get_config()
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"The layers of the teacher must tell their settings, and {layer.name!r} of "
            f"{type(layer).__name__} has no `get_config` that can, so that nothing tells it from "
            "another: give it one, or make it of a function."
        ) from error
    functions = {
        name: _of_function(value)
        for name, value in vars(layer).items()
        if isinstance(value, types.FunctionType) and name not in _WRAPPED
    }
    settings = _plain(config, _dropped(type(layer).__module__))
    return [type(layer).__name__, settings, {k: v for k, v in functions.items() if v}]


def _of_function(function: types.FunctionType) -> list[Any]:
    """What a user's function computes, as its name does not tell; nothing for those of Keras.

    Its code, the numbers and functions that it was made with and the numbers of its module.
    """
    if _is_of_keras(function.__module__):
        return []
    code = function.__code__
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    seen = {name: function.__globals__.get(name) for name in code.co_names}
    return [function.__qualname__, *_of_code(code), _plain([cells, function.__defaults__, seen])]


def _of_code(code: types.CodeType) -> list[Any]:
    inner = [_of_code(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    return [code.co_code.hex(), code.co_names, _plain(code.co_consts), inner]


def _is_of_keras(module: Any) -> bool:
    return str(module).startswith("keras.")


def _dropped(module: Any) -> tuple[str, ...]:
    """The settings that two copies of a layer have otherwise: also the seed of one of Keras.

    Its random layers take a new seed each, and do nothing but in training.
    """
    return (*_OF_A_COPY, "seed") if _is_of_keras(module) else _OF_A_COPY


def _plain(value: Any, dropped: tuple[str, ...] = _OF_A_COPY) -> Any:
    if isinstance(value, Mapping):
        inner = _dropped(value.get("module"))
        return {
            str(key): _plain(entry, inner)
            for key, entry in value.items()
            if key not in dropped
            and not str(key).startswith("_")
            and not str(key).endswith(_OF_TRAINING)
        }
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, slice):
        return ["slice", _plain([value.start, value.stop, value.step])]
    if isinstance(value, types.FunctionType):
        code = [] if _is_of_keras(value.__module__) else _of_code(value.__code__)
        return [value.__qualname__, *code]
    if isinstance(value, keras.Variable):
        value = value.value
    if isinstance(value, np.ndarray | np.generic | tf.Tensor | tf.Variable):
        value = value.numpy() if isinstance(value, tf.Variable) else value
        array = np.asarray(value)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _update(digest: Any, variable: keras.Variable) -> None:
    values = tf.convert_to_tensor(variable.value).numpy()
    digest.update(f"{values.dtype}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
