"""What all scripts share: the precision of networks, a student's run, the report."""

from __future__ import annotations

import functools
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import flags
from strategy import given_precision, in_scope, is_chief

import keras_ssd as ssd
from keras_ssd.whole_files import replaced_when_complete


def faster_precision(network: str, info: ssd.data.DatasetInfo, rows: int) -> str:
    """Measures a few training steps of a network and returns the dtype policy that is faster here.

    Workers must agree and a TPU is no matter of choice: there it is fixed.

    Args:
        network: Name for `models.build`.
        info: Data set that the network is for.
        rows: Images a step.
    """
    if (given := given_precision()) is not None:
        return given
    images = tf.zeros([rows, *info.input_shape], tf.uint8)
    labels = tf.zeros([rows], tf.int32)
    steps = {}
    for policy in ("float32", "mixed_bfloat16"):
        distiller = ssd.Distiller(
            student=ssd.models.build(network, info, dtype=policy),
            objectives=[ssd.objectives.HardLabels()],
        )
        distiller.compile(optimizer=ssd.optimizers.SGD(0.0))
        steps[policy] = functools.partial(distiller.train_on_batch, images, labels)
    return _fastest(f"{network}, a step", steps, rows)


def frozen(
    teacher: keras.Model, images: tf.Tensor, **options: Any
) -> tuple[ssd.FrozenTeacher, str]:
    """The frozen teacher in the precision that is faster here, and that precision.

    Args:
        teacher: A trained network.
        images: As many as the rows of a step.
        **options: As in `keras_ssd.freeze`.
    """
    if (given := given_precision()) is not None:
        dtype = "bfloat16" if given == "mixed_bfloat16" else "as it is"
        half = {"dtype": dtype} if dtype == "bfloat16" else {}
        return ssd.freeze(teacher, **half, **options), dtype
    teachers = {
        "as it is": ssd.freeze(teacher, **options),
        "bfloat16": ssd.freeze(teacher, dtype="bfloat16", **options),
    }
    forwards = {dtype: _forward(one, images) for dtype, one in teachers.items()}
    fastest = _fastest(f"{teacher.name} frozen, a forward", forwards, len(images))
    return teachers[fastest], fastest


def _forward(network: Callable, images: tf.Tensor) -> Callable:
    function = tf.function(network)
    return lambda: function(images)["logits"].numpy()


def _fastest(what: str, functions: dict[str, Callable], rows: int) -> str:
    seconds = {}
    for name, function in functions.items():
        function()  # traces
        seconds[name] = min(_seconds(function) for _ in range(5))
    fastest = min(seconds, key=seconds.get)
    listed = ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in seconds.items())
    print(f"{what} of {rows} images: {listed} -> {fastest}", flush=True)
    return fastest


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@in_scope
def train(
    distiller: ssd.Distiller,
    images: Any,
    labels: Any = None,
    *,
    epochs: int,
    steps_per_epoch: int,
    drops: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240),
    learning_rate: float = 0.05,
    nesterov: bool = False,
    verbose: int | str = "auto",
    validation_data: tf.data.Dataset | None = None,
    callbacks: list[keras.callbacks.Callback] | None = None,
    **compile_options: Any,
) -> keras.callbacks.History:
    """Trains as the papers did: SGD, momentum 0.9, decay 5e-4, the rate times 0.1 at each drop.

    Args:
        distiller: What is trained.
        images: Data set, or array with `labels`.
        labels: Array, where `images` is one.
        epochs: Number of epochs.
        steps_per_epoch: Batches of an epoch.
        drops: When the rate drops, as shares of the epochs (those of the paper by default).
        learning_rate: The rate at the start.
        nesterov: Nesterov momentum, which HSAKD takes and SSKD does not.
        verbose: As in `keras.Model.fit`.
        validation_data: As in `keras.Model.fit`.
        callbacks: As in `keras.Model.fit`.
        **compile_options: As in `Distiller.compile`.
    """
    schedule = ssd.schedules.steps_at(
        learning_rate,
        epochs=sorted({max(1, round(share * epochs)) for share in drops}),
        steps_per_epoch=steps_per_epoch,
    )
    distiller.compile(
        optimizer=ssd.optimizers.SGD(schedule, momentum=0.9, weight_decay=5e-4, nesterov=nesterov),
        metrics=["accuracy"],
        **compile_options,
    )
    batch_size = None if labels is None else -(-len(images) // steps_per_epoch)
    return distiller.fit(
        images,
        labels,
        batch_size=batch_size,
        epochs=epochs,
        verbose=verbose,
        validation_data=validation_data,
        callbacks=callbacks,
    )


@in_scope
def accuracy(network: keras.Model, dataset: tf.data.Dataset) -> float:
    """Top-1 accuracy of a network's logits on a data set of (image, label), in 0..1."""
    distiller = ssd.Distiller(student=network, objectives=[ssd.objectives.HardLabels()])
    distiller.compile(metrics=["accuracy"])
    return distiller.evaluate(dataset, verbose=0, return_dict=True)["accuracy"]


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def report_students(
    path: pathlib.Path,
    results: Mapping[str, Any],
    settings: Mapping[str, Any],
    info: ssd.data.DatasetInfo,
    precision: Any,
    seconds: float,
) -> None:
    """Prints the accuracy of every method, and writes all numbers.

    Args:
        path: The report.
        results: By method the results of each seed, or one accuracy.
        settings: Those of the script.
        info: Of the images.
        precision: Of the networks.
        seconds: What all has taken.
    """
    seeds = max(len(runs) for runs in results.values() if isinstance(runs, list))
    print(f"\nTop-1 on {info.counts['test']} test images, last epoch, {seeds} seeds")
    for method, runs in results.items():
        if not isinstance(runs, list):
            print(f"  {method:12} {100 * runs:6.2f} %")
            continue
        mean, spread = mean_and_spread([run["test"] for run in runs])
        print(f"  {method:12} {100 * mean:6.2f} +- {100 * spread:.2f} %")
    data = {"counts": info.counts, "changes": info.changes, "fingerprint": info.fingerprint}
    report = {
        "seconds": round(seconds),
        "settings": dict(settings),
        "precision": precision,
        "data": data,
        "results": results,
    }
    write_report(path, report)
    print(f"{path} written after {seconds:.0f} s")


class Measured:
    """What is measured once, so that a run that goes on computes as it began.

    Args:
        path: The file that keeps it; None for a run that is always begun anew.
    """

    def __init__(self, path: pathlib.Path | None) -> None:
        self._path = path
        self._values = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, name: str, measure: Callable[[], str]) -> str:
        """The value of a name, measured if there is none yet."""
        if name not in self._values:
            self._values[name] = measure()
            if self._path and is_chief():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with replaced_when_complete(self._path) as partial:
                    partial.write_text(json.dumps(self._values, indent=2) + "\n")
        return self._values[name]


def keep_settings(path: pathlib.Path, names: Sequence[str]) -> None:
    """Writes the values of some flags, or refuses to go on with a run of others."""
    settings = {name: flags.FLAGS[name].value for name in names}
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(f"{path} is of a run with other settings: give another --output.")
    if is_chief() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_when_complete(path) as partial:
            partial.write_text(json.dumps(settings, indent=2) + "\n")


def write_report(path: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes a report with the versions and the machine that made it."""
    if not is_chief():
        return
    versions = {
        "keras_ssd": ssd.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    machine = f"{platform.machine()}, {len(tf.config.list_physical_devices('GPU'))} GPUs"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({**report, "versions": versions, "machine": machine}, indent=2) + "\n"
    )
