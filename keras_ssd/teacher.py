"""The teacher: frozen, in inference mode, and in no checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.layers.frozen_backbone import FrozenCopy


def named(outputs: Any, owner: str) -> dict[str, tf.Tensor]:
    """A network's outputs as a dict: a bare tensor is the logits.

    Raises:
        TypeError: If the outputs are neither a tensor nor a dict with string keys.
    """
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, (list, tuple)):
        raise TypeError(
            f"The {owner} must return one tensor (its logits) or a dict of named tensors, got a "
            f"{type(outputs).__name__} of {len(outputs)}: name them, for instance with "
            "`named_outputs`."
        )
    return {"logits": outputs}


class FrozenTeacher:
    """A teacher that cannot change: images in, named outputs without gradient out.

    Made by `freeze`. A plain Python object, not a layer: its variables are in no checkpoint, no
    optimizer, no summary and no `weights` of the Distiller that holds it.

    Attributes:
        variables: The teacher's own copies of the model's variables; empty for a function.
        model: The model that was frozen, or None for a function.
    """

    def __init__(
        self,
        network: keras.Model | Callable[[tf.Tensor], Any],
        preprocessing: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        self.model = network if isinstance(network, keras.Model) else None
        self._call = FrozenCopy(network) if isinstance(network, keras.Model) else network
        if isinstance(preprocessing, keras.layers.Layer) and preprocessing.weights:
            preprocessing = FrozenCopy(preprocessing)
        self.preprocessing = preprocessing

    @property
    def variables(self) -> list[keras.Variable]:
        """The copies of the model's variables."""
        return self._call.variables if isinstance(self._call, FrozenCopy) else []

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Named outputs of a batch of images, without gradient.

        Args:
            images: `[rows, height, width, channels]`, raw (or as the input pipeline gives them).

        Returns:
            Dict of tensors `[rows, ...]`; a network that returns one tensor gives `logits`.
        """
        if self.preprocessing is not None:
            images = self.preprocessing(images)
        outputs = named(self._call(images), "teacher")
        return {name: tf.stop_gradient(tensor) for name, tensor in outputs.items()}


def freeze(
    teacher: keras.Model | Callable[[tf.Tensor], Any],
    *,
    preprocessing: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> FrozenTeacher:
    """Freezes a teacher: its weights are copied and it runs in inference mode from now on.

    Args:
        teacher: A built Keras model of any kind (functional, Sequential, nested, subclassed,
            compiled or not), which stays as it is; or a function (a loaded SavedModel, a table)
            from images to a tensor of logits or a dict of named tensors, which is held by
            reference.
        preprocessing: Layer, model or function that turns the images given to `fit` into the
            teacher's input, for instance `keras.layers.Resizing(64, 64)`.

    Returns:
        A `FrozenTeacher`, made for the current `tf.distribute` scope.

    Raises:
        ValueError: If the model is not built.
        TypeError: If `teacher` is neither a model nor callable.
    """
    if isinstance(teacher, FrozenTeacher):
        if preprocessing is not None:
            raise ValueError(
                "This teacher is frozen already: give `preprocessing` to the call of `freeze` that "
                "made it."
            )
        return teacher
    if isinstance(teacher, type) or not callable(teacher):
        raise TypeError(
            "`teacher` must be a Keras model or a function from images to outputs, got "
            f"{teacher!r}."
        )
    return FrozenTeacher(teacher, preprocessing)
