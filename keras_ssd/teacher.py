"""The teacher: frozen, and in no checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from keras_ssd.freezing import (
    HALVES,
    BatchStatisticsNetwork,
    InferenceNetwork,
    warn_if_slower,
)
from keras_ssd.layers.frozen_backbone import FrozenCopy
from keras_ssd.layers.functional import is_functional, reason_of, single
from keras_ssd.layers.structure import check_image_size, compute_dtypes, flat_layers

_BATCH_NORM = ("inference", "batch", "batch_update")


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


def known_outputs(
    network: Any, read: Callable[[Any], Mapping[str, Any]] | None = None
) -> dict[str, Any] | None:
    """Named outputs of a network as far as they are known without running it.

    Args:
        network: Any network.
        read: What makes named outputs of those of the network; None: `named`.

    Returns:
        Symbolic tensors, or, with `read`, their specs; None where only a call tells.
    """
    if not isinstance(network, keras.Model) or not hasattr(network, "outputs"):
        return None
    sequential = isinstance(network, keras.Sequential)
    outputs = network.outputs[0] if sequential else single(network.output)
    if read is None:
        return named(outputs, f"model {network.name!r}")
    specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), outputs)
    return specs_of(read, specs)


def specs_of(function: Callable[[Any], Mapping[str, Any]], inputs: Any) -> dict[str, tf.TensorSpec]:
    """Specs of the named tensors that a function returns, from a trace: nothing is computed.

    Args:
        function: The function.
        inputs: The spec of its argument, or a structure of specs.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(inputs)
    outputs = traced.structured_outputs
    return {name: tf.TensorSpec(x.shape, x.dtype, name) for name, x in outputs.items()}


class FrozenTeacher:
    """A teacher whose weights cannot change: images in, named outputs without gradient out.

    Made by `freeze`. A plain Python object, not a layer: its variables are in no checkpoint, no
    optimizer, no summary and no `weights` of the Distiller that holds it.

    Attributes:
        batch_norm: What `freeze` was told.
        read: What makes named outputs of those of the network.
        variables: The teacher's own variables: copies of the model's, or what folding made of them;
            empty for a function.
        model: The model that was frozen, or None for a function.
        outputs: The named outputs as symbolic tensors or specs, with their shapes; None where only
            a call tells (a function, a subclassed model).
    """

    def __init__(
        self,
        network: Callable[[Any], Any],
        model: keras.Model | None,
        preprocessing: Callable[[tf.Tensor], tf.Tensor] | None,
        batch_norm: str = "inference",
        read: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> None:
        self._network = network
        self.read = read or functools.partial(named, owner="teacher")
        self.outputs = known_outputs(model, read)
        self.batch_norm = batch_norm
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

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Named outputs of a batch of images, without gradient.

        Args:
            images: `[rows, height, width, channels]`, raw (or as the input pipeline gives them).
            training: Whether to run as in a training step: `freeze(batch_norm=)` says how. False is
                inference mode, with moving averages, and changes no variable.

        Returns:
            Dict of tensors `[rows, ...]`; a network that returns one tensor gives `logits`.

        Raises:
            ValueError: If the images have not the size that the network takes, or its one output
                has another number of rows (`tf.errors.InvalidArgumentError` where only a step
                tells).
        """
        rows = images
        if self.preprocessing is not None:
            images = self.preprocessing(images)
        options = {} if self.batch_norm == "inference" else {"training": training}
        self._check_size(images)
        outputs = self.read(self._run(images, options))
        if len(outputs) == 1:  # of several, one may have no rows: a scale, a vector of each class
            _check_rows(rows, *outputs.values())
        return {name: tf.stop_gradient(tensor) for name, tensor in outputs.items()}

    def _run(self, images: tf.Tensor, options: Mapping[str, Any]) -> Any:
        """What the network returns; a subclassed model that fails says why in one sentence."""
        try:
            return self._network(images, **options)
        except tf.errors.OpError:  # of the run, and not of the model
            raise
        except Exception as error:  # whatever a user's `call` raises
            if not isinstance(self.model, keras.Model) or is_functional(self.model):
                raise
            shape = tuple(getattr(images, "shape", ()))
            raise ValueError(
                f"The teacher {self.model.name!r} fails on images {shape[1:]} "
                f"({reason_of(error)}): give it those that it takes, by `preprocessing` (of a "
                "Distiller `teacher_preprocessing`)."
            ) from error

    def _check_size(self, images: tf.Tensor) -> None:
        """Refuses images that do not fit the input of a model whose graph is known."""
        model: Any = self.model
        wanted = model.input_shape if is_functional(model) else None
        if isinstance(wanted, tuple) and len(wanted) == len(images.shape) == 4:
            check_image_size(f"The teacher {model.name!r}", wanted, images.shape)


def _check_rows(images: tf.Tensor, output: tf.Tensor) -> None:
    """Refuses an output that has not one row an image."""
    if output.shape.rank in (None, 0):
        return
    given, got = images.shape[0], output.shape[0]
    if given is None or got is None:
        counts = tf.shape(output)[0], tf.shape(images)[0]
        words = ("The teacher returned", counts[0], "rows for", counts[1], "images.")
        tf.debugging.Assert(tf.equal(*counts), words)
    elif given != got:
        raise ValueError(
            f"The teacher returned {got} rows for {given} images: it must return one for each."
        )


def freeze(
    teacher: keras.Model | Callable[[tf.Tensor], Any],
    *,
    dtype: str | None = None,
    fold_batch_norm: bool = True,
    preprocessing: Callable[[tf.Tensor], tf.Tensor] | None = None,
    batch_norm: str | None = None,
    read: Callable[[Any], Mapping[str, Any]] | None = None,
) -> FrozenTeacher:
    """Freezes a teacher: its weights are copied, and it runs in inference mode if not told else.

    A functional model (a Sequential or nested one, too) is made cheap on the way: what only
    training needs (dropout, noise) is left out, and batch normalisation is folded into the
    convolution or dense layer right behind or right before it. The outputs change by rounding only.
    Batch normalisation that cannot be folded, as in pre-activation networks, runs through
    TensorFlow's fused kernel (channels-last maps; Keras' own code elsewhere), and a log line names
    it.

    With `batch_norm` the teacher runs as SSLD ran its own, with the statistics of each batch. There
    a MobileNetV3_large, taught by ResNet50_vd (82.35 %) for 120 epochs on ImageNet, reached 76.00 %
    with `"batch_update"` and 75.84 % with `"inference"`: 0.16 points, of one run each. Then

    * the answer for an image depends on the other images of its batch;
    * statistics are those of one replica, unless the teacher's own layers are `synchronized=True`;
      the moving averages of `"batch_update"` are means over all replicas, and take up the unbiased
      variance (see `layers.BatchNormalization`);
    * an evaluation is in inference mode nevertheless, and so are batch normalisation and nested
      models that the model's own graph calls with `training=False` (which Keras itself forgets in
      `model(images, training=True)`);
    * nothing is folded, so that a step costs more;
    * no file holds what `"batch_update"` moves. Moving averages enter nothing that is trained
      (batch renormalisation apart), so that a run that is resumed is exact; not exact is one whose
      teacher has dropout, the random states of which begin anew.

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
        batch_norm: How the teacher runs in a training step, that is, when it is called with
            `training=True`; None: `"inference"`, or as a `FrozenTeacher` was frozen.

            * `"inference"`: with its moving averages; dropout is off.
            * `"batch"`: every batch normalisation, also in a nested or frozen model or with
              `trainable=False`, normalises with mean and variance of the rows it is given. Its
              moving averages stay as they are; dropout, noise and stochastic depth are off.
            * `"batch_update"`: the same, but the moving averages of this copy are updated, with
              each layer's own momentum, and dropout, noise and stochastic depth are on.

            The last two need a functional or Sequential model whose batch normalisation is all in
            layers of its graph.
        read: Function from what the model or function returns to a dict of named tensors, for
            instance `lambda outputs: {"embedding": outputs[0]}`. None: a tensor is the logits, and
            a dict holds named tensors already. `frozen_encoder` reads the vector of an encoder.

    Returns:
        A `FrozenTeacher`, made for the current `tf.distribute` scope.

    Raises:
        ValueError: If the model is not built, or `dtype` or `batch_norm` is none of those, cannot
            be chosen or would change nothing.
        TypeError: If `teacher` is neither a model nor callable, its outputs have no names, or
            `preprocessing` or `read` is not callable.

    Sources: folding: Jacob et al. 2018, arXiv:1712.05877, section 3.2. Batch statistics: Cui et al.
    2021, arXiv:2103.05959; the gain: documentation of PaddleClas.
    """
    check_batch_norm(teacher, batch_norm)
    if isinstance(teacher, FrozenTeacher):
        options = (preprocessing, dtype, fold_batch_norm, read)
        _check_frozen_already(teacher, options != (None, None, True, None), batch_norm)
        return teacher
    if isinstance(teacher, type) or not callable(teacher):
        raise TypeError(
            "`teacher` must be a Keras model or a function from images to outputs, got "
            f"{teacher!r}."
        )
    if preprocessing is not None and (
        not callable(preprocessing) or isinstance(preprocessing, type)
    ):
        raise TypeError(
            f"`preprocessing` must be a layer, a model or a function, got {preprocessing!r}."
        )
    if read is not None and not callable(read):
        raise TypeError(f"`read` must be a function of the teacher's outputs, got {read!r}.")
    if not isinstance(fold_batch_norm, bool):
        raise ValueError(f"`fold_batch_norm` must be True or False, got {fold_batch_norm!r}.")
    if dtype is not None:
        dtype = _checked_half(dtype)
    batch_norm = batch_norm or "inference"
    model = teacher if isinstance(teacher, keras.Model) else None
    if model is None:
        _check_function(teacher, dtype, batch_norm)
        return FrozenTeacher(teacher, None, preprocessing, read=read)
    network = _frozen(model, dtype, fold_batch_norm, batch_norm)
    return FrozenTeacher(network, model, preprocessing, batch_norm, read)


def check_batch_norm(teacher: Any, batch_norm: str | None) -> None:
    """Refuses a `batch_norm` of `freeze` that is unknown, or for no teacher."""
    if batch_norm not in (None, *_BATCH_NORM):
        known = ", ".join(map(repr, _BATCH_NORM))
        raise ValueError(f"`batch_norm` of a teacher must be one of {known}, got {batch_norm!r}.")
    if teacher is None and batch_norm not in (None, "inference"):
        raise ValueError(
            f"`batch_norm={batch_norm!r}` of a teacher needs one, and there is none: give both "
            "together, or leave it out."
        )


def _check_frozen_already(
    teacher: FrozenTeacher, with_options: bool, batch_norm: str | None
) -> None:
    if batch_norm not in (None, teacher.batch_norm):
        raise ValueError(
            f"This teacher was frozen with `batch_norm={teacher.batch_norm!r}`, and now it is to "
            f"run with {batch_norm!r}: give that to the call of `freeze` that made it."
        )
    if with_options:
        raise ValueError(
            "This teacher is frozen already: give `preprocessing`, `dtype`, "
            "`fold_batch_norm` and `read` to the call of `freeze` that made it."
        )


def _check_function(function: Callable, dtype: str | None, batch_norm: str) -> None:
    if dtype is not None:
        raise ValueError(
            f"`dtype={dtype!r}` needs a Keras model, got the function {function!r}, which chooses "
            "its precision itself: leave `dtype` at None."
        )
    if batch_norm != "inference":
        raise ValueError(
            f"`batch_norm={batch_norm!r}` needs a functional or Sequential Keras model, got the "
            f"function {function!r}, whose layers are not known: leave `batch_norm` out."
        )


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
    model: keras.Model, dtype: str | None, fold_batch_norm: bool, batch_norm: str
) -> FrozenCopy | InferenceNetwork:
    if not is_functional(model):
        frozen = FrozenCopy(model)
        if batch_norm != "inference":
            raise ValueError(
                f"`batch_norm={batch_norm!r}` needs a functional or Sequential Keras model, and "
                f"{model.name!r} is a subclassed one, whose layers are known only while it runs: "
                "leave `batch_norm` out."
            )
        logging.warning(
            "freeze: %r is a subclassed model, whose layers are known only while it runs: it runs "
            "as it is, %s.",
            model.name,
            "nothing folded" if dtype is None else f"nothing folded and not in {dtype}",
        )
        return frozen
    if batch_norm != "inference":
        return BatchStatisticsNetwork(model, batch_norm, dtype=dtype)
    if dtype is None and not fold_batch_norm:
        return FrozenCopy(model)
    return InferenceNetwork(model, dtype=dtype, fold_batch_norm=fold_batch_norm)
