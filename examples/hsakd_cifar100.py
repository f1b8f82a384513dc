"""HSAKD on CIFAR-100, beside the same student without a teacher.

The published setting (240 epochs, batch 64, Nesterov, all 50,000 training images) is the default:

    python examples/hsakd_cifar100.py --data_dir ~/tensorflow_datasets \
        --teacher resnet56 --teacher_checkpoint resnet56.pth --student resnet20

trains the auxiliary classifiers of a trained teacher on its frozen backbone for 100 epochs (the
authors' Teacher); `--joint` trains teacher and classifiers together from scratch (their Teacher*).
For mobilenet_v2, shufflenet_v1 and shufflenet_v2 as students the authors take `--learning_rate
0.01`. `--few_shot 0.25` gives students a quarter of the images, `--label_noise 0.4` wrong labels.

Published for this pair: student alone 69.62, HSAKD 72.58, HSAKD* 73.73 % (Yang et al. 2021,
arXiv:2107.13715, as repeated on the authors' poster). `--smoke` tries the script in a minute on
data that needs no download; `--help` lists all settings.
"""

from __future__ import annotations

import functools

from absl import app, flags
from experiment import Phase, run

import keras_ssd as ssd

_JOINT = flags.DEFINE_bool("joint", False, "Train teacher and classifiers together, from scratch.")
flags.FLAGS.set_default("head_epochs", 100)
flags.FLAGS.set_default("stem_stride", 1)
flags.FLAGS.set_default("output", "runs/hsakd_cifar100")


def main(_: list[str]) -> None:
    """Trains teacher and students and prints a table."""
    if _JOINT.value:
        with_heads = ssd.with_auxiliary_classifiers
        phase = Phase(ssd.presets.hsakd_teacher, with_heads, heads_alone=False)
    else:
        with_heads = functools.partial(ssd.with_auxiliary_classifiers, backbone="frozen")
        phase = Phase(ssd.presets.hsakd_teacher, with_heads, drops=(0.3, 0.6, 0.9))
    run(("labels_only", "hsakd"), (phase,))


if __name__ == "__main__":
    app.run(main)
