"""A backbone that no training moves: inference on non-trainable copies of a model's variables."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf


class FrozenCopy:
    """A built Keras model or layer called in inference mode on copies of its weights.

    The model is only ever read: its weights, batch-norm statistics and `trainable` flags stay as
    they are, and what happens to them later has no effect here. A plain object, so that what holds
    it tracks neither the model nor the copies.

    Args:
        model: A built Keras model or layer. Its weights are copied into the current
            `tf.distribute` scope.
        values: From the id of a weight to the variable to copy instead of it.

    Attributes:
        model: The model that was handed in.
        originals: Its weights.
        variables: The copies, non-trainable, in the order of `originals`.

    Raises:
        ValueError: If the model is not built.
    """

    def __init__(
        self, model: keras.layers.Layer, values: Mapping[int, keras.Variable] | None = None
    ) -> None:
        if not model.built:
            raise ValueError(
                f"The model {model.name!r} has no weights yet: call it once on a batch of images, "
                "or give it an input shape, before you freeze it."
            )
        self.model = model
        self.originals = list(model.weights)
        self.variables = [_copy((values or {}).get(id(v), v)) for v in self.originals]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs in inference mode: no dropout, stored batch-norm statistics."""
        scope = keras.StatelessScope(initialize_variables=False)
        for original, held in zip(self.originals, self.variables, strict=True):
            # Not `state_mapping=`: that rounds to the precision of an autocast scope around us.
            scope.add_update((original, tf.convert_to_tensor(held.value)))
        with scope:
            return self.model(*args, **{"training": False, **kwargs})

    def with_outputs_of(self, model: keras.Model) -> FrozenCopy:
        """Another model on the layers of this one's, called on the same copies."""
        values = dict(zip(map(id, self.originals), self.variables, strict=True))
        twin = copy.copy(self)
        twin.model, twin.originals = model, list(model.weights)
        twin.variables = [values[id(weight)] for weight in twin.originals]
        return twin


def _copy(variable: keras.Variable) -> keras.Variable:
    return keras.Variable(
        tf.convert_to_tensor(variable.value),
        dtype=variable.dtype,
        trainable=False,
        autocast=False,  # the model's own layers decide what is computed in which precision
        name=variable.path.replace("/", "."),
    )


@keras.saving.register_keras_serializable(package="keras_ssd")
class FrozenBackbone(keras.layers.Layer):
    """Gives a model's inference outputs, from copies of its variables that nothing trains.

    Dropout is off and batch normalisation uses its stored statistics, whatever `training` says.
    The layer is saved and loaded as one layer, the copies included; the model it was made of is
    left alone and may change afterwards without effect. Images reach the model uncast: a raw image
    is never halved by a mixed-precision policy before the model's own normalisation.

    Args:
        model: A built Keras model that can be serialised, or a `FrozenCopy` of one. Its outputs are
            the outputs of the layer.
        **kwargs: What every Keras layer takes (`name`, `dtype`).

    Raises:
        ValueError: If the model is not built.
    """

    def __init__(self, model: keras.Model | FrozenCopy, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.frozen = model if isinstance(model, FrozenCopy) else FrozenCopy(model)
        self.copies = self.frozen.variables  # as an attribute of the layer they are its weights
        self.built = True

    def call(self, images: tf.Tensor) -> Any:
        """The model's outputs for images `(rows, height, width, channels)`."""
        return self.frozen(images)

    def with_outputs_of(self, model: keras.Model) -> FrozenBackbone:
        """A layer of the same name, on the same copies, that gives the outputs of another model.

        Args:
            model: A model on the layers of this one's model, with other outputs.
        """
        frozen = self.frozen.with_outputs_of(model)
        return FrozenBackbone(frozen, name=self.name, dtype=self.dtype_policy)

    def get_config(self) -> dict[str, Any]:
        """The serialised model beside what every layer stores."""
        model = keras.saving.serialize_keras_object(self.frozen.model)
        return {**super().get_config(), "model": _without_compile_config(model)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FrozenBackbone:
        """A layer with freshly initialised copies, which loading then fills."""
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})


def _without_compile_config(config: Any) -> Any:
    """`config` without optimizers and losses, which may not load where the network is used."""
    if isinstance(config, dict):
        return {k: _without_compile_config(v) for k, v in config.items() if k != "compile_config"}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_compile_config(value) for value in config)
    return config
