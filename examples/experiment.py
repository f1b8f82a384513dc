"""What the CIFAR-100 scripts share: flags, the teacher and its heads, students, the report."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
from absl import flags, logging
from phases import (
    Measured,
    accuracy,
    faster_precision,
    frozen,
    keep_settings,
    report_students,
    train,
)
from strategy import in_scope, strategy

import keras_ssd as ssd

_TEACHER = flags.DEFINE_enum("teacher", "resnet56", ssd.models.names(), "Network of the teacher.")
_CHECKPOINT = flags.DEFINE_string(
    "teacher_checkpoint", None, "The teacher's weights (.pth, .safetensors); trained here if none."
)
_HEADS = flags.DEFINE_string(
    "teacher_with_heads", None, "`teacher_with_heads.keras` of an earlier run, to train no teacher."
)
_STUDENT = flags.DEFINE_enum("student", "resnet20", ssd.models.names(), "Network of the student.")
_METHODS = flags.DEFINE_list("methods", None, "Which students to train; all of the script if none.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
_VALIDATION = flags.DEFINE_float("validation", 0.0, "Share of the training images held out.")
_FEW_SHOT = flags.DEFINE_float("few_shot", 1.0, "Share of the training images students see.", 0, 1)
_NOISE = flags.DEFINE_float(
    "label_noise", 0.0, "Share of the students' labels that are wrong.", 0, 1
)
_TEACHER_EPOCHS = flags.DEFINE_integer("teacher_epochs", 240, "Epochs of the teacher.", 1)
_HEAD_EPOCHS = flags.DEFINE_integer("head_epochs", 60, "Epochs of its heads alone.", 1)
_EPOCHS = flags.DEFINE_integer("epochs", 240, "Epochs of every student.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a step.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Students' learning rate at the start.")
_NESTEROV = flags.DEFINE_bool("nesterov", True, "Nesterov momentum.")
_CROP = flags.DEFINE_enum(
    "crop", None, ["each", "shared"], "Crops of turned images; those of each method if none."
)
_STORED = flags.DEFINE_integer(
    "stored_augmentations", 0, "Of each image, for a teacher that runs once; 0: in each step.", 0
)
_STEM_STRIDE = flags.DEFINE_integer(
    "stem_stride", 2, "Stride of MobileNetV2's stem: 2 in SSKD and CRD, 1 in HSAKD."
)
_PRECISION = flags.DEFINE_enum(
    "precision", "measured", ["measured", "float32", "mixed_bfloat16"], "Of all networks."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Students of each method.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of report, teacher and students.")
_VERBOSE = flags.DEFINE_integer("verbose", 1, "As in `keras.Model.fit`.")
_SMOKE = flags.DEFINE_bool("smoke", False, "One epoch of resnet14 and resnet8 on `digits`.")

_SETTINGS = (
    "teacher",
    "teacher_checkpoint",
    "teacher_with_heads",
    "student",
    "validation",
    "few_shot",
    "label_noise",
    "teacher_epochs",
    "head_epochs",
    "epochs",
    "batch_size",
    "learning_rate",
    "nesterov",
    "crop",
    "stored_augmentations",
    "stem_stride",
    "seeds",
)
_OF_STUDENTS = ("student", "epochs", "seeds")  # what decides nothing of a stored teacher


@dataclasses.dataclass(frozen=True)
class Method:
    """How a student is trained.

    Args:
        preset: Of `keras_ssd.presets`.
        with_heads: From the plain student to the network that is trained.
    """

    preset: Callable[..., dict[str, Any]]
    with_heads: Callable[[keras.Model], keras.Model] = lambda model: model

    def distiller(
        self, teacher: keras.Model | ssd.FrozenTeacher, student: keras.Model, **options: Any
    ) -> ssd.Distiller:
        """What trains a plain student, with the teacher if the method reads one."""
        network = self.with_heads(student)
        teacher = teacher if self.reads_teacher else None
        return ssd.Distiller(teacher, network, **_with_crop(self.preset), **options)

    @property
    def reads_teacher(self) -> bool:
        """Whether a term of the loss reads the teacher."""
        return any(objective.teacher_outputs for objective in self.preset()["objectives"])

    def stored(self, teacher: ssd.FrozenTeacher, data: ssd.data.Splits) -> ssd.data.Splits:
        """The images with what the teacher says of them, where it is to run once."""
        if not (_STORED.value and self.reads_teacher):
            return data
        return ssd.data.cached_teacher(
            teacher,
            data,
            pathlib.Path(_OUTPUT.value, f"stored_{self.preset.__name__}"),
            views=_with_crop(self.preset)["views"],
            augmentations=_STORED.value,
            batch_size=_BATCH_SIZE.value,
            verbose=min(_VERBOSE.value, 1),
        )


def with_all_heads(model: keras.Model, **options: Any) -> keras.Model:
    """A network with auxiliary classifiers and a projection head."""
    return ssd.with_projection(ssd.with_auxiliary_classifiers(model, **options))


METHODS = {
    "labels_only": Method(ssd.presets.labels_only),
    "kd": Method(ssd.presets.kd),
    "sskd": Method(ssd.presets.sskd, ssd.with_projection),
    "hsakd": Method(ssd.presets.hsakd, ssd.with_auxiliary_classifiers),
    "combined": Method(ssd.presets.combined, with_all_heads),
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of the teacher's training.

    Args:
        preset: Of `keras_ssd.presets`.
        with_heads: From the teacher so far to the network that is trained.
        drops: When the rate drops, as shares of the epochs.
        heads_alone: Whether the network itself is frozen (`--head_epochs`) or is trained with what
            is on it (`--teacher_epochs`).
    """

    preset: Callable[..., dict[str, Any]]
    with_heads: Callable[[keras.Model], keras.Model]
    drops: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240)
    heads_alone: bool = True


def run(methods: tuple[str, ...], phases: tuple[Phase, ...]) -> None:
    """Trains a teacher and students by several methods on the same images, and prints a table.

    Args:
        methods: Names in `METHODS`.
        phases: What follows once the teacher is trained on labels, or read from its file; where the
            first phase trains the teacher, too, there is no such beginning.
    """
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    strategy()
    chosen = _checked_flags(methods, phases)
    if _SMOKE.value:
        flags.FLAGS.teacher, flags.FLAGS.student = "resnet14", "resnet8"
        for name in ("teacher_epochs", "head_epochs", "epochs"):
            setattr(flags.FLAGS, name, 1)
    if _STORED.value:
        deciding = [*(name for name in _SETTINGS if name not in _OF_STUDENTS), "precision"]
        keep_settings(pathlib.Path(_OUTPUT.value, "stored_settings.json"), deciding)
    data = ssd.data.load(
        "digits" if _SMOKE.value else "cifar100",
        _BATCH_SIZE.value,
        validation=_VALIDATION.value,
        data_dir=_DATA_DIR.value,
    )
    _check_heads(chosen, phases, data)
    trained_here = [_STUDENT.value] if _HEADS.value else [_TEACHER.value, _STUDENT.value]
    # A stored teacher must be the same in a second run, so that what was measured is kept.
    measured = Measured(pathlib.Path(_OUTPUT.value, "measured.json") if _STORED.value else None)
    precision = {
        name: measured.get(name, functools.partial(_precision, name, data)) for name in trained_here
    }
    teacher = _teacher(phases, data, precision)
    top_1 = accuracy(ssd.strip_heads(teacher), data.test)
    print(f"teacher: {top_1:.4f} top-1 on {data.info.counts['test']} images", flush=True)
    frozen_teacher, precision["frozen teacher"] = _frozen(teacher, data, measured)
    data = data if _FEW_SHOT.value == 1 else data.few_shot(_FEW_SHOT.value)
    data = data if _NOISE.value == 0 else data.label_noise(_NOISE.value)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for seed in range(_SEEDS.value):
        for name in chosen:
            result = _student(name, frozen_teacher, data, precision[_STUDENT.value], seed)
            results[name].append(result)
            print(f"{name}, seed {seed}: {result}", flush=True)
    settings = {name: flags.FLAGS[name].value for name in _SETTINGS}
    path, seconds = pathlib.Path(_OUTPUT.value, "report.json"), time.perf_counter() - start
    reported = {"teacher": top_1, **results}
    report_students(path, reported, settings, data.info, precision, seconds)


def _checked_flags(methods: tuple[str, ...], phases: tuple[Phase, ...]) -> list[str]:
    """The methods that are asked for; refuses flags that would be ignored."""
    chosen = _METHODS.value or list(methods)
    if unknown := [name for name in chosen if name not in methods]:
        raise SystemExit(f"--methods are some of {', '.join(methods)}, got {unknown[0]}.")
    if _CHECKPOINT.value is not None and _HEADS.value is not None:
        raise SystemExit("Give --teacher_checkpoint or --teacher_with_heads, not both.")
    if not phases[0].heads_alone and (_CHECKPOINT.value or _HEADS.value):
        raise SystemExit("--joint trains from scratch: give no file of a teacher with it.")
    for path in filter(None, (_CHECKPOINT.value, _HEADS.value)):
        if not pathlib.Path(path).is_file():
            raise SystemExit(f"There is no file {path}.")
    return chosen


@in_scope
def _check_heads(methods: list[str], phases: tuple[Phase, ...], data: ssd.data.Splits) -> None:
    """Refuses networks that do not fit before the teacher has been trained for long."""
    if _HEADS.value is not None:
        teacher = keras.models.load_model(_HEADS.value)
    else:
        teacher = _built(_TEACHER.value, data, "float32")
        for phase in phases:
            teacher = phase.with_heads(teacher)
    for name in methods:
        METHODS[name].distiller(teacher, _built(_STUDENT.value, data, "float32"))


@in_scope
def _teacher(
    phases: tuple[Phase, ...], data: ssd.data.Splits, precision: Mapping[str, str]
) -> keras.Model:
    """The trained teacher with trained heads, saved."""
    if _HEADS.value is not None:
        return keras.models.load_model(_HEADS.value)
    keras.utils.set_random_seed(0)
    teacher = _built(_TEACHER.value, data, precision[_TEACHER.value])
    if _CHECKPOINT.value is not None:
        ssd.checkpoints.load_torch_weights(teacher, _CHECKPOINT.value)
    elif phases[0].heads_alone:
        distiller = ssd.Distiller(student=teacher, **ssd.presets.labels_only())
        _train(distiller, data, epochs=_TEACHER_EPOCHS.value)
    for phase in phases:
        teacher = phase.with_heads(teacher)
        distiller = ssd.Distiller(student=teacher, **_with_crop(phase.preset))
        epochs = _HEAD_EPOCHS.value if phase.heads_alone else _TEACHER_EPOCHS.value
        _train(distiller, data, epochs=epochs, drops=phase.drops, evaluate_views=True)
    path = pathlib.Path(_OUTPUT.value, "teacher_with_heads.keras")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ssd.distribution.chief_path(path) as own:
        teacher.save(own)
    return teacher


def _built(name: str, data: ssd.data.Splits, precision: str) -> keras.Model:
    stride = {"stem_stride": _STEM_STRIDE.value} if name == "mobilenet_v2" else {}
    return ssd.models.build(name, data.info, dtype=precision, **stride)


def _precision(network: str, data: ssd.data.Splits) -> str:
    if _PRECISION.value != "measured":
        return _PRECISION.value
    return faster_precision(network, data.info, 4 * _BATCH_SIZE.value)


@in_scope
def _frozen(
    teacher: keras.Model, data: ssd.data.Splits, measured: Measured
) -> tuple[ssd.FrozenTeacher, str]:
    if _PRECISION.value != "measured":
        dtype = None if _PRECISION.value == "float32" else "bfloat16"
        return ssd.freeze(teacher, dtype=dtype), _PRECISION.value
    images = next(iter(data.train.repeat().unbatch().batch(4 * _BATCH_SIZE.value)))[0]
    dtype = measured.get("frozen teacher", lambda: frozen(teacher, images)[1])
    return ssd.freeze(teacher, dtype=None if dtype == "as it is" else dtype), dtype


def _with_crop(preset: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A preset, with `--crop` where its views are turned."""
    turns = preset()["views"].num_views > 1
    return preset(crop=_CROP.value) if turns and _CROP.value is not None else preset()


def _student(
    name: str, teacher: ssd.FrozenTeacher, data: ssd.data.Splits, precision: str, seed: int
) -> dict[str, float]:
    """Trains, exports and measures a student."""
    data = METHODS[name].stored(teacher, data)
    start = time.perf_counter()
    keras.utils.set_random_seed(seed)  # every method starts from the same weights
    with strategy().scope():
        student = _built(_STUDENT.value, data, precision)
        distiller = METHODS[name].distiller(teacher, student, seed=seed)
    history = _train(
        distiller, data, epochs=_EPOCHS.value, learning_rate=_LEARNING_RATE.value
    ).history
    ssd.export_student(distiller, pathlib.Path(_OUTPUT.value, f"{name}_{seed}"))
    result = {"test": accuracy(student, data.test)}
    if data.validation is not None:
        held_out = history["val_accuracy"]
        best = max(range(len(held_out)), key=held_out.__getitem__)
        result |= {"best_held_out": held_out[best], "best_epoch": best + 1}
    return {**result, "seconds": round(time.perf_counter() - start)}


def _train(
    distiller: ssd.Distiller, data: ssd.data.Splits, **options: Any
) -> keras.callbacks.History:
    return train(
        distiller,
        data.train,
        steps_per_epoch=len(data.train),
        verbose=_VERBOSE.value,
        nesterov=_NESTEROV.value,
        validation_data=data.validation,
        **options,
    )
