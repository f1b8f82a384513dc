"""How time and memory of a step grow with the batch, the objectives and the classes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import sys

import numpy as np

AXES = {
    "images": (32, 64, 128, 256, 512),
    "objectives": (1, 2, 4, 8),
    "classes": (10, 100, 1_000, 10_000, 22_000),
}


def measure(full: bool) -> dict[str, dict]:
    """Time and peak memory along each axis with the exponents fitted (full: more turns)."""
    figures = {}
    context = multiprocessing.get_context("spawn")
    for axis, values in AXES.items():
        points = []
        for value in values:  # a process each: memory that was used once is not given back
            with context.Pool(1) as pool:
                points.append(pool.apply(_point, (axis, value, 9 if full else 5)))
        seconds, megabytes = zip(*points, strict=True)
        figures[axis] = {
            "values": list(values),
            "seconds": list(seconds),
            "exponent": _exponent(values, seconds),
            "megabytes": list(megabytes),
            "memory exponent": _exponent(values, megabytes),
        }
    return figures


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


def _peak_megabytes() -> float:
    """The largest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _exponent(values: tuple[float, ...], measured: tuple[float, ...]) -> float:
    """The slope of the line through the logarithms, by least squares."""
    return round(float(np.polyfit(np.log(values), np.log(measured), 1)[0]), 2)
