"""The student as a SavedModel that runs without Keras and without this library."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.distribution import is_chief
from keras_ssd.heads.node_embedding import with_folded_classifier
from keras_ssd.heads.taps import strip_heads
from keras_ssd.layers.frozen_backbone import FrozenCopy
from keras_ssd.layers.functional import is_functional
from keras_ssd.layers.structure import inner_layers, takes_raw_images
from keras_ssd.losses.precision import at_least_float32
from keras_ssd.losses.probabilities import are_probabilities

_CLASS_NAMES = "class_names.txt"
_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def export_student(
    distiller_or_network: keras.Model,
    path: str | os.PathLike[str],
    outputs: Literal["logits", "probabilities"] = "logits",
    *,
    class_names: Sequence[str] | None = None,
) -> pathlib.Path:
    """Writes the student's inference function as a SavedModel, verified against the student.

    `tf.saved_model.load(path).signatures["serving_default"](image=...)` gives a dict with the one
    entry `outputs`, float32 (float64 for a float64 student) of shape `(rows, classes)`, for any
    number of rows; it needs TensorFlow only. The images are raw (uint8, 0..255) when the student
    begins with a `Rescaling` or `Normalization` layer (a subclassed one: if its `call` can be run
    on Keras' symbols, which tells), else float32 as the student takes them.
    Heads and the teacher are not in the file; of a subclassed student, whose layers are known only
    while it runs, the weights of its heads are.

    The file is read back and compared with the student on random images before it gets its name;
    the largest difference is printed. An earlier SavedModel at `path` is replaced only then. Of
    several workers the chief alone writes, and the others do not wait for it.

    Args:
        distiller_or_network: A Distiller (its `student` is exported) or any built Keras model that
            returns logits, or a dict with `logits`.
        path: The folder to write. It must not exist, or hold an earlier SavedModel.
        outputs: `"logits"`, or `"probabilities"`: their softmax, computed in float32.
        class_names: One name a class, in the order of the logits, such as `data.info.class_names`.
            They become the file `assets/class_names.txt` (UTF-8, one a line) of the SavedModel,
            whose path is `tf.saved_model.load(path).class_names.asset_path`. None: no such file.

    Returns:
        The path.

    Raises:
        TypeError: If there is no Keras model to export, or `class_names` is no sequence.
        ValueError: If the student is not built, has several inputs, gives no logits or ends with a
            softmax; `outputs` is unknown; `class_names` are not one distinct line a class; `path`
            is something else than a SavedModel; or the scope of a strategy is open.
        RuntimeError: If what was written computes something else than the student.
    """
    if outputs not in ("logits", "probabilities"):
        raise ValueError(f"`outputs` must be 'logits' or 'probabilities', got {outputs!r}.")
    if tf.distribute.has_strategy():  # a SavedModel is read back into the scope that is open
        raise ValueError("Leave the scope of the tf.distribute strategy before exporting.")
    path = pathlib.Path(path)
    _check_path(path)
    student = getattr(distiller_or_network, "student", distiller_or_network)
    if not isinstance(student, keras.Model):
        raise TypeError(
            f"Expected a Distiller or a Keras model, got {type(distiller_or_network).__name__}."
        )
    spec = _image_spec(student)
    batches = [_random_images(spec, rows) for rows in (1, 3)]
    expected = [_answer(_logits(student(batch, training=False)), outputs) for batch in batches]
    if class_names is not None:
        _check_class_names(class_names, classes=expected[0].shape[-1])
    if not is_chief(student.distribute_strategy):
        return path

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        new = pathlib.Path(folder, "new")
        network = student
        if is_functional(student):
            network = with_folded_classifier(strip_heads(student))
        _write(network, spec, outputs, class_names, new)
        loaded = tf.saved_model.load(str(new))
        difference = _verify(loaded, batches, expected, outputs, _tolerance(student))
        if class_names is not None:
            _verify_class_names(loaded, class_names)
        _put_in_place(new, path, earlier=pathlib.Path(folder, "earlier"))
    print(f"{path}: differs from the student by at most {difference:.2g} on random images")
    return path


def _check_path(path: pathlib.Path) -> None:
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not tf.saved_model.contains_saved_model(str(path)):
        raise ValueError(
            f"{path} exists and is no SavedModel, so it is not replaced: give a new path "
            "or remove it."
        )


def _image_spec(student: keras.Model) -> tf.TensorSpec:
    """Shape and dtype of a batch of images, the number of rows left free."""
    if not student.built:
        raise ValueError(
            f"The student {student.name!r} is not built: call it once on a batch of images before."
        )
    if is_functional(student):
        if len(student.inputs) != 1:
            raise ValueError(
                f"The student {student.name!r} takes {len(student.inputs)} inputs, but only a "
                "network that takes the images alone is exported."
            )
        shape, dtype = student.inputs[0].shape, student.inputs[0].dtype
    else:
        shape, dtype = (student.get_build_config() or {}).get("input_shape"), "float32"
    if not isinstance(shape, (tuple, list)) or any(
        isinstance(size, (tuple, list)) for size in shape
    ):
        raise ValueError(
            f"The student {student.name!r} does not tell the shape of its images: call it once on "
            "a batch of images before."
        )
    spec = tf.TensorSpec((None, *shape[1:]), "uint8", name="image")
    return spec if _takes_raw_images(student, spec) else tf.TensorSpec(spec.shape, dtype, "image")


def _takes_raw_images(student: keras.Model, spec: tf.TensorSpec) -> bool:
    """Whether images meet a layer that normalises them first, as far as that can be known."""
    if not is_functional(student):
        images = keras.Input(spec.shape[1:], dtype=spec.dtype.name)
        try:
            student = keras.Model(images, student.call(images))
        except Exception:  # what a user's class does may need more than symbols
            return False
    return bool(takes_raw_images(student))


def _random_images(spec: tf.TensorSpec, rows: int) -> tf.Tensor:
    generator = np.random.default_rng(rows)
    shape = [rows, *(64 if size is None else size for size in spec.shape[1:])]
    if spec.dtype.is_integer:
        return tf.constant(generator.integers(0, 256, shape), spec.dtype)
    return tf.cast(generator.normal(size=shape), spec.dtype)


def _logits(outputs: Any) -> tf.Tensor:
    """The logits among what a network returns, at least float32."""
    logits: Any = outputs.get("logits") if isinstance(outputs, dict) else outputs
    if not tf.is_tensor(logits) or logits.shape.rank != 2:
        raise ValueError(
            "The student must return a tensor (rows, classes) or a dict with one under 'logits', "
            f"got {sorted(outputs) if isinstance(outputs, dict) else outputs!r}."
        )
    return at_least_float32(logits, "logits")


def _answer(logits: tf.Tensor, outputs: str) -> np.ndarray:
    """What the exported function must give for these logits."""
    if are_probabilities(logits):
        raise ValueError(
            "The student ends with a softmax: build it without (classifier_activation=None, or no "
            "activation in its last Dense layer) and export with outputs='probabilities'."
        )
    return (tf.nn.softmax(logits) if outputs == "probabilities" else logits).numpy()


def _check_class_names(class_names: Sequence[str], classes: int) -> None:
    if isinstance(class_names, str | bytes) or not isinstance(class_names, Sequence):
        raise TypeError(
            f"`class_names` must be a sequence of strings, one a class, got {class_names!r}."
        )
    for name in class_names:
        if not isinstance(name, str) or not name.strip() or name.splitlines() != [name]:
            raise ValueError(
                "`class_names` must be strings of one line that are not empty, as each becomes a "
                f"line of a file, got {name!r}."
            )
    unwritable = [name for name in class_names if name.encode(errors="ignore").decode() != name]
    if unwritable:
        raise ValueError(
            "`class_names` must be text that UTF-8 can write, as they become a file, got "
            f"{unwritable[0]!r}: give another name in its place."
        )
    twice = [name for name in dict.fromkeys(class_names) if class_names.count(name) > 1]
    if twice:
        raise ValueError(f"`class_names` must be distinct, got {twice[0]!r} more than once.")
    if len(class_names) != classes:
        raise ValueError(
            f"`class_names` must be one a class of the student, so {classes}, got "
            f"{len(class_names)}: give those of the data that it was trained on."
        )


def _write(
    network: keras.Model,
    spec: tf.TensorSpec,
    outputs: str,
    class_names: Sequence[str] | None,
    folder: pathlib.Path,
) -> None:
    """Saves the inference function of `network` on plain variables, so without a trace of Keras."""
    module = tf.Module()
    if class_names is not None:
        file = folder.with_name(_CLASS_NAMES)  # beside the SavedModel, which takes a copy
        file.write_bytes(_lines(class_names))
        module.class_names = tf.saved_model.Asset(str(file))
    frozen = FrozenCopy(network)
    module.weights = [variable.value for variable in frozen.variables]

    @tf.function(input_signature=[spec], autograph=False)
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = _logits(frozen(image))
        return {outputs: tf.nn.softmax(logits) if outputs == "probabilities" else logits}

    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})


def _verify(
    loaded: Any,  # what `tf.saved_model.load` gives has no public type
    batches: list[tf.Tensor],
    expected: list[np.ndarray],
    outputs: str,
    tolerance: float,
) -> float:
    """The largest difference between SavedModel and student; raises if it is no rounding."""
    serve = loaded.signatures["serving_default"]
    got = np.concatenate([serve(image=batch)[outputs].numpy() for batch in batches])
    wanted = np.concatenate(expected)
    difference = float(np.max(np.abs(got - wanted)))
    limit = tolerance * float(np.max(np.abs(wanted)))
    if not difference <= limit:  # also refuses NaN
        raise RuntimeError(
            f"The SavedModel's {outputs} differ from the student's by {difference:.3g}, more than "
            f"rounding explains ({limit:.3g}); nothing was exported."
        )
    return difference


def _verify_class_names(loaded: Any, class_names: Sequence[str]) -> None:
    """Raises unless the SavedModel leads to the names as they were given."""
    path = pathlib.Path(os.fsdecode(loaded.class_names.asset_path.numpy()))
    if path.read_bytes() != _lines(class_names):
        raise RuntimeError(
            "The SavedModel's class names, read back, are not those given; nothing was exported."
        )


def _lines(class_names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in class_names).encode()


def _tolerance(student: keras.Model) -> float:
    """The relative difference that the coarsest precision in the network explains."""
    dtypes = {layer.compute_dtype for layer in inner_layers(student)} | {student.compute_dtype}
    return min(64 * max(_EPSILONS.get(dtype, 0.0) for dtype in dtypes), 0.1)


def _put_in_place(new: pathlib.Path, path: pathlib.Path, earlier: pathlib.Path) -> None:
    """Renames `new` to `path`; what stood there is moved to `earlier`, and back if that fails."""
    if not path.exists():
        new.rename(path)
        return
    path.rename(earlier)
    try:
        new.rename(path)
    except BaseException:  # an interrupt, too: the folder that holds `earlier` is removed
        earlier.rename(path)
        raise
