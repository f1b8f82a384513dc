"""The features of a network: its embedding of labelled images, each computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.data.order import epochs_of
from keras_ssd.freezing import HALVES
from keras_ssd.heads.taps import with_embedding
from keras_ssd.layers.frozen_backbone import FrozenBackbone, FrozenCopy
from keras_ssd.layers.functional import as_functional, is_functional, network_like
from keras_ssd.losses.precision import at_least_float32
from keras_ssd.teacher import FrozenTeacher, named

_ROWS = 256  # images of arrays that are run at once


class Features:
    """Images in, feature vectors out: a network in inference mode, from copies of its weights.

    Args:
        network: A built Keras model, a `FrozenTeacher` of one, or a Distiller (its student).
        embedding: The layer whose output the features are, by default as `with_projection` finds
            it; of a subclassed model the name of an output, by default `embedding`.

    Raises:
        TypeError: If there is no Keras model.
        ValueError: If it is not built, takes several inputs, or the embedding cannot be found.
    """

    def __init__(self, network: Any, embedding: str | None = None) -> None:
        network = getattr(network, "student", network)
        self._teacher = network if isinstance(network, FrozenTeacher) else None
        model = network if self._teacher is None else self._teacher.model
        if not isinstance(model, keras.Model):
            raise TypeError(
                "`network` must be a Keras model, a FrozenTeacher of one or a Distiller, got "
                f"{network!r}."
            )
        if not model.built:
            raise ValueError(
                f"The network {model.name!r} has no weights yet: call it once on a batch of images "
                "before."
            )
        self._model = model
        alone = _with_features_alone(model, embedding)
        self._output = "embedding" if is_functional(alone) or not embedding else embedding
        self._backbone = FrozenBackbone(alone, name="backbone")
        self._images: Any = alone.input if is_functional(alone) else None  # as the network has them
        # Without autograph, as Keras runs a model; the last batch of a data set may be smaller.
        self._run = tf.function(self._vectors, autograph=False, reduce_retracing=True)

    def of(self, data: Any, part: str) -> tuple[np.ndarray, np.ndarray]:
        """The features of all labelled images.

        Args:
            data: A `tf.data.Dataset` of batches (images, labels), or a pair of arrays.
            part: What errors call it.

        Returns:
            float32 `[N, width]` and int64 `[N]`, in the order of the data.

        Raises:
            TypeError: If `data` is of another kind.
            ValueError: If there is no labelled image, images do not fit the network, labels name no
                classes, or features are no vectors of finite numbers, or probabilities.
        """
        vectors: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        for images, labels in _batches(data, part):
            if len(images.shape) != 4:
                raise ValueError(
                    f"The images of `{part}` must be [batch, height, width, channels], got shape "
                    f"{tuple(images.shape)}: a data set of single images needs `.batch(64)`."
                )
            classes = _class_numbers(labels, part)
            if len(classes) != len(images):
                raise ValueError(f"`{part}` has {len(images)} images and {len(classes)} labels.")
            labelled = np.flatnonzero(classes >= 0)
            if not len(labelled):
                continue
            if len(labelled) < len(classes):
                images = tf.gather(images, labelled)
            images = self._checked(tf.convert_to_tensor(images), part, first=not vectors)
            vectors.append(self._run(images).numpy())
            numbers.append(classes[labelled])
        if not vectors:
            raise ValueError(f"`{part}` holds no labelled image.")
        features = np.concatenate(vectors)
        _check_values(features, part)
        return features, np.concatenate(numbers)

    def classified_by(self, layer: keras.layers.Layer) -> keras.Model:
        """A functional model from what the network takes to what `layer` makes of its features."""
        dtype = keras.backend.standardize_dtype(self._images.dtype)
        images = keras.Input(tuple(self._images.shape)[1:], dtype=dtype)
        features = self._backbone(images)[self._output]
        return network_like(self._model, images, layer(features))

    def _checked(self, images: tf.Tensor, part: str, first: bool) -> tf.Tensor:
        """The images as the network takes them."""
        teacher, raw = self._teacher, images
        if teacher is not None and teacher.preprocessing is not None:
            images = teacher.preprocessing(images)
        if self._images is None:
            self._images = images[:0]
        wanted = tuple(self._images.shape)[1:]
        if not images.shape[1:].is_compatible_with(wanted):
            raise ValueError(
                f"The network takes images {wanted}, those of `{part}` are "
                f"{tuple(images.shape[1:])}: resize them (`image_size=` of `data.load`, "
                "`keras.layers.Resizing`)."
            )
        if images.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(images)):
            raise ValueError(f"The images of `{part}` hold NaN or infinite values: mend the data.")
        if first and teacher is not None:
            half = not set(HALVES).isdisjoint(teacher.compute_dtypes)
            self._check_unchanged(teacher(raw), images, tolerance=0.1 if half else 1e-3)
        return images

    def _check_unchanged(
        self, frozen: dict[str, tf.Tensor], images: tf.Tensor, tolerance: float
    ) -> None:
        """Refuses a teacher whose model has changed since: its features are the model's."""
        outputs = named(FrozenCopy(self._model)(images), "teacher")
        for name, tensor in frozen.items():
            wanted = at_least_float32(tensor, name)
            difference = tf.reduce_max(abs(wanted - tf.cast(outputs[name], wanted.dtype)))
            if not difference <= tolerance * tf.reduce_max(abs(wanted)):
                raise ValueError(
                    f"The model {self._model.name!r} has changed since the teacher was frozen "
                    f"(`{name}` differs by {float(difference):.3g}): probe the model itself, or a "
                    "copy of it that was kept."
                )

    def _vectors(self, images: tf.Tensor) -> tf.Tensor:
        outputs = named(self._backbone(images), "network")
        if self._output not in outputs:
            raise ValueError(
                f"The network {self._model.name!r} returns no {self._output!r}, only "
                f"{sorted(outputs)}, and its layers are known only while it runs: return the "
                "features under that name from its `call`."
            )
        vectors = outputs[self._output]
        if vectors.shape.rank != 2:
            raise ValueError(
                f"Features must be vectors [images, width], got shape {vectors.shape}: pass "
                "`embedding=` the name of a pooling or flattening layer."
            )
        return tf.cast(vectors, tf.float32)


def _with_features_alone(model: keras.Model, embedding: str | None) -> keras.Model:
    """The network without heads and classifier, as far as its graph is known."""
    if not is_functional(model):
        return model
    network = as_functional(model)
    if len(network.inputs) != 1:
        raise ValueError(
            f"The network {model.name!r} has {len(network.inputs)} inputs, and it is given the "
            "images alone: wrap it in a model that makes the others of them."
        )
    given = isinstance(network.output, dict) and "embedding" in network.output
    if embedding is not None or not given:
        network = with_embedding(network, embedding)
    return network_like(model, network.input, {"embedding": network.output["embedding"]})


def _batches(data: Any, part: str) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, tf.data.Dataset):
        _check_dataset(data, part)
        with _first_epoch(data):
            yield from data
        return
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(
            f"`{part}` must be a tf.data.Dataset of batches (images, labels), such as the `train` "
            f"and `test` of `data.load`, or a pair of arrays, got a {type(data).__name__}."
        )
    images, labels = (one if tf.is_tensor(one) else np.asarray(one) for one in data)
    if not images.ndim or not labels.ndim or len(images) != len(labels):
        raise ValueError(
            f"`{part}` must hold as many images as labels, got shapes {tuple(images.shape)} and "
            f"{tuple(labels.shape)}."
        )
    for start in range(0, len(images), _ROWS):
        yield images[start : start + _ROWS], labels[start : start + _ROWS]


def _check_dataset(data: tf.data.Dataset, part: str) -> None:
    spec = data.element_spec
    are_tensors = isinstance(spec, tuple) and all(isinstance(x, tf.TensorSpec) for x in spec)
    if not are_tensors or len(spec) != 2:
        raise ValueError(
            f"`{part}` must give pairs (images, labels), got {spec}: in TFDS `as_supervised=True` "
            "makes them; all images weigh the same."
        )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"`{part}` never ends: leave `.repeat()` out.")


@contextlib.contextmanager
def _first_epoch(data: tf.data.Dataset) -> Iterator[None]:
    """Reads a training set of `data.load` in the order of epoch 0, whatever epoch `fit` left."""
    epochs = [(variable, variable.numpy()) for variable in epochs_of(data)]
    for variable, _ in epochs:
        variable.assign(0)
    try:
        yield
    finally:
        for variable, epoch in epochs:
            variable.assign(epoch)


def _class_numbers(labels: Any, part: str) -> np.ndarray:
    """int64 `[N]`, -1 for an unlabeled image."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and np.all((array == 0) | (array == 1)) and np.all(array.sum(1) <= 1):
        return np.where(array.any(1), array.argmax(1), -1)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError(
            f"The labels of `{part}` must be integers [batch] or one-hot rows [batch, classes], "
            f"got {array.dtype} of shape {array.shape}."
        )
    with np.errstate(invalid="ignore"):  # of NaN
        numbers = array.astype(np.int64)
    wrong = array[(numbers != array) | (numbers < -1)]
    if len(wrong):
        raise ValueError(
            f"The labels of `{part}` must be classes from 0 on, or -1 for no label, got {wrong[0]}."
        )
    return numbers


def _check_values(features: np.ndarray, part: str) -> None:
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"The features of {np.sum(~finite)} of the {len(features)} images of `{part}` are not "
            "finite: look at the images and at the network's precision (float16 overflows)."
        )
    if np.all(features >= 0) and np.allclose(features.sum(axis=1), 1, atol=1e-3):
        raise ValueError(
            f"The features of `{part}` are probabilities (none is negative, all rows sum to 1): "
            "pass `embedding=` the name of the layer before the classifier."
        )
