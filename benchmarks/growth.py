"""How time and memory of a step grow with the batch, the objectives, the classes and the replicas.

Replicas are logical devices of one processor, whose cores they share, and the global batch stays
the same: a step does not get faster, and what it takes longer than on one replica is the price of
dividing it. What our own collectives have in that (the gathers and sums of objectives, views and
terms, and of their gradients) is timed alone: those of a step are noted while it is traced and made
again, one after the other, with tensors of the same shapes. Keras' sum of the gradients of the
weights is none of them.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

AXES = {
    "images": (32, 64, 128, 256, 512),
    "objectives": (1, 2, 4, 8),
    "classes": (10, 100, 1_000, 10_000, 22_000),
}
REPLICAS = (1, 2, 3, 4)

_Result = TypeVar("_Result")


def measure(full: bool) -> dict[str, dict]:
    """Time and peak memory along each axis with the exponents fitted (full: more turns)."""
    figures = {}
    for axis, values in AXES.items():
        points = [_in_a_process(_point, axis, value, 9 if full else 5) for value in values]
        seconds, megabytes = zip(*points, strict=True)
        figures[axis] = {
            "values": list(values),
            "seconds": list(seconds),
            "exponent": _exponent(values, seconds),
            "megabytes": list(megabytes),
            "memory exponent": _exponent(values, megabytes),
        }
    points = [_in_a_process(_replicas, value, 41 if full else 21) for value in REPLICAS]
    figures["replicas"] = _of_replicas(*zip(*points, strict=True))
    return figures


def _in_a_process(function: Callable[..., _Result], *arguments: object) -> _Result:
    """The function's result; a process each: memory that was used once is not given back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _of_replicas(
    seconds: Sequence[float],
    numbers: Sequence[int],
    collectives: Sequence[float],
    megabytes: Sequence[float],
) -> dict[str, object]:
    """The figures of 1, 2, ... replicas; the first has nobody to talk to."""
    return {
        "values": list(REPLICAS),
        "seconds": list(seconds),
        "exponent": _exponent(REPLICAS, seconds),
        "times one replica": [round(each / seconds[0], 3) for each in seconds],
        "our collectives a step": list(numbers),
        "their milliseconds": [
            round(1e3 * part, 2) if number else 0
            for part, number in zip(collectives, numbers, strict=True)
        ],
        "percent of the step": [
            round(100 * part / each, 1) if number else 0
            for part, each, number in zip(collectives, seconds, numbers, strict=True)
        ],
        "their exponent": _exponent(REPLICAS[1:], collectives[1:]),
        "megabytes": list(megabytes),
        "memory exponent": _exponent(REPLICAS, megabytes),
    }


def _point(axis: str, value: int, rounds: int) -> tuple[float, float]:
    """Seconds and megabytes of a step: resnet8 -> resnet8, SSKD or `value` soft-label terms."""
    # Imported here, so that the process that starts the others stays small.
    from contestants import Setting, in_graph, optimizer, step
    from timing import median, turns

    import keras_ssd as ssd

    setting = Setting(("resnet8", "resnet8"))
    if axis == "objectives":
        objectives = [ssd.objectives.SoftLabels(1 + k, name=f"term_{k}") for k in range(value)]
        options = {"views": ssd.views.Rotations(), "objectives": objectives}
        before = _peak_megabytes()
        distiller = ssd.Distiller(setting.teacher(), setting.student(), **options)
        distiller.compile(optimizer=optimizer())
        contestant = in_graph(distiller, setting.batch())
    else:
        field = {"images": "images", "classes": "num_classes"}[axis]
        before = _peak_megabytes()
        contestant = step(dataclasses.replace(setting, **{field: value}))
    seconds = median(turns({"step": contestant}, rounds)["step"])
    return seconds, round(_peak_megabytes() - before, 1)


def _replicas(count: int, rounds: int) -> tuple[float, int, float, float]:
    """Seconds of the SSKD step on some replicas; number and seconds of its collectives; memory."""
    import tensorflow as tf
    from contestants import Setting
    from replicas import collectives_of, step_on
    from timing import median, turns

    device = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(device, logical)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(count)])
    before = _peak_megabytes()
    distiller, step = step_on(strategy, Setting(("resnet8", "resnet8")))
    number, collectives = collectives_of(step, distiller, strategy)
    megabytes = round(_peak_megabytes() - before, 1)
    seconds = turns({"step": step, "collectives": collectives}, rounds)
    return median(seconds["step"]), number, median(seconds["collectives"]), megabytes


def _peak_megabytes() -> float:
    """The largest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _exponent(values: Sequence[float], measured: Sequence[float]) -> float:
    """The slope of the line through the logarithms, by least squares."""
    return round(float(np.polyfit(np.log(values), np.log(measured), 1)[0]), 2)
