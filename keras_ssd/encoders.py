"""Encoders of any origin as frozen teachers: images in, one vector an image out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf
from keras import ops

from keras_ssd.freezing.saved_models import RestoredFunction, restored
from keras_ssd.layers.functional import (
    as_functional,
    is_functional,
    network_like,
    reason_of,
    single,
)
from keras_ssd.layers.image_preprocessing import ImagePreprocessing
from keras_ssd.layers.structure import check_image_size, takes_raw_images
from keras_ssd.teacher import FrozenTeacher, freeze, specs_of

_SIGNATURE = "serving_default"
_FORMS: dict[int, tuple[str, tuple[str | None, ...]]] = {  # by rank: what it is, how it is pooled
    2: ("vectors", (None,)),
    3: ("a sequence of tokens", ("mean", "first_token")),
    4: ("a map", ("mean",)),
}


def frozen_encoder(
    encoder: keras.Model | keras.layers.TFSMLayer | Callable | str | os.PathLike[str],
    *,
    output: str | None = None,
    pooling: Literal["mean", "first_token"] | None = None,
    preprocessing: Callable[[tf.Tensor], tf.Tensor] | None = None,
    dtype: str | None = None,
    signature: str = _SIGNATURE,
) -> FrozenTeacher:
    """A frozen teacher with one named output, `embedding`: float32 `[rows, width]`.

    The vectors are those of the encoder, not normalised. `.outputs["embedding"].shape[-1]` is the
    width; `.outputs` is None where only a call tells, that is, for a function or a subclassed
    model of unknown input size: with an `ImagePreprocessing` it is known.

    Args:
        encoder: One of

            * a built Keras model that takes images, such as one of `keras.applications` with
              `include_top=False`, or a KerasHub backbone. Its weights are copied. Of a KerasHub
              model of images and texts (CLIP, SigLIP, MetaCLIP 2) it is the image side: the
              projected vector, from images alone, and nothing of the text side runs.
            * the folder of a TensorFlow SavedModel. It is read into the `tf.distribute` scope that
              is open, so that each replica has its weights at hand; images are cast to what its
              signature takes.
            * a `keras.layers.TFSMLayer` or a function from images to outputs, held by reference.

        output: Which output, where there are several. None where there is one.
        pooling: What makes a vector of more: `"mean"` over all places of a map `[rows, height,
            width, channels]` or over all tokens `[rows, tokens, width]` (a class token or registers
            included), `"first_token"` the class token of most transformers. Computed in float32.
        preprocessing: Layer, model or function from the images given to `fit` to those of the
            encoder, for instance `keras_ssd.layers.ImagePreprocessing(224)`.
        dtype: As in `freeze`; for a functional model alone. Layers of KerasHub keep their
            precision: load such a model with `from_preset(..., dtype="bfloat16")` instead.
        signature: Which function of a SavedModel.

    Returns:
        A `FrozenTeacher`.

    Raises:
        TypeError: If `encoder`, an option or an output is of the wrong kind.
        ValueError: If the encoder takes no images alone or not those of `preprocessing`, has no
            such signature or output, or gives no vectors of at least two floats. What only a call
            tells is refused at the first one.
    """
    if pooling not in (None, "mean", "first_token"):
        raise ValueError(f"`pooling` must be None, 'mean' or 'first_token', got {pooling!r}.")
    if not isinstance(encoder, (str, os.PathLike)) and signature != _SIGNATURE:
        raise ValueError(
            f"`signature={signature!r}` is for the folder of a SavedModel, got {encoder!r}: leave "
            "it out."
        )
    read = _Embedding(output, pooling)
    options: dict[str, Any] = {"preprocessing": preprocessing, "dtype": dtype}
    if is_functional(encoder):
        network = _embedding_network(encoder, read)
        given = _given(preprocessing)
        if given is not None:
            check_image_size(f"The encoder {network.name!r}", network.input_shape, given)
        if takes_raw_images(network):
            _refuse_normalising(preprocessing, f"The encoder {network.name!r} takes raw images")
        return freeze(network, **options)
    function = _function(encoder, signature)
    spec = _images(function, preprocessing)
    teacher = freeze(function, read=read, **options)
    if spec is not None:
        teacher.outputs = _traced(function, read, spec)
    return teacher


class _Embedding:
    """Makes `{"embedding": vectors}` of an encoder's outputs, symbolic or real ones.

    Args:
        output: The name of one of several outputs.
        pooling: As of `frozen_encoder`.
    """

    def __init__(self, output: str | None, pooling: str | None) -> None:
        self.output = output
        self.pooling = pooling

    def __call__(self, outputs: Any) -> dict[str, Any]:
        tensor = self._chosen(single(outputs))
        if not isinstance(tensor, (tf.Tensor, keras.KerasTensor)):
            raise TypeError(f"The encoder must return tensors, got {type(tensor).__name__}.")
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"The encoder must return floats, got {dtype}: class numbers are no embedding."
            )
        vectors = self._pooled(tensor)
        width = vectors.shape[-1]
        if width is None or width < 2:
            raise ValueError(
                f"An embedding must have a known width of at least 2, got {tuple(vectors.shape)}: "
                "name another output, or give the width with `tf.ensure_shape`."
            )
        return {"embedding": vectors}

    def _chosen(self, outputs: Any) -> Any:
        if isinstance(outputs, (list, tuple)):
            raise TypeError(
                f"The encoder returns a {type(outputs).__name__} of {len(outputs)} outputs without "
                "names: give a model (`keras.Model(encoder.input, encoder.outputs[0])`), or a "
                "function, that returns the one that is meant."
            )
        if not isinstance(outputs, Mapping):
            if self.output is not None:
                raise ValueError(
                    f"`output={self.output!r}` is one of several, and the encoder has one output: "
                    "leave it out."
                )
            return outputs
        names = sorted(outputs)
        if self.output is None and len(names) == 1:
            return outputs[names[0]]
        if self.output is None:
            raise ValueError(f"The encoder has the outputs {names}: name one with `output=`.")
        if self.output not in outputs:
            raise ValueError(f"`output={self.output!r}` is none of the encoder's outputs: {names}.")
        return outputs[self.output]

    def _pooled(self, tensor: Any) -> Any:
        """Float32 `[rows, width]`."""
        if getattr(tensor.shape, "rank", 0) is None:
            raise ValueError(
                "The shape of the encoder's output must be known, got none: give it with "
                "`tf.ensure_shape(output, [None, width])`."
            )
        shape = tuple(tensor.shape)
        found, ways = _FORMS.get(len(shape), ("", ()))
        if not ways:
            raise ValueError(
                "The encoder must return vectors, a sequence of tokens or a map, got the shape "
                f"{shape}: name another output."
            )
        if self.pooling not in ways:
            advice = " or ".join(f"`pooling={way!r}`" for way in ways)
            raise ValueError(
                f"The encoder returns {found}, {shape}, and `pooling` is {self.pooling!r}: give "
                f"{advice}."
            )
        if self.pooling == "first_token":
            tensor = tensor[:, 0]
        vectors = ops.cast(tensor, "float32")
        return (
            ops.mean(vectors, axis=range(1, len(shape) - 1)) if self.pooling == "mean" else vectors
        )


def _embedding_network(encoder: keras.Model, read: _Embedding) -> keras.Model:
    """From images alone to `{"embedding": vectors}`, on the layers of a functional model."""
    network = as_functional(encoder)
    names = [tensor.name for tensor in network.inputs]
    images = [tensor for tensor in network.inputs if len(tensor.shape) == 4]
    if not images:
        raise ValueError(
            f"The encoder {encoder.name!r} takes no images [rows, height, width, channels], but "
            f"{names}: give one that takes images."
        )
    if len(names) == 1:
        return network_like(encoder, images[0], read(network.output))
    # What KerasHub's backbones of images and texts have in common.
    image_side = getattr(encoder, "get_vision_embeddings", None)
    if image_side is None or len(images) > 1:
        raise ValueError(
            f"The encoder {encoder.name!r} takes {names}, and it is given the images alone: give "
            "the part of it that takes them, such as its `vision_encoder`."
        )
    return network_like(encoder, images[0], read(image_side(images[0])))


def _function(encoder: Any, signature: str) -> Any:
    """What is run for an encoder whose graph is not known to Keras."""
    if isinstance(encoder, (str, os.PathLike)):
        return restored(os.fspath(encoder), signature)
    if isinstance(encoder, keras.layers.TFSMLayer):
        # Not the layer's own call, which neither casts images nor tells what it takes.
        return RestoredFunction(
            encoder.call_endpoint_fn, encoder, f"The TFSMLayer {encoder.name!r}"
        )
    if isinstance(encoder, keras.Model):
        return encoder
    if isinstance(encoder, type) or not callable(encoder):
        raise TypeError(
            "`encoder` must be a Keras model, the folder of a SavedModel, a TFSMLayer or a "
            f"function, got {encoder!r}."
        )
    return encoder


def _given(preprocessing: Any) -> Sequence[int | None] | None:
    """The shape of preprocessed images, whatever the raw ones; None where a call tells."""
    if not isinstance(preprocessing, keras.layers.Layer):
        return None
    try:
        shape = preprocessing.compute_output_shape((None, None, None, None))
    except Exception:  # a layer may need to know more of its input
        return None
    return shape if isinstance(shape, tuple) and len(shape) == 4 else None


def _refuse_normalising(preprocessing: Any, reason: str) -> None:
    if isinstance(preprocessing, ImagePreprocessing) and preprocessing.mean is not None:
        height, width = preprocessing.image_size
        size = height if height == width else (height, width)
        raise ValueError(
            f"{reason}, and `preprocessing` normalises them: give ImagePreprocessing({size}, "
            "mean=None, std=None)."
        )


def _images(function: Any, preprocessing: Any) -> tf.TensorSpec | None:
    """The images that the function will be given, as far as they are known."""
    wanted: Any = getattr(function, "spec", None)
    if wanted is not None and wanted.dtype.is_integer:
        _refuse_normalising(preprocessing, f"{function!r} takes raw images ({wanted.dtype.name})")
    if preprocessing is None and wanted is not None:
        return wanted
    shape = _given(preprocessing)
    if isinstance(function, keras.Model):
        built = (function.get_build_config() or {}).get("input_shape")
        parts = built.values() if isinstance(built, Mapping) else built or ()
        if any(isinstance(part, tuple | list) for part in parts):
            raise ValueError(
                f"The encoder {function.name!r} must take images alone, and was built on {built}: "
                "give the part of it that takes them."
            )
        shape = built if preprocessing is None else shape
    if wanted is not None:
        check_image_size(repr(function), wanted.shape, shape)
    known = isinstance(shape, (tuple, list)) and all(isinstance(n, int) for n in shape[1:])
    return tf.TensorSpec([None, *shape[1:]], tf.float32) if shape and known else None


def _traced(function: Any, read: _Embedding, images: tf.TensorSpec) -> dict[str, tf.TensorSpec]:
    """Specs of the outputs, from a trace, in which nothing is computed."""
    options = {"training": False} if isinstance(function, keras.Model) else {}

    def run(rows: tf.Tensor) -> dict[str, Any]:
        try:
            outputs = function(rows, **options)
        except Exception as error:  # whatever a function raises on images that it does not take
            raise ValueError(
                f"The encoder fails on float32 images {tuple(images.shape[1:])} "
                f"({reason_of(error)}): give it images of the size that it takes, such as "
                "`preprocessing=keras_ssd.layers.ImagePreprocessing(224)`, and make a function of "
                "TensorFlow's operations (another one by `tf.numpy_function` and "
                "`tf.ensure_shape`)."
            ) from error
        return read(outputs)

    return specs_of(run, images)
