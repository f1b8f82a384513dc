"""How much the scoring of a pool costs beyond its teacher's forward, and how much memory it takes.

python benchmarks/mining.py --full
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from growth import _peak_megabytes

import keras_ssd as ssd
from keras_ssd.data.mining import Pool, Record, array_pool, open_pool, scoring
from keras_ssd.data.mining.evaluation import Evaluation
from keras_ssd.data.mining.scorer import Scorer
from keras_ssd.data.mining.scores import Scores

NETWORKS = {"resnet56": 2_048, "resnet32x4": 512}  # images of a turn
BATCH = 256
GOAL = 1.05
SIZES = (10_000, 30_000, 100_000)
MILLION, LIMIT = 1_000_000, 2_048  # images, megabytes

_FULL = flags.DEFINE_bool("full", False, "More turns.") if __name__ == "__main__" else None


def main(_: list[str]) -> None:
    """Prints the figures."""
    for name, figure in measure(_FULL is not None and _FULL.value).items():
        print(f"{name}: {json.dumps(figure)}", flush=True)


def measure(full: bool) -> dict[str, dict]:
    """Ratios of time, and the memory of pools of several sizes (full: more turns).

    The pool is that of CIFAR-10 and the target set the test split of CIFAR-100 where they are,
    otherwise both are images of chance.
    """
    figures = {}
    for name, images in NETWORKS.items():
        keras.backend.clear_session()
        figures.update(_ratios(name, images, rounds=9 if full else 5))
    points = [_in_a_process(size) for size in SIZES]
    slope, start = np.polyfit(SIZES, points, 1)
    figures["memory"] = {
        "images": list(SIZES),
        "peak megabytes": points,
        "of a million": round(float(start + slope * MILLION)),
        "goal, at most": LIMIT,
    }
    return figures


# --- Time ----------------------------------------------------------------------------------------


def _ratios(name: str, images: int, rounds: int) -> dict[str, dict]:
    """The pass over the bare forward, without and with what finds duplicates."""
    pool, target = _pool_and_target(images)
    network = ssd.models.build(
        name,
        num_classes=100,
        input_shape=(32, 32, 3),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    )
    contestants = {"bare forward": _bare(network, pool)}
    for title, detectors in (("alone", None), ("all detectors", ("dhash", "embedding"))):
        contestants[title] = _pass(network, pool, None if detectors is None else target, detectors)
    wall, processor = _turns(contestants, rounds)
    figures = {}
    for title in ("alone", "all detectors"):
        figures[f"{name}, {title}"] = {
            **_ratio(wall[title], wall["bare forward"]),
            "goal": GOAL,
            "ratio of processor time": _ratio(processor[title], processor["bare forward"])["ratio"],
            "images a second": round(images / float(np.median(wall[title])), 1),
        }
    return figures


def _ratio(seconds: list[float], others: list[float]) -> dict[str, float]:
    ratios = np.divide(seconds, others)
    return {
        "ratio": round(float(np.median(ratios)), 3),
        "from": round(float(ratios.min()), 3),
        "to": round(float(ratios.max()), 3),
        "seconds": float(f"{np.median(seconds):.4g}"),
        "other seconds": float(f"{np.median(others):.4g}"),
    }


def _turns(
    contestants: dict[str, Callable[[], None]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds on the wall and of the processor, of each contestant in each round."""
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            clocks = time.perf_counter(), time.process_time()
            contestant()
            if turn:  # the first warms up
                wall[name].append(time.perf_counter() - clocks[0])
                processor[name].append(time.process_time() - clocks[1])
    return wall, processor


def _bare(network: keras.Model, pool: Pool) -> Callable[[], None]:
    """Reads the pool ahead, in batches of the same shape, and runs nothing but the network."""
    frozen = ssd.freeze(network)
    spec = tf.TensorSpec((BATCH, 32, 32, 3), tf.uint8)
    forward = tf.function(lambda x: frozen(x)["logits"], autograph=False, input_signature=[spec])

    def batches() -> Iterator[np.ndarray]:
        images = []
        for record in pool.read():
            images.append(record.image)
            if len(images) == BATCH:
                yield np.stack(images)
                images = []

    def run() -> None:
        for batch in scoring.ahead(batches()):
            forward(batch).numpy()

    return run


def _pass(
    network: keras.Model,
    pool: Pool,
    target: tf.data.Dataset | None,
    detectors: tuple[str, ...] | None,
) -> Callable[[], None]:
    """What `score` does once it has its scorer and the index of the target set."""
    evaluation = Evaluation(target, detectors or (), 4, 0.95)
    scorer = Scorer(
        network,
        None,
        lambda: (32, 32),
        temperature=1.0,
        classes_per_image=1,
        batch_size=BATCH,
        embedding=evaluation.compares_embeddings,
    )
    index = evaluation.index(scorer)
    header = {"pool_size": pool.size, "chunk": scoring.CHUNK}

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            scores = Scores.made_with(folder, header)
            scoring.fill(scores, scores.missing(), pool, scorer, index)

    return run


def _pool_and_target(images: int) -> tuple[Pool, tf.data.Dataset]:
    folder = os.environ.get("KERAS_SSD_DATA")
    if folder is None:
        some = _chance(0, images + 10_000)
        pool = array_pool("chance", [f"{row:08d}" for row in range(images)], some[:images])
        return pool, tf.data.Dataset.from_tensor_slices(some[images:]).batch(BATCH)
    pool = open_pool("cifar10", data_dir=folder, download=False)
    data = ssd.data.load("cifar100", BATCH, validation=0, data_dir=folder, download=False)
    return _First(pool, images), data.test


class _First:
    """The first images of a pool."""

    def __init__(self, pool: Pool, size: int) -> None:
        self.name, self.size, self._pool = pool.name, size, pool

    def read(self, start: int = 0) -> Iterator[Record]:
        for _, record in zip(range(self.size - start), self._pool.read(start), strict=False):
            yield record


def _chance(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype("uint8")


# --- Memory --------------------------------------------------------------------------------------


def _in_a_process(size: int) -> float:
    """Megabytes at the most; a process each, as memory that was used once is not given back."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(_peak_of_a_pass, (size,))


def _peak_of_a_pass(size: int) -> float:
    """Of a pool whose images are made while they are read, with 10,000 images as the target."""
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Conv2D(8, 4, strides=4)(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    network = keras.Model(image, keras.layers.Dense(100)(x))
    target = tf.data.Dataset.from_tensor_slices(_chance(0, 10_000)).batch(BATCH)
    with tempfile.TemporaryDirectory() as folder:
        scores = ssd.data.mining.score(
            network, _Endless(size), pathlib.Path(folder, "scores"), target=target, verbose=0
        )
        assert sum(1 for _ in scores.records()) == size
    return round(_peak_megabytes(), 1)


class _Endless:
    """Some images again and again, each time with other values."""

    def __init__(self, size: int) -> None:
        self.name, self.size = "endless", size

    def read(self, start: int = 0) -> Iterator[Record]:
        images = _chance(1, 1_000)
        for row in range(start, self.size):
            yield Record(f"{row:08d}", "", images[row % 1_000] + np.uint8(row // 1_000 % 256))


if __name__ == "__main__":
    app.run(main)
