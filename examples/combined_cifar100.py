"""SSKD and HSAKD in one step on CIFAR-100, beside every other method on the same images.

    python examples/combined_cifar100.py --data_dir ~/tensorflow_datasets \
        --teacher resnet56 --teacher_checkpoint resnet56.pth --student resnet20

trains a projection head and auxiliary classifiers on the frozen teacher in one run, and then five
students from the same first weights: labels alone, KD, SSKD, HSAKD and the combination.
`--methods labels_only,combined` trains some of them, `--crop shared` crops the four views of an
image alike (the combination and SSKD crop each view by itself, HSAKD all alike), `--few_shot 0.25`
gives students a quarter of the images, `--label_noise 0.4` wrong labels. `--teacher_with_heads`
takes the teacher of an earlier run. `--joint` trains the teacher together with its auxiliary
classifiers from scratch (HSAKD's Teacher*), and then its projection head. `--smoke` tries the
script in a minute on data that needs no download; `--help` lists all settings.
"""

from __future__ import annotations

import functools

from absl import app, flags
from experiment import METHODS, Phase, run, with_all_heads

import keras_ssd as ssd

_JOINT = flags.DEFINE_bool("joint", False, "Train teacher and classifiers together, from scratch.")
flags.FLAGS.set_default("stem_stride", 1)
flags.FLAGS.set_default("output", "runs/combined_cifar100")


def main(_: list[str]) -> None:
    """Trains teacher and students and prints a table."""
    drops = (0.5, 0.75)
    if _JOINT.value:
        with_projection = functools.partial(ssd.with_projection, backbone="frozen")
        phases = (
            Phase(ssd.presets.hsakd_teacher, ssd.with_auxiliary_classifiers, heads_alone=False),
            Phase(ssd.presets.sskd_pretext, with_projection, drops),
        )
    else:
        with_heads = functools.partial(with_all_heads, backbone="frozen")
        phases = (Phase(ssd.presets.combined_teacher, with_heads, drops),)
    run(tuple(METHODS), phases)


if __name__ == "__main__":
    app.run(main)
