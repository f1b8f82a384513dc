"""Where the time of the student's update goes, operation by operation (TensorFlow's profiler)."""

from __future__ import annotations

import collections
import pathlib
import tempfile

import keras
import tensorflow as tf
from contestants import BFLOAT16, FLOAT32, SMALL, WIDE, Setting, step
from tensorflow.tsl.profiler.protobuf import xplane_pb2
from timing import WARM_UP, Contestant

STEPS = 5
KINDS = {  # what an operation is for, by a part of its name
    "BatchNorm": "batch normalisation",
    "Conv2DBackpropFilter": "convolution, gradient of the kernel",
    "Conv2DBackpropInput": "convolution, gradient of the map",
    "Conv2D": "convolution, forward",
    "Relu": "ReLU",
    "AddN": "sums",
    "AddV2": "sums",
    "Pad": "padding",
    "Slice": "padding",  # its gradient
    "Cast": "casts",
    "Variable": "reading and writing variables",
    "Assign": "reading and writing variables",
    "MatMul": "matrix products",
}


def measure(full: bool) -> dict[str, dict]:
    """Shares of the operations of a `labels_only` step on 256 images (full: more steps).

    Of the summed time of all operations; two may run at once, so the sum is not that of the step.
    """
    figures = {}
    for student in (SMALL[1], WIDE[1]):
        for precision in (FLOAT32, BFLOAT16):
            keras.backend.clear_session()
            setting = Setting((student, student), precision, preset="labels_only", images=256)
            times = _by_kind(_events(step(setting), STEPS * (3 if full else 1)))
            total = sum(times.values())
            shares = {kind: round(100 * time / total, 1) for kind, time in times.items()}
            figures[f"{student}, {precision}, percent of the time"] = shares
    return figures


def _events(contestant: Contestant, steps: int) -> collections.Counter:
    """Picoseconds of each type of operation."""
    for _ in range(WARM_UP):
        contestant()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(steps):
            contestant()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(pathlib.Path(folder).rglob("*.xplane.pb")).read_bytes())
    durations: collections.Counter = collections.Counter()
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for event in (event for line in plane.lines for event in line.events):
            name = plane.event_metadata[event.metadata_id].name
            node, _, operation = name.partition(":")
            if operation.isidentifier() and " " not in node:  # the others are the runtime's own
                durations[operation] += event.duration_ps
    return durations


def _by_kind(durations: collections.Counter) -> dict[str, int]:
    kinds: collections.Counter = collections.Counter()
    for operation, picoseconds in durations.items():
        kind = next((kind for part, kind in KINDS.items() if part in operation), "the rest")
        kinds[kind] += picoseconds
    return dict(kinds.most_common())
