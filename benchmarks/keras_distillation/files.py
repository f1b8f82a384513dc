"""What is in the files of both sides, and how training goes on from them."""

from __future__ import annotations

import contextlib
import io
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras.distillation import DistillationLoss
from keras.distillation import Distiller as PeerDistiller

import keras_ssd as ssd
from keras_distillation.networks import (
    BOTH,
    CROSS_ENTROPY,
    IMAGES,
    LABELS,
    TEMPERATURE,
    Table,
    divergence,
    largest_change,
    network,
    outcome,
    teacher_network,
    trained,
)
from keras_ssd.objectives import HardLabels, Objective, SoftLabels

TEACHER_FEATURES = 600


def measure() -> list[Table]:
    """Sizes, and runs that were interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        rows = [
            *_sizes(path),
            ("`load_model`, then `fit`", *_continued(path)),
            *_differences(path),
            ("`save` with a loss of one's own without `get_config`", *_without_config(path)),
            *_backups(path),
        ]
    return [Table("Files", BOTH, rows)]


def _peer(**options: Any) -> keras.Model:
    model = PeerDistiller(_teacher(), network(), divergence(), **options)
    model.compile(_optimizer(), CROSS_ENTROPY)
    return model


def _ours() -> keras.Model:
    objectives = [HardLabels(0.5), SoftLabels(TEMPERATURE, weight=0.5)]
    model = ssd.Distiller(_teacher(), network(), objectives)
    model.compile(_optimizer())
    return model


MAKERS = (_peer, _ours)


def _teacher() -> keras.Model:
    return teacher_network(features=TEACHER_FEATURES)


def _optimizer() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.05)


def _fit(model: keras.Model, epochs: int = 1, **options: Any) -> keras.callbacks.History:
    fixed = {"batch_size": 4, "shuffle": False, "verbose": 0}
    return model.fit(IMAGES, LABELS, epochs=epochs, **fixed, **options)


def _sizes(path: pathlib.Path) -> list[tuple[object, ...]]:
    teacher, student = _teacher(), network()
    for name, model in (("teacher", teacher), ("student", student)):
        model.save(path / f"{name}.keras")
    parts = f"teacher {_bytes(path / 'teacher.keras')}, student {_bytes(path / 'student.keras')}"
    files = {"`save`": "d.keras", "`save_weights`": "d.weights.h5", "`export`": "exported"}
    cells: dict[str, list[str]] = {name: [] for name in files}
    for make in MAKERS:
        model = make()
        _fit(model)
        for name, file in files.items():
            shutil.rmtree(path / file, ignore_errors=True)
            with contextlib.redirect_stdout(io.StringIO()):
                getattr(model, name.strip("`"))(path / file)
            cells[name].append(_bytes(path / file))
    counts = f"{teacher.count_params():,} and {student.count_params():,} parameters"
    name = f"bytes ({counts} by themselves: {parts}): "
    return [((name if i == 0 else "... ") + f, *cells[f]) for i, f in enumerate(files)]


def _bytes(path: pathlib.Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files):,}"


def _loaded(make: Callable[[], Any], path: pathlib.Path) -> keras.Model:
    """A Distiller that trained an epoch, saved and loaded; ours is given its teacher."""
    model = make()
    _fit(model)
    model.save(path / "interrupted.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = keras.models.load_model(path / "interrupted.keras")
    if isinstance(loaded, ssd.Distiller):
        loaded.set_teacher(_teacher())
    return loaded


def _continued(path: pathlib.Path) -> list[object]:
    return [outcome(lambda make=make: _fit(_loaded(make, path)) and None) for make in MAKERS]


def _differences(path: pathlib.Path) -> list[tuple[object, ...]]:
    def difference(make: Callable[[], Any]) -> float:
        whole = make()
        _fit(whole, 2)
        loaded = _loaded(make, path)
        if not isinstance(loaded, ssd.Distiller):
            loaded.compile(_optimizer(), CROSS_ENTROPY)
        _fit(loaded)
        return largest_change(trained(whole), trained(loaded))

    name = (
        "largest difference of a weight from the uninterrupted run of two epochs (for "
        "keras.distillation after `compile` by hand; Adam)"
    )
    return [(name, *map(difference, MAKERS))]


class PeersOwn(DistillationLoss):
    """A custom loss as the documentation of `keras.distillation` shows it."""

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **_: Any) -> Any:
        """The loss."""
        return keras.ops.mean(keras.ops.square(teacher_outputs - student_outputs))


class OurOwn(Objective):
    """A custom objective without more than it needs."""

    teacher_outputs = student_outputs = ("logits",)

    def __call__(self, batch: ssd.Batch) -> tuple[Any, Any]:
        """The sum and the number of rows."""
        difference = batch.teacher["logits"] - batch.student["logits"]
        values = keras.ops.mean(keras.ops.square(difference), axis=-1)
        return keras.ops.sum(values), keras.ops.cast(keras.ops.size(values), "float32")


def _without_config(path: pathlib.Path) -> tuple[object, object]:
    def theirs() -> None:
        model = PeerDistiller(_teacher(), network(), PeersOwn())
        model.compile(_optimizer(), CROSS_ENTROPY)
        model.save(path / "own.keras")

    def mine() -> None:
        model = ssd.Distiller(_teacher(), network(), [OurOwn()])
        model.compile(_optimizer())
        model.save(path / "own.keras")
        custom = {"OurOwn": OurOwn}
        keras.models.load_model(path / "own.keras", custom_objects=custom)

    return outcome(theirs), outcome(mine)


class Interrupt(keras.callbacks.Callback):
    """Ends the process, as it were, when the second epoch begins."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Raises in the second epoch."""
        if epoch == 1:
            raise KeyboardInterrupt


def _backups(path: pathlib.Path) -> list[tuple[object, ...]]:
    def resumed(make: Callable[[], Any], called: bool) -> float:
        whole = make()
        _fit(whole, 2)
        folder = path / f"{make.__name__}{called}"
        for interrupts in ([Interrupt()], []):
            model = make()
            if called:
                model(IMAGES[:1])
            backup = keras.callbacks.BackupAndRestore(folder)
            with contextlib.suppress(KeyboardInterrupt):
                _fit(model, 2, callbacks=[backup, *interrupts])
        return largest_change(trained(whole), trained(model))

    name = "`BackupAndRestore`: the same difference"
    plain = [outcome(lambda make=make: resumed(make, False)) for make in MAKERS]
    after = [outcome(lambda make=make: resumed(make, True)) for make in MAKERS]
    return [(name, *plain), ("... after the distiller was called once by hand", *after)]
