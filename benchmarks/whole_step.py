"""The SSKD step as recommended against the plain one, and both against the arithmetic limit."""

from __future__ import annotations

import math

import keras
from contestants import BFLOAT16, FLOAT32, SMALL, WIDE, Setting, step
from timing import matmul_rate, median, ratio, turns

GOALS = {SMALL: 0.38, WIDE: 0.28}
LIMIT_GOALS = {(WIDE, BFLOAT16): 1.5}


def measure(full: bool) -> dict[str, dict]:
    """Both pairs (full: more turns)."""
    rates = {policy: matmul_rate(policy.removeprefix("mixed_")) for policy in (FLOAT32, BFLOAT16)}
    figures: dict[str, dict] = {
        f"matrix products, {policy.removeprefix('mixed_')}": {"TFLOP/s": round(rate / 1e12, 3)}
        for policy, rate in rates.items()
    }
    for pair in (SMALL, WIDE):
        keras.backend.clear_session()
        plain = Setting(pair, fused=False)
        contestants = {policy: step(Setting(pair, policy)) for policy in rates}
        rounds = (9 if pair == SMALL else 5) * (3 if full else 1)
        seconds = turns({**contestants, "plain": step(plain)}, rounds)
        names = " -> ".join(pair)
        figures[f"{names}, frozen fast teacher, mixed_bfloat16 / plain float32"] = ratio(
            seconds[BFLOAT16], seconds["plain"], GOALS[pair]
        )
        figures[f"{names}, frozen fast teacher, float32 / plain float32"] = ratio(
            seconds[FLOAT32], seconds["plain"]
        )
        for policy, rate in rates.items():
            limit = step_flops(plain) / rate
            figure = {
                "ratio": round(median(seconds[policy]) / limit, 3),
                "seconds": median(seconds[policy]),
                "other seconds": float(f"{limit:.4g}"),
            }
            if (pair, policy) in LIMIT_GOALS:
                figure["goal"] = LIMIT_GOALS[pair, policy]
            figures[f"{names}, {policy} / convolutions and products at the rate above"] = figure
    return figures


def step_flops(setting: Setting) -> int:
    """Arithmetic of a step: the teacher once, the student forward and its two gradients."""
    rows = setting.rows()[0].shape[0]
    teacher, student = (linear_flops(setting.build(name, FLOAT32)) for name in setting.pair)
    return rows * (sum(teacher) + 3 * sum(student) - student[0])  # no gradient of the images


def linear_flops(network: keras.Model) -> list[int]:
    """Multiplications and additions a row of each convolution and dense layer, in order."""
    flops = []
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            places = math.prod(layer.output.shape[1:3])
            flops.append(2 * places * math.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            flops.append(2 * math.prod(layer.kernel.shape))
    return flops
