"""The SSKD training step against its bare parts, and against `keras.distillation`.

    python benchmarks/step.py --report report.json

Batch 64 (256 rows of 32x32), resident tensors, one process. The contestants of a pair take turns;
each figure is the median over the rounds after a warm-up. Ratios travel between machines, seconds
do not: run nothing else meanwhile.

    parts    the same teacher's forward (`tf.function`, `training=False`) plus the same student's
             forward, backward and update, alone on the same rows
    peer     `keras.distillation.Distiller`, logits and one feature map, on the same rows
"""

from __future__ import annotations

import json
import pathlib
import statistics
import time
from collections.abc import Callable

import keras
import tensorflow as tf
from absl import app, flags, logging
from keras.distillation import Distiller as PeerDistiller
from keras.distillation import FeatureDistillation, LogitsDistillation

import keras_ssd as ssd

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds of each pair.")
_REPORT = flags.DEFINE_string("report", "runs/bench/step.json", "Where the figures are written.")
_PAIRS = flags.DEFINE_list(
    "pairs", ["resnet56-resnet20", "resnet32x4-resnet8x4"], "Teacher-student pairs."
)

_IMAGES = 64
_VIEWS = 4
_CLASSES = 100
_INFO = {
    "num_classes": _CLASSES,
    "input_shape": (32, 32, 3),
    "mean": (0.5071, 0.4867, 0.4408),
    "std": (0.2675, 0.2565, 0.2761),
}


def main(_: list[str]) -> None:
    """Times every pair and prints a table."""
    logging.set_verbosity(logging.WARNING)
    figures = {}
    for pair in _PAIRS.value:
        teacher, student = pair.split("-")
        for precision in ("float32", "mixed_bfloat16"):
            setting = (teacher, student, precision)
            figures[f"{pair}, {precision}: SSKD / parts"] = _ratio(
                _sskd(*setting, fused=True), _parts(*setting, fused=True)
            )
            fused = precision == "mixed_bfloat16"  # ours at its best; in float32 both Keras' own
            batch_norm = "" if fused else ", both with Keras' batch norm"
            figures[f"{pair}, {precision}{batch_norm}: SSKD / peer"] = _ratio(
                _sskd(*setting, fused=fused), _peer(*setting, fused=False)
            )
    for name, figure in figures.items():
        print(f"{name:72} {figure['ratio']:.3f}  ({figure['seconds']:.3f} s)")
    report = {"tensorflow": tf.__version__, "keras": keras.__version__, "figures": figures}
    path = pathlib.Path(_REPORT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{path} written")


def _ratio(ours: Callable, other: Callable) -> dict[str, float]:
    """Medians of two functions that take turns, and of the ratio of each turn."""
    for function in (ours, other, ours, other):
        function()
    seconds = [(_seconds(ours), _seconds(other)) for _ in range(_ROUNDS.value)]
    ratios = sorted(a / b for a, b in seconds)
    return {
        "seconds": round(statistics.median(a for a, _ in seconds), 4),
        "other seconds": round(statistics.median(b for _, b in seconds), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio from": round(ratios[0], 3),
        "ratio to": round(ratios[-1], 3),
    }


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _networks(
    teacher: str, student: str, precision: str, fused: bool
) -> tuple[keras.Model, keras.Model]:
    keras.backend.clear_session()
    networks = [ssd.models.build(name, dtype=precision, **_INFO) for name in (teacher, student)]
    if not fused:
        networks = [_with_keras_batch_norm(network) for network in networks]
    return networks[0], networks[1]


def _with_keras_batch_norm(network: keras.Model) -> keras.Model:
    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.BatchNormalization.from_config(layer.get_config())
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(network, clone_function=clone)


def _images_and_labels() -> tuple[tf.Tensor, tf.Tensor]:
    images = tf.random.stateless_uniform([_IMAGES, 32, 32, 3], [0, 1], 0, 256, tf.int32)
    labels = tf.random.stateless_uniform([_IMAGES], [0, 2], 0, _CLASSES, tf.int32)
    return tf.cast(images, tf.uint8), labels


def _optimizer() -> keras.optimizers.Optimizer:
    return ssd.optimizers.SGD(0.001, momentum=0.9, weight_decay=5e-4)


def _sskd(teacher: str, student: str, precision: str, fused: bool) -> Callable:
    networks = [ssd.with_projection(n) for n in _networks(teacher, student, precision, fused)]
    distiller = ssd.Distiller(*networks, **ssd.presets.sskd())
    distiller.compile(optimizer=_optimizer())
    images, labels = _images_and_labels()
    step = tf.function(lambda: distiller.train_step((images, labels)))
    return lambda: step()["loss"].numpy()


def _parts(teacher: str, student: str, precision: str, fused: bool) -> Callable:
    networks = [ssd.with_projection(n) for n in _networks(teacher, student, precision, fused)]
    optimizer = _optimizer()
    optimizer.build(networks[1].trainable_variables)
    rows = tf.repeat(_images_and_labels()[0], _VIEWS, axis=0)

    @tf.function
    def forward() -> tf.Tensor:
        return networks[0](rows, training=False)["logits"]

    @tf.function
    def update() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = networks[1](rows, training=True)
            loss = tf.add_n([tf.reduce_mean(tensor**2) for tensor in outputs.values()])
        gradients = tape.gradient(loss, networks[1].trainable_variables)
        optimizer.apply(gradients, networks[1].trainable_variables)
        return loss

    return lambda: (forward().numpy(), update().numpy())


def _peer(teacher: str, student: str, precision: str, fused: bool) -> Callable:
    networks = _networks(teacher, student, precision, fused)
    distiller = PeerDistiller(
        teacher=networks[0],
        student=networks[1],
        distillation_losses=[
            LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence()),
            FeatureDistillation(teacher_layer_name="stage_3", student_layer_name="stage_3"),
        ],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(optimizer=_optimizer(), loss=loss)
    images, labels = (tf.repeat(part, _VIEWS, axis=0) for part in _images_and_labels())
    distiller.train_on_batch(images, labels)  # builds
    step = tf.function(lambda: distiller.train_step((images, labels)))
    return lambda: step()["loss"].numpy()


if __name__ == "__main__":
    app.run(main)
