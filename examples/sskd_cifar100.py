"""SSKD on CIFAR-100 in three phases, beside the same student without a teacher and with plain KD.

The published setting (240 epochs, batch 64, all 50,000 training images) is the default:

    python examples/sskd_cifar100.py --data_dir ~/tensorflow_datasets \
        --teacher resnet56 --teacher_checkpoint resnet56.pth --student resnet20

Published for this pair (methods with the authors' teacher, 73.44 %): student alone 69.63, KD 70.66,
SSKD 71.49 % (Xu et al. 2020, arXiv:2006.07114, results table of the authors' repository).
`--smoke` tries the script in a minute on data that needs no download.
"""

from __future__ import annotations

import pathlib
import time

import keras
from absl import app, flags, logging
from phases import accuracy, faster_precision, frozen, mean_and_spread, train, write_report

import keras_ssd as ssd

_TEACHER = flags.DEFINE_string("teacher", "resnet56", "Network of the teacher.")
_CHECKPOINT = flags.DEFINE_string(
    "teacher_checkpoint", None, "The teacher's weights (.pth, .safetensors); trained here if none."
)
_STUDENT = flags.DEFINE_string("student", "resnet20", "Network of the student.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
_VALIDATION = flags.DEFINE_float("validation", 0.0, "Share of the training images held out.")
_TEACHER_EPOCHS = flags.DEFINE_integer("teacher_epochs", 240, "Epochs of phase 1.")
_PRETEXT_EPOCHS = flags.DEFINE_integer("pretext_epochs", 60, "Epochs of phase 2.")
_EPOCHS = flags.DEFINE_integer("epochs", 240, "Epochs of phase 3, of KD and of the baseline.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a step.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Learning rate at the start.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Students of each method.")
_OUTPUT = flags.DEFINE_string("output", "runs/sskd_cifar100", "Folder of report and students.")
_VERBOSE = flags.DEFINE_integer("verbose", 1, "As in `keras.Model.fit`.")
_SMOKE = flags.DEFINE_bool("smoke", False, "One epoch of small networks on `digits`.")

_SETTINGS = (
    "teacher",
    "teacher_checkpoint",
    "student",
    "validation",
    "teacher_epochs",
    "pretext_epochs",
    "epochs",
    "batch_size",
    "learning_rate",
    "seeds",
)


def main(_: list[str]) -> None:
    """Runs the three phases and prints a table."""
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    if _SMOKE.value:
        flags.FLAGS.teacher, flags.FLAGS.student = "resnet14", "resnet8"
        for name in ("teacher_epochs", "pretext_epochs", "epochs"):
            setattr(flags.FLAGS, name, 1)
    data = ssd.data.load(
        "digits" if _SMOKE.value else "cifar100",
        _BATCH_SIZE.value,
        validation=_VALIDATION.value,
        data_dir=_DATA_DIR.value,
    )
    precision = {
        network: faster_precision(network, data.info, 4 * _BATCH_SIZE.value)
        for network in {_TEACHER.value, _STUDENT.value}
    }
    teacher = _teacher(data, precision[_TEACHER.value])
    results: dict[str, list[float]] = {"teacher": [accuracy(teacher, data.test)]}
    print(f"teacher: {results['teacher'][0]:.4f} top-1 on {data.info.counts['test']} images")
    images = next(iter(data.train.repeat().unbatch().batch(4 * _BATCH_SIZE.value)))[0]
    teacher, precision["frozen teacher"] = frozen(_with_trained_head(teacher, data), images)
    for seed in range(_SEEDS.value):
        for method in ("labels_only", "kd", "sskd"):
            student = _distil(method, teacher, data, precision[_STUDENT.value], seed)
            results.setdefault(method, []).append(accuracy(student, data.test))
            print(f"{method}, seed {seed}: {results[method][-1]:.4f}", flush=True)
    _report(results, data.info, precision, time.perf_counter() - start)


def _teacher(data: ssd.data.Splits, precision: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    teacher = ssd.models.build(_TEACHER.value, data.info, dtype=precision)
    if _CHECKPOINT.value is not None:
        ssd.checkpoints.load_torch_weights(teacher, _CHECKPOINT.value)
        return teacher
    _train(ssd.Distiller(student=teacher, **ssd.presets.labels_only()), data, _TEACHER_EPOCHS.value)
    return teacher


def _with_trained_head(teacher: keras.Model, data: ssd.data.Splits) -> keras.Model:
    network = ssd.with_projection(teacher, backbone="frozen")
    distiller = ssd.Distiller(student=network, **ssd.presets.sskd_pretext())
    _train(distiller, data, _PRETEXT_EPOCHS.value, drops=(0.5, 0.75), learning_rate=0.05)
    path = pathlib.Path(_OUTPUT.value, "teacher_with_head.keras")
    path.parent.mkdir(parents=True, exist_ok=True)
    network.save(path)
    return network


def _distil(
    method: str, teacher: ssd.FrozenTeacher, data: ssd.data.Splits, precision: str, seed: int
) -> keras.Model:
    keras.utils.set_random_seed(seed)  # every method starts from the same weights
    student = ssd.models.build(_STUDENT.value, data.info, dtype=precision)
    if method == "labels_only":
        distiller = ssd.Distiller(student=student, **ssd.presets.labels_only(), seed=seed)
    elif method == "kd":
        distiller = ssd.Distiller(teacher, student, **ssd.presets.kd(), seed=seed)
    else:
        network = ssd.with_projection(student)
        distiller = ssd.Distiller(teacher, network, **ssd.presets.sskd(), seed=seed)
    _train(distiller, data, _EPOCHS.value, learning_rate=_LEARNING_RATE.value)
    ssd.export_student(distiller, pathlib.Path(_OUTPUT.value, f"{method}_{seed}"))
    return student


def _train(distiller: ssd.Distiller, data: ssd.data.Splits, epochs: int, **options: object) -> None:
    steps = data.info.counts["train"] // _BATCH_SIZE.value
    verbose = _VERBOSE.value
    train(distiller, data.train, epochs=epochs, steps_per_epoch=steps, verbose=verbose, **options)


def _report(
    results: dict[str, list[float]],
    info: ssd.data.DatasetInfo,
    precision: dict[str, str],
    seconds: float,
) -> None:
    print(f"\nTop-1 on {info.counts['test']} test images, last epoch, {_SEEDS.value} seeds")
    for method, values in results.items():
        mean, spread = mean_and_spread(values)
        print(f"  {method:12} {100 * mean:6.2f} +- {100 * spread:.2f} %")
    path = pathlib.Path(_OUTPUT.value, "report.json")
    settings = {name: flags.FLAGS[name].value for name in _SETTINGS}
    report = {
        "seconds": round(seconds),
        "settings": settings,
        "precision": precision,
        "data": {"counts": info.counts, "fingerprint": info.fingerprint},
        "results": results,
    }
    write_report(path, report)
    print(f"{path} written after {seconds:.0f} s")


if __name__ == "__main__":
    app.run(main)
