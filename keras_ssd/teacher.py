"""The teacher: frozen, in inference mode, and in no checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from keras_ssd.freezing import HALVES, InferenceNetwork, warn_if_slower
from keras_ssd.layers.frozen_backbone import FrozenCopy
from keras_ssd.layers.functional import as_functional, is_functional, single
from keras_ssd.layers.structure import compute_dtypes, flat_layers


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
        variables: The teacher's own variables: copies of the model's, or what folding made of them;
            empty for a function.
        model: The model that was frozen, or None for a function.
    """

    def __init__(
        self,
        network: Callable[[Any], Any],
        model: keras.Model | None,
        preprocessing: Callable[[tf.Tensor], tf.Tensor] | None,
    ) -> None:
        self._network = network
        self.model = model
        if isinstance(preprocessing, keras.layers.Layer) and preprocessing.weights:
            preprocessing = FrozenCopy(preprocessing)
        self.preprocessing = preprocessing

    @property
    def variables(self) -> list[keras.Variable]:
        """The teacher's own variables."""
        return getattr(self._network, "variables", []) if self.model is not None else []

    @property
    def compute_dtypes(self) -> list[str]:
        """The precisions that layers with weights compute in; empty for a function."""
        if self.model is None:
            return []
        layers = getattr(self._network, "layers", None) or flat_layers(self.model)
        return compute_dtypes(layers)

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Named outputs of a batch of images, without gradient.

        Args:
            images: `[rows, height, width, channels]`, raw (or as the input pipeline gives them).

        Returns:
            Dict of tensors `[rows, ...]`; a network that returns one tensor gives `logits`.
        """
        if self.preprocessing is not None:
            images = self.preprocessing(images)
        outputs = named(self._network(images), "teacher")
        return {name: tf.stop_gradient(tensor) for name, tensor in outputs.items()}


def freeze(
    teacher: keras.Model | Callable[[tf.Tensor], Any],
    *,
    dtype: str | None = None,
    fold_batch_norm: bool = True,
    preprocessing: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> FrozenTeacher:
    """Freezes a teacher: its weights are copied and it runs in inference mode from now on.

    A functional model (a Sequential or nested one, too) is made cheap on the way: what only
    training needs (dropout, noise) is left out, and batch normalisation is folded into the
    convolution or dense layer right behind or right before it. The outputs change by rounding only.
    Batch normalisation that cannot be folded, as in pre-activation networks, runs through
    TensorFlow's fused kernel (channels-last maps; Keras' own code elsewhere), and a log line names
    it.

    Args:
        teacher: A built Keras model of any kind (functional, Sequential, nested, subclassed,
            compiled or not), which stays as it is; or a function (a loaded SavedModel, a table)
            from images to a tensor of logits or a dict of named tensors, which is held by
            reference. Subclassed models, whose layers are known only while they run, and functions
            run as they are.
        dtype: `"bfloat16"` or `"float16"`: the precision of the feature maps, twice as fast and
            more where the machine has the units for it. Where it multiplies matrices more slowly
            so, a warning says how much; maps of fewer than 16 channels may be slower anywhere:
            measure. Normalisation of the images, pooled features and classifier stay as they are;
            the outputs are float32. float16 overflows beyond 65504: bfloat16 is safer. None keeps
            the precision of the model.
        fold_batch_norm: False runs the layers as they are; without `dtype` the outputs are then
            those of the model bit for bit.
        preprocessing: Layer, model or function that turns the images given to `fit` into the
            teacher's input, for instance `keras.layers.Resizing(64, 64)`.

    Returns:
        A `FrozenTeacher`, made for the current `tf.distribute` scope.

    Raises:
        ValueError: If the model is not built, has several outputs of which none is `logits`, or
            `dtype` is none of those or cannot be chosen.
        TypeError: If `teacher` is neither a model nor callable, its outputs have no names, or
            `preprocessing` is not callable.

    Source: folding: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    if isinstance(teacher, FrozenTeacher):
        if (preprocessing, dtype, fold_batch_norm) != (None, None, True):
            raise ValueError(
                "This teacher is frozen already: give `preprocessing`, `dtype` and "
                "`fold_batch_norm` to the call of `freeze` that made it."
            )
        return teacher
    if isinstance(teacher, type) or not callable(teacher):
        raise TypeError(
            "`teacher` must be a Keras model or a function from images to outputs, got "
            f"{teacher!r}."
        )
    if preprocessing is not None and not callable(preprocessing):
        raise TypeError(
            f"`preprocessing` must be a layer, a model or a function, got {preprocessing!r}."
        )
    if not isinstance(fold_batch_norm, bool):
        raise ValueError(f"`fold_batch_norm` must be True or False, got {fold_batch_norm!r}.")
    if dtype is not None:
        dtype = _checked_half(dtype)
    model = teacher if isinstance(teacher, keras.Model) else None
    if model is None and dtype is not None:
        raise ValueError(
            f"`dtype={dtype!r}` needs a Keras model, got the function {teacher!r}, which chooses "
            "its precision itself: leave `dtype` at None."
        )
    network = teacher if model is None else _frozen(model, dtype, fold_batch_norm)
    return FrozenTeacher(network, model, preprocessing)


def _checked_half(dtype: Any) -> str:
    name = getattr(
        dtype, "name", getattr(dtype, "__name__", dtype)
    )  # TensorFlow's, NumPy's, a string
    if name not in HALVES:
        raise ValueError(
            f"`dtype` must be None (as in the model), 'bfloat16' or 'float16', got {dtype!r}."
        )
    warn_if_slower(name)
    return name


def _frozen(
    model: keras.Model, dtype: str | None, fold_batch_norm: bool
) -> FrozenCopy | InferenceNetwork:
    if not is_functional(model):
        frozen = FrozenCopy(model)
        logging.warning(
            "freeze: %r is a subclassed model, whose layers are known only while it runs: it runs "
            "as it is, %s.",
            model.name,
            "nothing folded" if dtype is None else f"nothing folded and not in {dtype}",
        )
        return frozen
    outputs = named(single(as_functional(model).output), "teacher")
    if len(outputs) > 1 and "logits" not in outputs:
        raise ValueError(
            f"The teacher {model.name!r} has the outputs {sorted(outputs)}, of which none is "
            "`logits`: name its class scores so."
        )
    if dtype is None and not fold_batch_norm:
        return FrozenCopy(model)
    return InferenceNetwork(model, dtype=dtype, fold_batch_norm=fold_batch_norm)
