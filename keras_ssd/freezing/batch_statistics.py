"""A frozen functional network that runs as in training: with the statistics of its batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.collectives import all_sum, row_count
from keras_ssd.freezing.calls import Call, Calls
from keras_ssd.freezing.folding import is_batch_norm, parameters, without_training_only
from keras_ssd.freezing.inference import InferenceNetwork, halved, holds_batch_norm
from keras_ssd.layers import BatchNormalization
from keras_ssd.layers.frozen_backbone import FrozenCopy

_OPTIONS = (  # of batch normalisation; those of `renorm` are known to Keras from 3.15 on
    "axis",
    "epsilon",
    "momentum",
    "synchronized",
    "renorm",
    "renorm_clipping",
    "renorm_momentum",
)


class BatchStatisticsNetwork(InferenceNetwork):
    """A functional model on copies of its weights, called in inference mode or as in training.

    In training every batch normalisation, also one with `trainable=False`, normalises with the
    statistics of the batch, on TensorFlow's fused kernel where that can. What the model's own graph
    calls with `training=False` stays in inference mode. No weight ever changes.

    Args:
        model: A functional or built Sequential model. Its weights are copied into the current
            `tf.distribute` scope.
        batch_norm: `"batch"`: nothing else differs from inference. `"batch_update"`: dropout and
            all else that training turns on is on, and training moves the moving averages and the
            random states.
        dtype: `"bfloat16"` or `"float16"` for the feature maps, or None: as in the model.

    Attributes:
        variables: The copies, non-trainable.
        layers: What is called, in order: layers and operations.

    Raises:
        ValueError: If a layer runs batch normalisation in code of its own, or training would differ
            in nothing from inference.
    """

    def __init__(self, model: keras.Model, batch_norm: str, *, dtype: str | None = None) -> None:
        self._mode = batch_norm
        self._updates = batch_norm == "batch_update"
        super().__init__(model, dtype=dtype, fold_batch_norm=False)
        calls = self._calls.calls
        self._training = [not c.inference and (self._updates or is_batch_norm(c)) for c in calls]

    def __call__(self, images: Any, training: bool = False) -> Any:
        """The model's outputs for what it takes; none in half precision where `dtype` was given."""
        if not training:
            return super().__call__(images)
        with keras.StatelessScope(initialize_variables=False) as scope:
            outputs = self._run(images, self._training)
        if self._updates:
            self._keep(scope, row_count(keras.tree.flatten(images)[0]))
        return outputs

    def _rewritten(self, model: keras.Model, dtype: str | None) -> Calls:
        network = Calls.of(model)
        self._check(model.name, [call for call in network.calls if not call.inference])
        if not self._updates:
            network = without_training_only(network)
        if dtype is not None:
            as_given, network = network, halved(network, model.name, dtype)
            _take_random_states(as_given, network)
        return network.with_remade(lambda call: _in_training(call) if is_batch_norm(call) else None)

    def _check(self, name: str, calls: list[Call]) -> None:
        """Refuses a model whose calls cannot be run as in training, or would not differ there."""
        norms = [call for call in calls if holds_batch_norm(call.layer)]
        hidden = [call.name for call in norms if not is_batch_norm(call)]
        if hidden:
            raise ValueError(
                f"`batch_norm={self._mode!r}` needs every batch normalisation of the teacher "
                f"{name!r} as a layer of Keras or of this library in its own graph, and "
                f"{', '.join(hidden)} run it in code of their own: build the teacher without such "
                "layers, or leave `batch_norm` out."
            )
        if not norms and not (self._updates and any(_random_states(c.layer) for c in calls)):
            raise ValueError(
                f"`batch_norm={self._mode!r}` would change nothing for the teacher {name!r}, which "
                f"has no batch normalisation{' and no dropout' if self._updates else ''} outside "
                "of what it calls with `training=False`: leave `batch_norm` out."
            )

    def _copied(
        self, layer: keras.layers.Layer, values: Mapping[int, keras.Variable] | None
    ) -> FrozenCopy:
        return _TrainingCopy(layer, values) if self._updates else FrozenCopy(layer, values)

    def _keep(self, scope: keras.StatelessScope, rows: int | tf.Tensor) -> None:
        """Takes over random states, and moving averages: the mean over the rows of all replicas."""
        functions = {id(function): function for function in self._functions}.values()
        states = [state for function in functions for state in _random_states(function)]
        for state, value in _written(states, scope):
            state.assign(value)
        norms = [function for function in functions if isinstance(function, BatchNormalization)]
        averages = [average for norm in norms for average in norm.weights[2:]]
        moved = _written(averages, scope)
        # Replicas add up tensors of one dtype at a time.
        dtype = keras.backend.result_type("float32", *(average.dtype for average, _ in moved))
        rows = tf.cast(rows, dtype)
        changes = [tf.cast(value - average.value, dtype) for average, value in moved]
        # Without rows the statistics of a replica are NaN.
        shares = [tf.where(rows > 0, change * rows, 0) for change in changes]
        *sums, total = all_sum([*shares, rows])
        for (average, _), change in zip(moved, sums, strict=True):
            average.assign_add(tf.cast(tf.math.divide_no_nan(change, total), average.dtype))


class _TrainingCopy(FrozenCopy):
    """A layer on copies of its weights and random states, of which training moves the latter.

    Whatever else a layer writes to its variables is forgotten.

    Attributes:
        weights: The copies of its weights.
        variables: Those, and the copies of its random states.
    """

    def __init__(
        self, layer: keras.layers.Layer, values: Mapping[int, keras.Variable] | None
    ) -> None:
        super().__init__(layer, values)
        self.weights = list(self.variables)
        for state in _random_states(layer):
            value = tf.convert_to_tensor(state.value)
            copy = keras.Variable(value, dtype=state.dtype, trainable=False, name=state.name)
            self.originals.append(state)
            self.variables.append(copy)

    def __call__(self, *args: Any, training: bool, **kwargs: Any) -> Any:
        """The layer's outputs."""
        if not training:
            return super().__call__(*args, **kwargs)
        scope = keras.StatelessScope(initialize_variables=False)
        pairs = list(zip(self.originals, self.variables, strict=True))
        for original, held in pairs:
            scope.add_update((original, tf.convert_to_tensor(held.value)))
        with scope:
            outputs = self.model(*args, training=True, **kwargs)
        for original, state in pairs[len(self.weights) :]:
            state.assign(scope.get_current_value(original))
        return outputs


def _random_states(layer: Any) -> list[keras.Variable]:
    """The states of a layer's seed generators; an operation has none."""
    weights = {id(weight) for weight in getattr(layer, "weights", ())}
    return [v for v in getattr(layer, "variables", ()) if id(v) not in weights]


def _take_random_states(as_given: Calls, remade: Calls) -> None:
    """Gives layers that were made anew the random states of those in whose place they are."""
    for old, new in zip(as_given.calls, remade.calls, strict=True):
        if new.layer is not old.layer:
            pairs = zip(_random_states(old.layer), _random_states(new.layer), strict=True)
            for original, state in pairs:
                state.assign(original)


def _written(
    variables: list[keras.Variable], scope: keras.StatelessScope
) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Those variables to which something was written in a scope, and what it was."""
    pairs = [(variable, scope.get_current_value(variable)) for variable in variables]
    return [(variable, value) for variable, value in pairs if value is not None]


def _in_training(call: Call) -> Call:
    """The same call of our batch normalisation, which takes the statistics of the batch."""
    old = call.layer
    options = {name: getattr(old, name) for name in _OPTIONS if hasattr(old, name)}
    # `trainable`, or Keras stays in inference mode; scale and centre, or the kernel is not fused.
    layer = BatchNormalization(**options, dtype=old.dtype_policy, trainable=True, name=call.name)
    renormalisation = call.weights()[old.scale + old.center + 2 :]
    remade = call.remade(layer, [*parameters(call), *renormalisation])
    for weight in layer.weights:
        weight.trainable = False
    return remade
