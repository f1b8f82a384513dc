"""Seconds that can be compared: contestants take turns, each ratio is the median of the turns'."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import tensorflow as tf

Contestant = Callable[[], object]  # does its work once, and has finished when it returns

WARM_UP = 2


def turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """The seconds of every contestant in every round, after a warm-up."""
    for _ in range(WARM_UP):
        for contestant in contestants.values():
            contestant()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(seconds: list[float]) -> float:
    """The median, to four digits."""
    return float(f"{statistics.median(seconds):.4g}")


def ratio(seconds: list[float], others: list[float], goal: float | None = None) -> dict[str, float]:
    """The median ratio of the turns, its spread, both medians and the goal."""
    ratios = sorted(a / b for a, b in zip(seconds, others, strict=True))
    figure = {
        "ratio": round(statistics.median(ratios), 3),
        "from": round(ratios[0], 3),
        "to": round(ratios[-1], 3),
        "seconds": median(seconds),
        "other seconds": median(others),
    }
    return figure if goal is None else {**figure, "goal": goal}


def matmul_rate(dtype: str, size: int = 2048) -> float:
    """FLOP/s of a product of square matrices: the arithmetic limit of this machine."""
    matrix = tf.cast(tf.random.stateless_normal([size, size], [0, 0]), dtype)
    product = tf.function(lambda: tf.matmul(matrix, matrix)[0, 0])
    return 2 * size**3 / min(turns({"matmul": lambda: product().numpy()}, 9)["matmul"])
