"""What `freeze` makes of a teacher's forward, against the network as Keras runs it in float32."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from contestants import FLOAT32, Setting, with_keras_batch_norm
from timing import Contestant, ratio, turns

import keras_ssd as ssd

GOALS = {  # name: (folded bfloat16, folding alone)
    "resnet56": (0.20, 0.90),
    "resnet32x4": (0.15, 0.90),
}
MORE = ("resnet20", "resnet110")


def measure(full: bool) -> dict[str, dict]:
    """The teachers of the two pairs (full: two more)."""
    figures = {}
    for name in [*GOALS, *(MORE if full else ())]:
        keras.backend.clear_session()
        setting = Setting((name, name), preset="kd")
        network = setting.build(name, FLOAT32)
        plain = with_keras_batch_norm(network)
        rows = Setting((name, name), preset="sskd").rows()[0]
        seconds = turns(
            {
                "plain": _forward(lambda x, plain=plain: plain(x, training=False), rows),
                "fused": _forward(lambda x, network=network: network(x, training=False), rows),
                "folded": _forward(ssd.freeze(network), rows),
                "bfloat16": _forward(ssd.freeze(network, dtype="bfloat16"), rows),
            },
            5 if "x4" in name else 9,
        )
        half, alone = GOALS.get(name, (None, None))
        base = seconds["plain"]
        figures[f"{name}, folded, bfloat16"] = ratio(seconds["bfloat16"], base, half)
        figures[f"{name}, folded, float32"] = ratio(seconds["folded"], base, alone)
        figures[f"{name}, fused kernel, float32"] = ratio(seconds["fused"], base)
    return figures


def _forward(network: Callable, rows: tf.Tensor) -> Contestant:
    function = tf.function(lambda: tf.nest.flatten(network(rows))[0])
    return lambda: function().numpy()
