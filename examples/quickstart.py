"""A student of a teacher against the same student alone, on handwritten digits, in two minutes.

    python examples/quickstart.py            # one seed
    python examples/quickstart.py --seeds 5  # the figures of the README

A teacher is trained on all training images (phase 1), then its projection head (phase 2). The
student knows ten labels a class. It is trained on those images twice, from the same weights and for
as many epochs: with the labels alone, and with SSKD. Accuracy is that of the last epoch on images
that no training and no choice of a setting has seen.
"""

from __future__ import annotations

import pathlib
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from phases import accuracy, faster_precision, frozen, mean_and_spread, train, write_report
from strategy import in_scope, is_chief, strategy

import keras_ssd as ssd

_SEEDS = flags.DEFINE_integer(
    "seeds", 1, "How often everything is done, each time from new weights."
)
_OUTPUT = flags.DEFINE_string("output", "runs/quickstart", "Folder of report, picture and student.")
_SMOKE = flags.DEFINE_bool("smoke", False, "One epoch of everything.")

_TEACHER, _STUDENT = "resnet14", "resnet8"
_LABELS_A_CLASS = 10
_NO_FLIP = {"flip": False, "padding": 1}  # a mirrored digit is no digit; 16 pixels, not 32


def main(_: list[str]) -> None:
    """Runs everything and prints a table."""
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    strategy()
    output = pathlib.Path(_OUTPUT.value)
    info = ssd.data.load("digits", batch_size=64).info
    precision = {
        _TEACHER: faster_precision(_TEACHER, info, rows=256),
        _STUDENT: faster_precision(_STUDENT, info, rows=256),
    }
    seeds = []
    for seed in range(_SEEDS.value):
        print(f"\n==== seed {seed}")
        data = ssd.data.load("digits", batch_size=64, validation=0, seed=seed)
        networks = _three_networks(data, precision, seed)
        seeds.append({part: accuracy(n, data.test) for part, n in networks.items()})
    if not is_chief():
        return
    print()
    batch = next(iter(data.test))[0]
    title = {"teacher": "teacher", "student": "student, SSKD"}
    picture = ssd.evaluation.figures.similarity_matrices(
        {title[part]: networks[part] for part in title}, batch[:16], output / "similarity.png"
    )
    saved_model = ssd.export_student(networks["student"], output / "student")
    seconds = time.perf_counter() - start
    report = {"seconds": round(seconds, 1), "precision": precision, "seeds": seeds}
    write_report(output / "report.json", report)
    _print_table(seeds, networks, batch)
    print(
        f"\npicture      {picture}\nSavedModel   {saved_model}\nreport       {output}/report.json"
    )
    print(f"{seconds:.0f} seconds")


@in_scope
def _three_networks(
    data: ssd.data.Splits, precision: dict[str, str], seed: int
) -> dict[str, keras.Model]:
    """Trains the teacher with its head, the student on labels alone, and the student with SSKD."""
    steps = len(data.train)
    keras.utils.set_random_seed(seed)
    print(f"\nPhase 1: the teacher, {_TEACHER}, {data.info.counts['train']} labeled images")
    teacher = ssd.models.build(_TEACHER, data.info, dtype=precision[_TEACHER])
    distiller = ssd.Distiller(student=teacher, **ssd.presets.labels_only(**_NO_FLIP), seed=seed)
    train(distiller, data.train, epochs=_epochs(25), steps_per_epoch=steps)

    print("\nPhase 2: the teacher's projection head")
    teacher = ssd.with_projection(teacher, backbone="frozen")
    distiller = ssd.Distiller(student=teacher, **ssd.presets.sskd_pretext(**_NO_FLIP), seed=seed)
    train(distiller, data.train, epochs=_epochs(15), steps_per_epoch=steps, drops=(0.5, 0.75))

    images, labels = _few_labels(data.train, seed)
    networks = {"teacher": teacher}
    rows = tf.constant(np.resize(images, [256, *data.info.input_shape]))
    frozen_teacher, precision["frozen teacher"] = frozen(teacher, rows)
    for part in ("baseline", "student"):
        keras.utils.set_random_seed(seed)  # both start from the same weights
        student = ssd.models.build(_STUDENT, data.info, dtype=precision[_STUDENT])
        if part == "baseline":
            print(f"\nBaseline: {_STUDENT}, {len(images)} labeled images, labels alone")
            preset = ssd.presets.labels_only(**_NO_FLIP)
            distiller = ssd.Distiller(student=student, **preset, seed=seed)
        else:
            print(f"\nPhase 3: {_STUDENT}, the same {len(images)} labeled images, SSKD")
            student = ssd.with_projection(student)
            preset = ssd.presets.sskd(**_NO_FLIP)
            distiller = ssd.Distiller(frozen_teacher, student, **preset, seed=seed)
        train(distiller, images, labels, epochs=_epochs(100), steps_per_epoch=2, verbose=2)
        networks[part] = student
    return networks


def _epochs(epochs: int) -> int:
    return 1 if _SMOKE.value else epochs


def _few_labels(dataset: tf.data.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some training images of each class, and their labels."""
    images, labels = (
        np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True)
    )
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == c][:_LABELS_A_CLASS] for c in range(labels.max() + 1)]
    rows = np.concatenate(chosen)
    return images[rows], labels[rows]


def _print_table(
    seeds: list[dict[str, float]], networks: dict[str, keras.Model], images: tf.Tensor
) -> None:
    print(f"{'':26}{'top-1 on test images':>24}{'weights':>12}{'images/s':>12}")
    rows = {"teacher": f"teacher ({_TEACHER})", "baseline": f"labels alone ({_STUDENT})"}
    rows["student"] = f"SSKD ({_STUDENT})"
    for part, title in rows.items():
        mean, spread = mean_and_spread([seed[part] for seed in seeds])
        plain = ssd.strip_heads(networks[part])
        weights, speed = plain.count_params(), _images_a_second(plain, images)
        figures = f"{100 * mean:.1f} +- {100 * spread:.1f} %"
        print(f"{title:26}{figures:>24}{weights:>12,}{speed:>12,.0f}")
    gains = [100 * (seed["student"] - seed["baseline"]) for seed in seeds]
    mean, spread = mean_and_spread(gains)
    error = spread / len(gains) ** 0.5
    print(f"gain of SSKD over labels alone: {mean:.1f} points (standard error {error:.1f})")


def _images_a_second(network: keras.Model, images: tf.Tensor) -> float:
    step = tf.function(lambda: network(images, training=False))
    step()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return len(images) / statistics.median(seconds)


if __name__ == "__main__":
    app.run(main)
