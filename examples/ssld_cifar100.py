"""SSLD on CIFAR-100: distillation without labels, on mined images, in two or three stages.

    python examples/ssld_cifar100.py --data_dir ~/tensorflow_datasets \
        --teacher resnet56 --teacher_checkpoint resnet56.pth --student resnet20

The teacher scores the unlabeled images of `--pools` (sets of TensorFlow Datasets, or folders in
this one or in `--data_dir`), the best `--k` of each class that are in no test set are kept, and the
student learns what the teacher says of them and of the target set; then of the target set alone, at
a hundredth of the rate; then, with `--fix_epochs`, its classifier alone at a larger input size. No
label is used but to measure accuracies. The same command given again goes on where a run was
killed.

Lists of `--losses`, `--images` and `--teacher_batch_norms` make a table of all combinations.
`--smoke` tries the script in a minute on data that needs no download; `--help` lists all settings.
"""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from absl import app, flags, logging
from phases import (
    Measured,
    accuracy,
    faster_precision,
    frozen,
    keep_settings,
    mean_and_spread,
    train,
    write_report,
)
from strategy import in_scope, is_chief, strategy

import keras_ssd as ssd

LOSSES: Mapping[str, Callable[[], ssd.objectives.Objective]] = {
    "symmetric_kl": ssd.objectives.SymmetricSoftLabels,
    "kl": lambda: ssd.objectives.SoftLabels(1.0),
    "jensen_shannon": ssd.objectives.JensenShannon,
    "soft_cross_entropy": ssd.objectives.SoftCrossEntropy,
}
IMAGES = ("target", "mined")

_TEACHER = flags.DEFINE_enum("teacher", "resnet56", ssd.models.names(), "Network of the teacher.")
_CHECKPOINT = flags.DEFINE_string(
    "teacher_checkpoint", None, "The teacher's weights (.pth, .safetensors); trained here if none."
)
_TEACHER_EPOCHS = flags.DEFINE_integer("teacher_epochs", 240, "Epochs of the teacher.", 1)
_STUDENT = flags.DEFINE_enum("student", "resnet20", ssd.models.names(), "Network of the student.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
_FEW_SHOT = flags.DEFINE_float("few_shot", 1.0, "Share of the training images students see.", 0, 1)
_POOLS = flags.DEFINE_list("pools", ["tiny_imagenet32", "cifar10"], "Where to mine.")
_DETECTORS = flags.DEFINE_list(
    "detectors", ["dhash", "embedding"], "What looks for test images in the pools."
)
_K = flags.DEFINE_integer("k", 1000, "Images kept of each class.", 1)
_MIN_SCORE = flags.DEFINE_float("min_score", 0.0, "The lowest score that is kept.", 0, 1)
_SHARE = flags.DEFINE_float("share", None, "Share of mined images in a batch; as they are if none.")
_LOSSES = flags.DEFINE_list("losses", ["symmetric_kl"], f"Some of {', '.join(LOSSES)}.")
_IMAGES = flags.DEFINE_list("images", ["mined"], f"What stage 1 sees: {' or '.join(IMAGES)}.")
_BATCH_NORMS = flags.DEFINE_list(
    "teacher_batch_norms", ["inference"], "Some of inference, batch, batch_update."
)
_EPOCHS = flags.DEFINE_integer("epochs", 360, "Stage 1, in passes over the target set.", 1)
_TARGET_EPOCHS = flags.DEFINE_integer("target_epochs", 30, "Epochs of stage 2; 0 for none.", 0)
_FIX_EPOCHS = flags.DEFINE_integer("fix_epochs", 0, "Epochs at a larger size; 0 for none.", 0)
_FIX_RATE = flags.DEFINE_float("fix_rate", 1e-4, "Rate of that stage, as a share of stage 1's.")
_FIX_SIZE = flags.DEFINE_integer("fix_size", 40, "Height and width of that stage.", 1)
_WARM_UP = flags.DEFINE_integer("warm_up", 5, "Epochs in which the rate of stage 1 rises.", 0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a step.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Rate at the start of stage 1.")
_PRECISION = flags.DEFINE_enum(
    "precision", "measured", ["measured", "float32", "mixed_bfloat16"], "Of the student."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Students of each kind.", 1)
_OUTPUT = flags.DEFINE_string("output", "runs/ssld_cifar100", "Folder of all that is made.")
_VERBOSE = flags.DEFINE_integer("verbose", 1, "As in `keras.Model.fit`.")
_SMOKE = flags.DEFINE_bool("smoke", False, "A few steps of resnet14 and resnet8 on `digits`.")
_SETTINGS = (
    "teacher",
    "teacher_checkpoint",
    "teacher_epochs",
    "student",
    "few_shot",
    "pools",
    "detectors",
    "k",
    "min_score",
    "share",
    "losses",
    "images",
    "teacher_batch_norms",
    "epochs",
    "target_epochs",
    "fix_epochs",
    "fix_rate",
    "fix_size",
    "warm_up",
    "batch_size",
    "learning_rate",
    "precision",
    "smoke",
)


def main(_: list[str]) -> None:
    """Mines, trains every student through its stages, and prints a table."""
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    strategy()
    if _SMOKE.value:
        _make_small()
    kinds = _kinds()
    output = pathlib.Path(_OUTPUT.value)
    keep_settings(output / "settings.json", _SETTINGS)
    whole = ssd.data.load(
        "digits" if _SMOKE.value else "cifar100",
        _BATCH_SIZE.value,
        validation=0,
        data_dir=_DATA_DIR.value,
    )
    data = whole if _FEW_SHOT.value == 1 else whole.few_shot(_FEW_SHOT.value)
    teacher = _teacher(whole, output / "teacher.keras")
    top_1 = accuracy(teacher, data.test)
    print(f"teacher: {top_1:.4f} top-1 on {data.info.counts['test']} images", flush=True)
    streams = {"target": data}
    if "mined" in _IMAGES.value:
        streams["mined"] = data.with_unlabeled(_mined(teacher, whole, output), share=_SHARE.value)
    measured = Measured(output / "measured.json")
    precision = measured.get("student", lambda: _precision(data))
    results: dict[str, list[dict[str, float]]] = {}
    for seed, (loss, images, batch_norm) in itertools.product(range(_SEEDS.value), kinds):
        name = f"{loss}, {images}, {batch_norm}"
        frozen_teacher = _frozen(teacher, batch_norm, data, measured)
        folder = output / f"{loss}_{images}_{batch_norm}_{seed}"
        stages = _Stages(frozen_teacher, LOSSES[loss], data, folder, seed)
        result = stages.run(streams[images].train, precision)
        results.setdefault(name, []).append(result)
        print(f"{name}, seed {seed}: {result}", flush=True)
    _report({"teacher": top_1, **results}, data.info, precision, time.perf_counter() - start)


class _Stages:
    """The stages of one student.

    Args:
        teacher: The frozen teacher.
        loss: Makes the objective, the same in all stages.
        data: The target set.
        folder: Where backups and the student after each stage are kept.
        seed: Of weights and crops; the order of the images is that of seed 0.
    """

    def __init__(
        self,
        teacher: ssd.FrozenTeacher,
        loss: Callable[[], ssd.objectives.Objective],
        data: ssd.data.Splits,
        folder: pathlib.Path,
        seed: int,
    ) -> None:
        self._teacher, self._loss, self._data = teacher, loss, data
        self._folder, self._seed = folder, seed

    def run(self, images: tf.data.Dataset, precision: str) -> dict[str, float]:
        """Trains a student on `images` (stage 1), then further, and returns its accuracies."""
        start = time.perf_counter()
        keras.utils.set_random_seed(self._seed)
        with strategy().scope():
            student = ssd.models.build(_STUDENT.value, self._data.info, dtype=precision)
        passes, result = len(self._data.train), {}
        steps, warm_up = _EPOCHS.value * passes, _WARM_UP.value * passes
        result["steps"] = self._train("stage_1", student, images, steps, 1.0, warm_up)
        result["stage_1"] = accuracy(student, self._data.test)
        if _TARGET_EPOCHS.value:
            steps = _TARGET_EPOCHS.value * passes
            self._train("stage_2", student, self._data.train, steps, 0.01)
            result["stage_2"] = accuracy(student, self._data.test)
        if _FIX_EPOCHS.value:
            result |= self._fix(student, _FIX_EPOCHS.value * passes)
        return {name: round(value, 4) for name, value in result.items()} | {
            "seconds": round(time.perf_counter() - start)
        }

    def _fix(self, student: keras.Model, steps: int) -> dict[str, float]:
        """The classifier alone at a larger size, on images prepared as those of the test.

        The teacher, at its own size, is in inference mode and full precision here.
        """
        size = (_FIX_SIZE.value, _FIX_SIZE.value)
        with strategy().scope():
            student = ssd.with_frozen_backbone(student, image_size=size)
        test = self._data.test.map(_resized(size))
        result = {"larger": accuracy(student, test)}
        images = self._data.train.map(_resized(size))
        smaller = keras.layers.Resizing(*self._data.info.input_shape[:2])
        with strategy().scope():
            teacher = ssd.freeze(self._teacher.model, preprocessing=smaller)
        views, rate = ssd.views.Plain(), _FIX_RATE.value
        self._train("fix", student, images, steps, rate, teacher=teacher, views=views)
        return result | {"fix": accuracy(student, test)}

    def _train(
        self,
        stage: str,
        student: keras.Model,
        images: tf.data.Dataset,
        steps: int,
        rate: float,
        warm_up: int = 0,
        *,
        teacher: ssd.FrozenTeacher | None = None,
        views: ssd.views.Plain | None = None,
    ) -> int:
        """A stage with an optimizer of its own; the number of its steps."""
        preset = ssd.presets.ssld()
        with strategy().scope():
            distiller = ssd.Distiller(
                teacher or self._teacher,
                student,
                objectives=[self._loss()],
                views=views or preset["views"],
                seed=self._seed,
            )
        epochs = max(1, round(steps / len(images)))
        if abs(epochs * len(images) / steps - 1) > 0.01:
            logging.warning(
                "%s: %d steps in place of %d, as epochs are whole: take more --epochs, or a "
                "--share that divides them, to compare runs.",
                stage,
                epochs * len(images),
                steps,
            )
        steps = epochs * len(images)
        warm_up = min(warm_up, steps // 4)
        schedule = ssd.schedules.cosine(
            rate * _LEARNING_RATE.value, epochs=steps - warm_up, steps_per_epoch=1
        )
        if warm_up:
            schedule = ssd.schedules.warm_up(schedule, epochs=warm_up, steps_per_epoch=1)
        with strategy().scope():
            optimizer = ssd.optimizers.SGD(schedule, momentum=0.9, weight_decay=5e-4)
        distiller.compile(optimizer, metrics=["accuracy"])
        backup = ssd.callbacks.Backup(self._folder / stage)
        distiller.fit(images, epochs=epochs, callbacks=[backup], verbose=_VERBOSE.value)
        with ssd.distribution.chief_path(self._folder / f"{stage}.keras", strategy()) as path:
            student.save(path)
        ssd.export_student(distiller, self._folder / f"{stage}_student")
        return steps


def _kinds() -> list[tuple[str, str, str]]:
    """All combinations that are asked for; refuses unknown ones."""
    known = {
        "losses": (_LOSSES.value, tuple(LOSSES)),
        "images": (_IMAGES.value, IMAGES),
        "teacher_batch_norms": (_BATCH_NORMS.value, ("inference", "batch", "batch_update")),
    }
    for name, (given, names) in known.items():
        if unknown := [value for value in given if value not in names]:
            raise SystemExit(f"--{name} are some of {', '.join(names)}, got {unknown[0]}.")
    return list(itertools.product(*(given for given, _ in known.values())))


@in_scope
def _teacher(data: ssd.data.Splits, path: pathlib.Path) -> keras.Model:
    """The teacher, of its file, or trained on the labels of all training images."""
    if path.exists():
        return keras.models.load_model(path)
    keras.utils.set_random_seed(0)
    teacher = ssd.models.build(_TEACHER.value, data.info)
    if _CHECKPOINT.value is not None:
        ssd.checkpoints.load_torch_weights(teacher, _CHECKPOINT.value)
    else:
        train(
            ssd.Distiller(student=teacher, **ssd.presets.labels_only()),
            data.train,
            epochs=_TEACHER_EPOCHS.value,
            steps_per_epoch=len(data.train),
            callbacks=[ssd.callbacks.Backup(path.with_suffix(""))],
            verbose=_VERBOSE.value,
        )
    with ssd.distribution.chief_path(path) as own:
        partial = own.with_name("partial.keras")  # a kill must leave no half of a teacher
        teacher.save(partial)
        partial.replace(own)
    return teacher


def _mined(teacher: keras.Model, data: ssd.data.Splits, output: pathlib.Path) -> ssd.data.Splits:
    """The images of the pools that the teacher is surest of."""
    mining = ssd.data.mining
    pools = [_smoke_pool(data, output / "pool")] if _SMOKE.value else _POOLS.value
    folders = []
    for number, name in enumerate(pools):
        is_folder = pathlib.Path(name).is_dir()
        pool = mining.open_pool(name, data_dir=None if is_folder else _DATA_DIR.value)
        folders.append(output / f"scores_{number}")
        mining.score(
            teacher,
            pool,
            folders[-1],
            target=data,
            detectors=_DETECTORS.value,
            verbose=min(_VERBOSE.value, 1),
        )
    worker = "" if is_chief() else f"_of_worker_{strategy().cluster_resolver.task_id}"
    manifest = output / f"mined{worker}.jsonl"  # all alike: none waits for another one's file
    mining.select(folders, manifest, k=_K.value, min_score=_MIN_SCORE.value)
    return ssd.data.load(manifest, _BATCH_SIZE.value, data_dir=_DATA_DIR.value)


@in_scope
def _frozen(
    teacher: keras.Model, batch_norm: str, data: ssd.data.Splits, measured: Measured
) -> ssd.FrozenTeacher:
    """The frozen teacher in the precision that is faster here."""
    images = tf.zeros([_BATCH_SIZE.value, *data.info.input_shape], tf.uint8)
    dtype = measured.get(
        f"teacher, {batch_norm}", lambda: frozen(teacher, images, batch_norm=batch_norm)[1]
    )
    return ssd.freeze(teacher, dtype=None if dtype == "as it is" else dtype, batch_norm=batch_norm)


def _precision(data: ssd.data.Splits) -> str:
    if _PRECISION.value != "measured":
        return _PRECISION.value
    return faster_precision(_STUDENT.value, data.info, rows=_BATCH_SIZE.value)


def _resized(size: tuple[int, int]) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]:
    def resized(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        larger = tf.image.resize(images, size, antialias=True)
        return tf.cast(tf.round(larger), tf.uint8), labels

    return resized


def _make_small() -> None:
    """Settings with which everything runs once."""
    small = {
        "teacher": "resnet14",
        "student": "resnet8",
        "teacher_epochs": 1,
        "few_shot": 0.5,
        "epochs": 2,
        "target_epochs": 1,
        "fix_epochs": 1,
        "fix_size": 24,
        "k": 200,
        "detectors": [],  # digits look alike
    }
    for name, value in small.items():
        setattr(flags.FLAGS, name, value)


def _smoke_pool(data: ssd.data.Splits, folder: pathlib.Path) -> pathlib.Path:
    """A folder of some of the digits as image files."""
    folder.mkdir(parents=True, exist_ok=True)
    images = next(iter(data.train.unbatch().batch(300).take(1)))[0]
    for number, image in enumerate(images):
        (folder / f"{number:03d}.png").write_bytes(tf.io.encode_png(image).numpy())
    return folder


def _report(
    results: Mapping[str, Any], info: ssd.data.DatasetInfo, precision: str, seconds: float
) -> None:
    """Prints means and spreads, and writes all numbers with the settings."""
    last = "fix" if _FIX_EPOCHS.value else "stage_2" if _TARGET_EPOCHS.value else "stage_1"
    for name, students in results.items():
        if isinstance(students, list):
            mean, spread = mean_and_spread([student[last] for student in students])
            print(f"{name:40} {mean:.2%} +- {spread:.2%} ({len(students)} seeds)")
    settings = {name: flags.FLAGS[name].value for name in _SETTINGS}
    write_report(
        pathlib.Path(_OUTPUT.value, "report.json"),
        {
            "results": results,
            "settings": settings,
            "data": {"counts": dict(info.counts), "fingerprint": info.fingerprint},
            "precision": precision,
            "seconds": round(seconds),
        },
    )


if __name__ == "__main__":
    app.run(main)
