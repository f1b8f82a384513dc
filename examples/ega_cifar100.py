"""EGA on CIFAR-100: a small student taught by the embedding graph of a self-supervised encoder.

The published setting (240 epochs, batch 64, CLIP ViT-B/32 at 224 pixels, student resnet8x4) is

    python examples/ega_cifar100.py --data_dir ~/tensorflow_datasets \
        --teacher hub:clip_vit_base_patch32 --teacher_image_size 224 --student resnet8x4

which gave 76.65 % (Ma et al. 2022, arXiv:2211.13264, main table). By default the teacher is an
encoder that is trained here without labels. `--data` takes any set of TensorFlow Datasets with
`image` and `label`, such as `stl10`, or a folder with one folder a class, as Tiny-ImageNet is made
into. `--smoke` tries the script in a minute on data that needs no download; `--help` lists all
settings.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from ega_teachers import SETTINGS, encoder
from phases import accuracy, faster_precision, report_students, train
from strategy import in_scope, strategy

import keras_ssd as ssd

_Objective = ssd.objectives.Objective

# From the labels of the training images to what is aligned, on nodes of one width. The weights of
# the paper's comparison are not known (its program has 1 for all), so these are the defaults of the
# objectives: those of CRD's benchmark, or of each method's own paper. FitNet's 100 there is for
# maps: on short nodes it diverges.
METHODS: dict[str, Callable[[np.ndarray], _Objective] | None] = {
    "labels_only": None,
    "ega": lambda _: ssd.objectives.EmbeddingGraph(),
    "fitnet": lambda _: _on_nodes(ssd.objectives.Hint, 1.0),
    "pkt": lambda _: _on_nodes(ssd.objectives.ProbabilisticTransfer),
    "rkd": lambda _: _on_nodes(ssd.objectives.RelationalKnowledge),
    "nce": lambda _: _on_nodes(ssd.objectives.NoiseContrastive),
    "ccl": lambda _: _on_nodes(ssd.objectives.CompositionalContrastive),
    "crd": lambda labels: _on_nodes(
        ssd.objectives.ContrastiveRepresentation,
        labels,
        width=_UNITS.value,
        negatives=min(_NEGATIVES.value, len(labels) // 2),
    ),
}

_DATA = flags.DEFINE_string("data", "cifar100", "A set of TensorFlow Datasets, or a folder.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
_FEW_SHOT = flags.DEFINE_float("few_shot", 1.0, "Share of the training images students see.", 0, 1)
_STUDENT = flags.DEFINE_enum("student", "resnet8x4", ssd.models.names(), "Network of the student.")
_METHODS = flags.DEFINE_list("methods", ["labels_only", "ega"], f"Some of {', '.join(METHODS)}.")
_UNITS = flags.DEFINE_integer("units", 256, "Width of the node embeddings.", 2)
_HEAD = flags.DEFINE_enum(
    "head", "joint", ["joint", "sequential"], "When the teacher's head learns: beside, or before."
)
_SHARED_VIEW = flags.DEFINE_bool("shared_view", False, "One crop for teacher and student.")
_NEGATIVES = flags.DEFINE_integer("negatives", 16384, "Negatives of CRD, at most half the images.")
_EPOCHS = flags.DEFINE_integer("epochs", 240, "Epochs of every student.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a step.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Students' learning rate at the start.")
_HEAD_RATE = flags.DEFINE_float("head_learning_rate", 0.01, "Rate of the teacher's head, constant.")
_PRECISION = flags.DEFINE_enum(
    "precision", "measured", ["measured", "float32", "mixed_bfloat16"], "Of all networks."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Students of each method.", 1)
_OUTPUT = flags.DEFINE_string("output", "runs/ega_cifar100", "Encoder, students and report.")
_VERBOSE = flags.DEFINE_integer("verbose", 1, "As in `keras.Model.fit`.")
_SMOKE = flags.DEFINE_bool("smoke", False, "One epoch of all methods with resnet8 on `digits`.")

_OWN_SETTINGS = (
    "data",
    "few_shot",
    "student",
    "units",
    "head",
    "shared_view",
    "negatives",
    "epochs",
    "batch_size",
    "learning_rate",
    "head_learning_rate",
    "seeds",
)


def main(_: list[str]) -> None:
    """Takes or trains the encoder, trains every student, and prints a table."""
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    strategy()
    if _SMOKE.value:
        _make_small()
    if unknown := [name for name in _METHODS.value if name not in METHODS]:
        raise SystemExit(f"--methods are some of {', '.join(METHODS)}, got {unknown[0]}.")
    arguments = {"validation": 0, "data_dir": _DATA_DIR.value}
    source = pathlib.Path(_DATA.value) if pathlib.Path(_DATA.value).is_dir() else _DATA.value
    whole = ssd.data.load(source, _BATCH_SIZE.value, **arguments)
    data = whole if _FEW_SHOT.value == 1 else whole.few_shot(_FEW_SHOT.value)
    precision = _precision(data)
    output = pathlib.Path(_OUTPUT.value)
    teacher = encoder(source, output, arguments, precision)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in _METHODS.value}
    for seed in range(_SEEDS.value):
        for name in _METHODS.value:
            result = _Student(name, teacher, data, precision, seed).run()
            results[name].append(result)
            print(f"{name}, seed {seed}: {result}", flush=True)
    settings = {name: flags.FLAGS[name].value for name in (*_OWN_SETTINGS, *SETTINGS)}
    path, seconds = pathlib.Path(_OUTPUT.value, "report.json"), time.perf_counter() - start
    report_students(path, results, settings, data.info, precision, seconds)


@dataclasses.dataclass(frozen=True)
class _Student:
    """One student by one method."""

    method: str
    teacher: ssd.FrozenTeacher
    data: ssd.data.Splits
    precision: str
    seed: int

    def run(self) -> dict[str, float]:
        """Trains it; accuracies on the test images, after the last epoch."""
        start = time.perf_counter()
        keras.utils.set_random_seed(self.seed)
        info = self.data.info
        with strategy().scope():
            student = ssd.models.build(_STUDENT.value, info, dtype=self.precision)
        if METHODS[self.method] is None:
            with strategy().scope():
                distiller = ssd.Distiller(
                    student=student, seed=self.seed, **ssd.presets.labels_only()
                )
            self._train(distiller, self.data.train)
            result = {"test": accuracy(student, self.data.test)}
        else:
            distiller = self._with_teacher(student)
            joint = {} if _HEAD.value == "sequential" else {"teacher_optimizer": _head_optimizer()}
            data = self.data.with_index() if self.method == "crd" else self.data
            self._train(distiller, data.train, **joint)
            result = {
                "test": accuracy(distiller.student, self.data.test),
                "teacher": self._teachers_accuracy(distiller.teacher_head),
            }
        if all(np.isfinite(weight).all() for weight in distiller.student.get_weights()):
            path = pathlib.Path(_OUTPUT.value, f"{self.method}_{self.seed}")
            ssd.export_student(distiller, path)
        else:
            print(f"{self.method}, seed {self.seed}: the student diverged, so it is not exported")
        return {**result, "seconds": round(time.perf_counter() - start)}

    @in_scope
    def _with_teacher(self, student: keras.Model) -> ssd.Distiller:
        width = self.teacher.outputs["embedding"].shape[-1]
        classes = self.data.info.num_classes
        head = ssd.node_embedding_head(width, classes, units=_UNITS.value)
        if _HEAD.value == "sequential":
            self._train_first(head)
        preset = ssd.presets.ega(
            shared_view=_SHARED_VIEW.value, train_teacher_head=_HEAD.value == "joint"
        )
        aligned = METHODS[self.method](self.data.labels)
        preset["objectives"] = [ssd.objectives.HardLabels(), aligned]
        network = ssd.with_node_embedding(student, units=_UNITS.value)
        return ssd.Distiller(self.teacher, network, teacher_head=head, seed=self.seed, **preset)

    def _train_first(self, head: keras.Model) -> None:
        """The head alone, on embeddings of the images as they are, computed once."""
        vectors, labels = _embedded(self.teacher, self.data.train)
        classifier = keras.Model(head.input, head.output["logits"])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        classifier.compile(_head_optimizer(), loss, metrics=["accuracy"])
        classifier.fit(vectors, labels, _BATCH_SIZE.value, epochs=_EPOCHS.value, verbose=0)
        head.trainable = False  # also for methods that would train it

    def _teachers_accuracy(self, head: keras.Model) -> float:
        vectors, labels = _embedded(self.teacher, self.data.test)
        return float(np.mean(head.predict(vectors, verbose=0)["logits"].argmax(1) == labels))

    def _train(self, distiller: ssd.Distiller, images: tf.data.Dataset, **options: Any) -> None:
        train(
            distiller,
            images,
            epochs=_EPOCHS.value,
            steps_per_epoch=len(images),
            learning_rate=_LEARNING_RATE.value,
            verbose=_VERBOSE.value,
            **options,
        )


def _on_nodes(objective: Callable[..., _Objective], *args: Any, **options: Any) -> _Objective:
    return objective(*args, teacher_output="node", student_output="node", **options)


@in_scope
def _head_optimizer() -> keras.optimizers.Optimizer:
    return ssd.optimizers.SGD(_HEAD_RATE.value, momentum=0.9, weight_decay=5e-4)


def _embedded(
    teacher: ssd.FrozenTeacher, dataset: tf.data.Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's vectors of all images, as they are, and their labels."""
    embed = tf.function(lambda images: teacher(images)["embedding"], reduce_retracing=True)
    pairs = [(embed(images).numpy(), labels.numpy()) for images, labels in dataset]
    vectors, labels = zip(*pairs, strict=True)
    return np.concatenate(vectors), np.concatenate(labels)


def _precision(data: ssd.data.Splits) -> str:
    if _PRECISION.value != "measured":
        return _PRECISION.value
    return faster_precision(_STUDENT.value, data.info, _BATCH_SIZE.value)


def _make_small() -> None:
    small = {
        "data": "digits",
        "teacher": "contrastive:resnet8",
        "student": "resnet8",
        "methods": list(METHODS),
        "units": 16,
        "epochs": 1,
        "teacher_epochs": 1,
    }
    for name, value in small.items():
        setattr(flags.FLAGS, name, value)


if __name__ == "__main__":
    app.run(main)
