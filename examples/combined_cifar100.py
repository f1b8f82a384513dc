"""SSKD and HSAKD in one step on CIFAR-100, beside every other method on the same images.

    python examples/combined_cifar100.py --data_dir ~/tensorflow_datasets \
        --teacher resnet56 --teacher_checkpoint resnet56.pth --student resnet20

trains a projection head and auxiliary classifiers on the frozen teacher in one run, and then five
students from the same first weights: labels alone, KD, SSKD, HSAKD and the combination.
`--methods labels_only,combined` trains some of them, `--crop shared` crops the four views of an
image alike (the combination and SSKD crop each view by itself, HSAKD all alike), `--few_shot 0.25`
gives students a quarter of the images, `--label_noise 0.4` wrong labels. `--teacher_with_heads`
takes the teacher of an earlier run. `--smoke` tries the script in a minute on data that needs no
download; `--help` lists all settings.
"""

from __future__ import annotations

from absl import app, flags
from experiment import METHODS, Experiment, with_all_heads

import keras_ssd as ssd

flags.FLAGS.set_default("output", "runs/combined_cifar100")


def main(_: list[str]) -> None:
    """Trains teacher and students and prints a table."""
    Experiment(
        methods=tuple(METHODS),
        teacher_preset=ssd.presets.combined_teacher,
        teacher_heads=lambda teacher: with_all_heads(teacher, backbone="frozen"),
        head_drops=(0.5, 0.75),
    ).run()


if __name__ == "__main__":
    app.run(main)
