"""The network that scores a pool: classes, probabilities and embeddings of batches of images."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.data.fingerprints import digest_of_weights, fingerprint_of, frozen_to_be_known
from keras_ssd.data.images import resize
from keras_ssd.freezing import HALVES
from keras_ssd.heads.taps import with_embedding
from keras_ssd.layers.functional import as_functional, is_functional, network_like, outputs_of
from keras_ssd.layers.structure import normalization_of
from keras_ssd.losses.precision import at_least_float32
from keras_ssd.losses.probabilities import are_probabilities
from keras_ssd.teacher import FrozenTeacher, freeze

_LEAST_ROWS = 2  # a row alone is multiplied in another order than rows of a matrix, and rounded so

Size = tuple[int, int]


class Answers(NamedTuple):
    """What the scorer says of some images.

    Attributes:
        classes: int32 `[N, P]`: the P classes of highest probability, of equal ones the lower.
        scores: float32 `[N, P]`: their probabilities.
        embeddings: float32 `[N, D]`, or None where they were not asked for.
        finite: bool `[N]`: whether all numbers of an image are.
    """

    classes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray | None
    finite: np.ndarray


class Scorer:
    """A frozen network as what scores images: in inference mode, in batches of one fixed shape.

    Every batch is filled up with black images, so that what is said of an image depends neither on
    the others of its batch nor on how many they are.

    Args:
        teacher: A built Keras model, or a `FrozenTeacher` of one.
        image_size: Height and width that images are resized to; None for those of the network's
            input. Where that is open (or a teacher has its own preprocessing), images stay as they
            are, and all have the size of the first.
        first_size: What tells the size of the first image.
        temperature: What logits are divided by.
        classes_per_image: P, from 1 to the number of classes.
        batch_size: Images in a batch.
        embedding: Whether embeddings are asked for: of a functional model what `with_projection`
            finds, of another one its output of that name.

    Attributes:
        name: The model's.
        digest: SHA-256 of the weights that run (their types, shapes and values), the outputs and
            the preprocessing; not of names.
        num_classes: Number of classes.
        preprocessing: What is done to images, as a manifest tells it.

    Raises:
        TypeError: If `teacher` is no Keras model, or its preprocessing no layer.
        ValueError: If it is not built or not in inference mode, gives no logits of two classes or
            more, or no embedding.
    """

    def __init__(
        self,
        teacher: keras.Model | FrozenTeacher,
        image_size: Size | None,
        first_size: Callable[[], Size],
        *,
        temperature: float,
        classes_per_image: int,
        batch_size: int,
        embedding: bool,
    ) -> None:
        frozen = frozen_to_be_known(teacher)
        model: Any = frozen.model
        self.name = model.name
        self._frozen, self._is_given_frozen = frozen, teacher is frozen
        self._size = _size(frozen, image_size)
        self._shape = (max(batch_size, _LEAST_ROWS), *(self._size or first_size()), 3)
        self.preprocessing = _preprocessing(frozen, self._size)
        outputs = _outputs(frozen, self._shape)
        self.num_classes = _classes(outputs, self.name)
        if classes_per_image > self.num_classes:
            raise ValueError(
                f"`classes_per_image` must be at most the {self.num_classes} classes of "
                f"{self.name!r}, got {classes_per_image}."
            )
        self._temperature, self._classes_per_image = temperature, classes_per_image
        self._embedding = embedding
        identity = json.dumps([fingerprint_of(frozen), outputs], sort_keys=True)
        self.digest = hashlib.sha256(identity.encode()).hexdigest()

    @property
    def rows(self) -> int:
        """Images that a batch has room for."""
        return self._shape[0]

    def prepared(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """A batch of at most `batch_size` images, resized and filled up.

        Raises:
            ValueError: If images have several sizes and nothing says which to resize them to.
        """
        batch = np.zeros(self._shape, np.uint8)
        others: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            if image.shape == self._shape[1:]:
                batch[place] = image
            else:
                others.setdefault(image.shape, []).append(place)
        for shape, places in others.items():
            if self._size is None:
                raise ValueError(
                    "The images must have one size, as the network leaves it open which, got "
                    f"{self._shape[1:3]} and {shape[:2]}: give `image_size=(height, width)`."
                )
            batch[places] = self._resize(np.stack([images[place] for place in places]))
        return batch

    def __call__(self, batch: np.ndarray, count: int) -> Answers:
        """What the network says of the first `count` images of a prepared batch.

        Raises:
            ValueError: If it gives probabilities.
        """
        classes, scores, embeddings, finite, is_softmax = self._run(batch)
        if is_softmax.numpy():
            raise ValueError(
                f"The teacher {self.name!r} must give logits, got probabilities (none is negative, "
                "all rows sum to 1): build it without a softmax at the end."
            )
        return Answers(
            classes.numpy()[:count],
            scores.numpy()[:count],
            None if embeddings is None else embeddings.numpy()[:count],
            finite.numpy()[:count],
        )

    @functools.cached_property
    def _resize(self) -> Callable[[np.ndarray], tf.Tensor]:
        def resized(images: tf.Tensor) -> tf.Tensor:
            return resize(images, self._shape[1:3])

        signature = [tf.TensorSpec((None, None, None, 3), tf.uint8)]
        return tf.function(resized, autograph=False, input_signature=signature)

    @functools.cached_property
    def _run(self) -> Callable[[np.ndarray], tuple[Any, ...]]:
        """What runs a batch; made when it is needed, as a pass that is done needs none."""
        teacher = self._frozen
        if self._embedding:
            teacher = _with_embedding(teacher, self._is_given_frozen)

        def run(images: tf.Tensor) -> tuple[Any, ...]:
            outputs = teacher(images)
            logits = tf.cast(at_least_float32(outputs["logits"], "logits"), tf.float32)
            probabilities = tf.nn.softmax(logits / self._temperature)
            scores, classes = tf.math.top_k(probabilities, self._classes_per_image)
            # A softmax of infinity is NaN in some places only, and the largest may be a number.
            numbers = tf.math.is_finite(probabilities) & (logits < np.inf)
            finite, embedding = tf.reduce_all(numbers, axis=1), None
            if self._embedding:
                embedding = tf.cast(_vectors(outputs, self.name), tf.float32)
                finite &= tf.reduce_all(tf.math.is_finite(embedding), axis=1)
            return classes, scores, embedding, finite, are_probabilities(logits)

        signature = [tf.TensorSpec(self._shape, tf.uint8)]
        return tf.function(run, autograph=False, input_signature=signature)


def _outputs(frozen: FrozenTeacher, shape: tuple[int, ...]) -> dict[str, list[int | None]]:
    """The names of the outputs and the shapes of a row of them."""
    model: Any = frozen.model
    outputs: Mapping[str, Any]
    if is_functional(model):
        outputs = outputs_of(as_functional(model))
    else:
        traced = tf.function(frozen, autograph=False)
        spec = tf.TensorSpec(shape, tf.uint8)
        outputs = traced.get_concrete_function(spec).structured_outputs
    return {name: list(tensor.shape)[1:] for name, tensor in outputs.items()}


def _classes(outputs: Mapping[str, list[int | None]], name: str) -> int:
    logits = outputs.get("logits", [])
    if len(logits) != 1 or (logits[0] or 0) < 2:
        raise ValueError(
            f"The teacher {name!r} must give `logits` [rows, classes] of two classes or more, got "
            f"outputs of these shapes, without the rows: {dict(outputs)}."
        )
    return logits[0] or 0


def _vectors(outputs: Mapping[str, tf.Tensor], name: str) -> tf.Tensor:
    embedding = outputs.get("embedding")
    if embedding is None or embedding.shape.rank != 2:
        got = {key: tuple(tensor.shape) for key, tensor in outputs.items()}
        raise ValueError(
            f"The teacher {name!r} must give an `embedding` [rows, width] for the detector of that "
            f"name, got {got}: name an output so, or leave 'embedding' out of `detectors`."
        )
    return embedding


def _size(frozen: FrozenTeacher, image_size: Size | None) -> Size | None:
    """Height and width that images are resized to, None where they stay as they are."""
    if frozen.preprocessing is not None or not is_functional(frozen.model):
        return image_size
    shape = as_functional(frozen.model).inputs[0].shape
    if len(shape) != 4 or None in shape[1:3]:
        return image_size
    taken = (shape[1], shape[2])
    if image_size not in (None, taken):
        raise ValueError(
            f"`image_size` must be None or {taken}, which the teacher takes, got {image_size}."
        )
    return taken


def _with_embedding(frozen: FrozenTeacher, settings_unknown: bool) -> FrozenTeacher:
    """The same network with its embedding among the outputs, frozen in the same way."""
    model: Any = frozen.model
    if not is_functional(model):
        return frozen
    network = as_functional(model)
    if "embedding" in outputs_of(network):
        return frozen
    try:
        network = with_embedding(network, None)
    except ValueError as error:
        raise ValueError(
            f"The embedding of {network.name!r} must be found for the detector of that name, and "
            "there is neither a layer nor an output called so, nor a Dense layer: call one so, or "
            "leave 'embedding' out of `detectors`."
        ) from error
    chosen = {name: network.output[name] for name in ("logits", "embedding")}
    tapped = network_like(network, network.input, chosen)
    settings = _settings(frozen) if settings_unknown else {}
    return _frozen_again(tapped, frozen, settings)


def _settings(frozen: FrozenTeacher) -> dict[str, Any]:
    """What `freeze` was told, found by telling it the same again."""
    digest = digest_of_weights(frozen)
    model: Any = frozen.model
    half = next((dtype for dtype in frozen.compute_dtypes if dtype in HALVES), None)
    for dtype, fold in itertools.product(dict.fromkeys((half, None)), (True, False)):
        settings = {"dtype": dtype, "fold_batch_norm": fold}
        again = _frozen_again(model, frozen, settings)
        if digest_of_weights(again) == digest:
            return settings
    raise ValueError(
        f"The model {model.name!r} has changed since the teacher was frozen, and its "
        "embedding is to be compared: freeze it anew."
    )


def _frozen_again(
    model: keras.Model, frozen: FrozenTeacher, settings: Mapping[str, Any]
) -> FrozenTeacher:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a slow half: the user was warned when they froze it
        return freeze(model, preprocessing=frozen.preprocessing, **settings)


def _preprocessing(frozen: FrozenTeacher, size: Size | None) -> dict[str, Any]:
    """Mean and deviation are those of values scaled to 0..1, as in `DatasetInfo`."""
    layer = normalization_of(frozen.model)
    mean = std = None
    if layer is not None:  # of either kind it is affine
        black, white = (np.full((1, 1, 1, 3), value, "float32") for value in (0, 255))
        low, high = (np.ravel(layer(image)).astype("float64") for image in (black, white))
        # + 0.0: a mean of -0.0 is 0.0
        mean = ((-low / (high - low)).round(6) + 0.0).tolist()
        std = (1 / (high - low)).round(6).tolist()
    return {
        "resize": None if size is None else list(size),
        "crop": None,
        "mean": mean,
        "std": std,
        "interpolation": "bilinear, antialiased",
    }
