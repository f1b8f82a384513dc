"""SSKD on CIFAR-100 in three phases, beside the same student without a teacher and with plain KD.

The published setting (240 epochs, batch 64, all 50,000 training images) is the default:

    python examples/sskd_cifar100.py --data_dir ~/tensorflow_datasets \
        --teacher resnet56 --teacher_checkpoint resnet56.pth --student resnet20

Published for this pair (methods with the authors' teacher, 73.44 %): student alone 69.63, KD 70.66,
SSKD 71.49 % (Xu et al. 2020, arXiv:2006.07114, results table of the authors' repository).
`--smoke` tries the script in a minute on data that needs no download; `--help` lists all settings.
"""

from __future__ import annotations

import functools

from absl import app, flags
from experiment import Phase, run

import keras_ssd as ssd

flags.FLAGS.set_default("nesterov", False)
flags.FLAGS.set_default("output", "runs/sskd_cifar100")


def main(_: list[str]) -> None:
    """Runs the three phases and prints a table."""
    with_head = functools.partial(ssd.with_projection, backbone="frozen")
    heads = Phase(ssd.presets.sskd_pretext, with_head, drops=(0.5, 0.75))
    run(("labels_only", "kd", "sskd"), (heads,))


if __name__ == "__main__":
    app.run(main)
