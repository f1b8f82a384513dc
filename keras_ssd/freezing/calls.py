"""A network as the flat list of its calls, which can be rewritten one call at a time."""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.layers import FrozenBackbone
from keras_ssd.layers.functional import as_functional, called_anew, is_functional, single

_Values = Mapping[int, keras.Variable] | None
OUTSIDE = -1


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Args:
        layer: A Keras layer, a Keras operation or any function.
        args: Its arguments; a `KerasTensor` stands for a value of the network.
        kwargs: Its keyword arguments, likewise.
        outputs: The structure of `KerasTensor` that it gives.
        values: From the id of a weight to the variable that holds its value, where that is not the
            weight itself (inside a `FrozenBackbone`).
        inference: Whether the model's own graph makes the call with `training=False`.
        private: Whether `layer` was made here and belongs to nobody else.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Any
    values: _Values = None
    inference: bool = False
    private: bool = False

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors that it reads."""
        return _tensors((self.args, self.kwargs))

    @property
    def name(self) -> str:
        """The layer's name."""
        return getattr(self.layer, "name", repr(self.layer))

    @property
    def key(self) -> tuple[int, int]:
        """What calls of one layer with the same weights have in common."""
        return id(self.layer), id(self.values)

    def value_of(self, weight: keras.Variable) -> np.ndarray:
        """What a weight of the layer holds."""
        variable = (self.values or {}).get(id(weight), weight)
        return tf.convert_to_tensor(variable.value).numpy()

    def weights(self) -> list[np.ndarray]:
        """What all weights of the layer hold."""
        return [self.value_of(weight) for weight in self.layer.weights]

    def remade(self, layer: keras.layers.Layer, weights: list[np.ndarray]) -> Call:
        """The same call of another layer, made here, whose weights hold `weights`."""
        layer.build_from_config(self.layer.get_build_config() or {})
        layer.set_weights(weights)
        return dataclasses.replace(self, layer=layer, values=None, private=True)


@dataclasses.dataclass(frozen=True)
class Calls:
    """The calls of a network in an order in which they can be made.

    Args:
        inputs: What the network takes, as the structure of a functional model's `input`.
        calls: The calls.
        outputs: The structure of tensors that the network gives.
    """

    inputs: Any
    calls: list[Call]
    outputs: Any

    @classmethod
    def of(cls, model: keras.Model) -> Calls:
        """The calls of a functional model, nested and frozen models opened."""
        opened = _Opened()
        inputs, outputs = opened.open(model, None, inference=False)
        return cls(inputs, opened.calls, single(outputs)).renamed(opened.stands_for)

    def renamed(self, stands_for: Mapping[int, keras.KerasTensor]) -> Calls:
        """The same calls, other tensors put in the place of some."""

        def resolved(value: Any) -> Any:
            while isinstance(value, keras.KerasTensor) and id(value) in stands_for:
                value = stands_for[id(value)]
            return value

        def structure(values: Any) -> Any:
            return keras.tree.map_structure(resolved, values)

        calls = [
            dataclasses.replace(call, args=structure(call.args), kwargs=structure(call.kwargs))
            for call in self.calls
        ]
        return Calls(self.inputs, calls, structure(self.outputs))

    def with_remade(self, remade: Callable[[Call], Call | None]) -> Calls:
        """The same calls, those in whose place `remade` puts another one exchanged.

        It is asked once for all calls of one layer, which share the new layer, too.
        """
        asked: dict[tuple[int, int], Call | None] = {}
        calls = []
        for call in self.calls:
            if call.key not in asked:
                asked[call.key] = remade(call)
            other = asked[call.key]
            if other is not None:
                call = dataclasses.replace(call, layer=other.layer, values=None, private=True)
            calls.append(call)
        return Calls(self.inputs, calls, self.outputs)

    def producers(self) -> dict[int, int]:
        """From the id of a tensor to the index of the call that gives it."""
        return {id(t): i for i, call in enumerate(self.calls) for t in _tensors(call.outputs)}

    def readers(self) -> dict[int, list[int]]:
        """From the id of a tensor to the indices of the calls that read it, or `OUTSIDE`."""
        readers = collections.defaultdict(list)
        for index, call in enumerate(self.calls):
            for tensor in call.inputs:
                readers[id(tensor)].append(index)
        for tensor in _tensors(self.outputs):
            readers[id(tensor)].append(OUTSIDE)
        return readers


def leading_to(outputs: keras.KerasTensor, calls: Sequence[Call]) -> list[Call]:
    """Those of the calls that tensors are made of, in order.

    Args:
        outputs: A tensor, or a structure of them.
        calls: Calls in an order in which they can be made.
    """
    needed, leading = set(map(id, keras.tree.flatten(outputs))), []
    for call in reversed(calls):
        if needed.intersection(map(id, keras.tree.flatten(call.outputs))):
            needed.update(map(id, call.inputs))
            leading.append(call)
    return leading[::-1]


class _Opened:
    """The calls of a model and of the models inside it, in one list."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.stands_for: dict[int, keras.KerasTensor] = {}
        self._outer: list[Any] = []  # keeps tensors alive, whose ids are keys

    def open(self, model: keras.Model, values: _Values, inference: bool) -> tuple[Any, Any]:
        """Adds the calls of `model`; returns the structures of its inputs and outputs."""
        recorded: list[Call] = []

        def record(layer: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = layer(*args, **kwargs)
            # Who runs the calls says what `training` is.
            pinned = kwargs.pop("training", None) is False and not _false_by_default(layer)
            recorded.append(Call(layer, args, kwargs, outputs, values, pinned or inference))
            return outputs

        copy = called_anew(as_functional(model), record)
        for call in recorded:
            inner = _model_inside(call)
            if inner is None:
                self.calls.append(call)
            else:
                self._open_call(call, *inner)
        return copy.input, copy.output

    def _open_call(self, call: Call, model: keras.Model, values: _Values) -> None:
        start = len(self.calls)
        inputs, outputs = self.open(model, values, call.inference)
        [inner], [outer] = _tensors(inputs), call.inputs
        if inner.dtype == outer.dtype:
            self.stands_for[id(inner)] = outer
        else:  # a model casts what it is given to the type of its input
            cast = functools.partial(keras.ops.cast, dtype=inner.dtype)
            self.calls.insert(start, Call(cast, (outer,), {}, inner))
        pairs = zip(_tensors(call.outputs), _tensors(outputs), strict=True)
        self.stands_for.update({id(outer): inner for outer, inner in pairs})
        self._outer.append((call, inputs))


def _false_by_default(layer: keras.layers.Layer) -> bool:
    """Whether its `training` is False unless given, which Keras records like a user's False."""
    training = inspect.signature(layer.call).parameters.get("training")
    return training is not None and training.default is False


def _model_inside(call: Call) -> tuple[keras.Model, _Values] | None:
    """The functional model of one input that a call runs, and where its weights' values are."""
    model, values = call.layer, call.values
    if isinstance(model, FrozenBackbone):
        frozen = model.frozen
        pairs = zip(frozen.originals, frozen.variables, strict=True)
        values = {id(original): (values or {}).get(id(copy), copy) for original, copy in pairs}
        model = frozen.model
    if not is_functional(model) or len(model.inputs) != 1 or len(call.inputs) != 1:
        return None
    return model, values


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
