"""Functions of SavedModels, which Keras knows nothing of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_ssd.layers.structure import check_image_size


def restored(path: str, signature: str) -> RestoredFunction:
    """One function of a SavedModel, read into the `tf.distribute` scope that is open.

    Args:
        path: Its folder.
        signature: The name of the function.

    Raises:
        ValueError: If there is no SavedModel, no such signature, or one that takes no images alone.
    """
    if not tf.saved_model.contains_saved_model(path):
        raise ValueError(
            f"{path} is no folder of a SavedModel: give one, or load a file of Keras with "
            "`keras.models.load_model`."
        )
    try:
        loaded = tf.saved_model.load(path)
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(
            f"The SavedModel {path} cannot be read ({str(error).partition('.')[0]}): export it "
            "again."
        ) from error
    known = sorted(loaded.signatures)
    if not known:
        raise ValueError(f"The SavedModel {path} has no signatures: {_instead(path, loaded)}.")
    if signature not in known:
        raise ValueError(
            f"The SavedModel {path} has no signature {signature!r} (it has {known}): give one of "
            "them as `signature=`."
        )
    return RestoredFunction(loaded.signatures[signature], loaded, f"The SavedModel {path}")


def _instead(path: str, loaded: Any) -> str:
    """What to give for a SavedModel without signatures."""
    members = {name: getattr(loaded, name, None) for name in dir(loaded)}
    names = [name for name, one in members.items() if getattr(one, "concrete_functions", None)]
    if not names:
        return "export it with one, `tf.saved_model.save(model, path, signatures=...)`"
    which = f"; it has the functions {names}" if len(names) > 1 else ""
    return f"give `keras.layers.TFSMLayer({path!r}, call_endpoint={names[0]!r})` instead{which}"


class RestoredFunction:
    """A function of a SavedModel, from images of any type to its outputs.

    Args:
        function: The restored function.
        owner: What holds its variables, kept alive here.
        name: What errors call it.

    Attributes:
        spec: What it takes.

    Raises:
        ValueError: If it takes anything else than any number of images.
    """

    def __init__(self, function: Callable[..., Any], owner: Any, name: str) -> None:
        self._function, self._owner, self._name = function, owner, name
        concrete = getattr(function, "concrete_functions", [function])[0]
        self._arguments: Any = concrete.structured_input_signature
        specs = [x for x in tf.nest.flatten(self._arguments) if isinstance(x, tf.TensorSpec)]
        if len(specs) != 1:
            names = [spec.name for spec in specs]
            raise ValueError(
                f"{self!r} takes {names}, and it is given the images alone: give a function that "
                "makes the others of them."
            )
        self.spec = specs[0]
        if self.spec.shape.rank not in (None, 4):
            raise ValueError(
                f"{self!r} takes no images [rows, height, width, channels], but {self.spec.shape}."
            )
        if self.spec.shape.rank and self.spec.shape[0] is not None:
            raise ValueError(
                f"{self!r} takes exactly {self.spec.shape[0]} images at a time: export it with a "
                "free number of rows."
            )

    def __repr__(self) -> str:
        return self._name

    def __call__(self, images: tf.Tensor) -> Any:
        """The outputs for images `[rows, height, width, channels]`, a tensor or a structure."""
        images = tf.convert_to_tensor(images)
        check_image_size(repr(self), self.spec.shape, images.shape)
        if self.spec.dtype.is_integer and images.dtype.is_floating:
            images = tf.saturate_cast(tf.round(images), self.spec.dtype)
        images = tf.cast(images, self.spec.dtype)
        flat = [
            images if isinstance(x, tf.TensorSpec) else x for x in tf.nest.flatten(self._arguments)
        ]
        args, kwargs = tf.nest.pack_sequence_as(self._arguments, flat)
        return self._function(*args, **kwargs)
