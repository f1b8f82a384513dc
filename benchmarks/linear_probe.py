"""What the features of CIFAR-100 networks tell about CIFAR-10: the table of docs/linear_probe.md.

    python benchmarks/linear_probe.py --data DATA

DATA holds `tfds/cifar10` and `teachers/NAME.pth`, published weights of CIFAR-100 networks.
"""

from __future__ import annotations

import pathlib
import time

import keras
import numpy as np
from absl import app, flags, logging

import keras_ssd as ssd

CIFAR100 = {  # what the networks were trained on; their normalisation goes with them
    "num_classes": 100,
    "input_shape": (32, 32, 3),
    "mean": (0.5071, 0.4867, 0.4408),
    "std": (0.2675, 0.2565, 0.2761),
}

_DATA = flags.DEFINE_string("data", None, "Folder that holds `tfds` and `teachers`.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Probes of each network, each from another seed.")


def main(_: list[str]) -> None:
    """Prints a row a network."""
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(_DATA.value)
    data = ssd.data.load("cifar10", 50, validation=0, data_dir=folder / "tfds", download=False)
    print(f"{data.info.counts}\n\n| | width | last epoch | best epoch | seeds | seconds |")
    print("|---|---|---|---|---|---|")
    for name in ("resnet20", "resnet56", "wrn_16_2"):
        network = ssd.models.build(name, **CIFAR100)
        ssd.checkpoints.load_torch_weights(network, folder / "teachers" / f"{name}.pth")
        _print_row(name, [network] * _SEEDS.value, data)
    _print_row("resnet20, random weights", [_random(seed) for seed in range(_SEEDS.value)], data)


def _random(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return ssd.models.build("resnet20", **CIFAR100)


def _print_row(title: str, networks: list[keras.Model], data: ssd.data.Splits) -> None:
    start = time.perf_counter()
    found = [
        ssd.evaluation.linear_probe(network, data.train, data.test, seed=seed)
        for seed, network in enumerate(networks)
    ]
    seconds = (time.perf_counter() - start) / len(found)
    last, best = (
        [100 * share for share in shares]
        for shares in ([f.accuracy for f in found], [f.best_accuracy for f in found])
    )
    seeds = ", ".join(f"{share:.1f}" for share in last)
    print(
        f"| {title} | {found[0].feature_width} | {_mean(last)} | {_mean(best)} | {seeds} | "
        f"{seconds:.0f} |",
        flush=True,
    )


def _mean(shares: list[float]) -> str:
    spread = np.std(shares, ddof=1) if len(shares) > 1 else 0.0
    return f"{np.mean(shares):.1f} +- {spread:.1f} %"


if __name__ == "__main__":
    app.run(main)
