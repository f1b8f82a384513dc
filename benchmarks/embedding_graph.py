"""How much a step of EGA costs beyond its teacher's forward and its student's update.

The teacher's head is trained in the step, with its own optimizer; the bare parts have none.
"""

from __future__ import annotations

import keras
from contestants import BFLOAT16, FLOAT32, SMALL, WIDE, Setting, in_graph, optimizer, parts
from timing import Contestant, ratio, turns

import keras_ssd as ssd

GOAL = 1.05


class EgaSetting(Setting):
    """Networks with node embeddings; the teacher's logits and projection are not read."""

    @property
    def options(self) -> dict:
        """Views and objectives."""
        return ssd.presets.ega()

    def student(self) -> keras.Model:
        """The student, with its node embedding."""
        return ssd.with_node_embedding(super().student())

    def teacher(self) -> ssd.FrozenTeacher:
        """The pooled features of the larger network."""
        network = ssd.named_outputs(self.build(self.pair[0], FLOAT32), {"embedding": "embedding"})
        dtype = None if self.precision == FLOAT32 else "bfloat16"
        return ssd.frozen_encoder(network, output="embedding", dtype=dtype)


def measure(full: bool) -> dict[str, dict]:
    """Both pairs in the precision of long runs (full: in both)."""
    precisions = (FLOAT32, BFLOAT16) if full else (BFLOAT16,)
    figures = {}
    for pair in (SMALL, WIDE):
        for precision in precisions:
            keras.backend.clear_session()
            setting = EgaSetting(pair, precision)
            seconds = turns({"ours": _step(setting), "parts": parts(setting)}, rounds=15)
            name = f"{' -> '.join(pair)}, {precision}, ega"
            figures[name] = ratio(seconds["ours"], seconds["parts"], GOAL)
    return figures


def _step(setting: Setting) -> Contestant:
    teacher = setting.teacher()
    width = teacher.outputs["embedding"].shape[-1]
    head = ssd.node_embedding_head(width, setting.num_classes)
    distiller = ssd.Distiller(teacher, setting.student(), teacher_head=head, **setting.options)
    distiller.compile(optimizer=optimizer(), teacher_optimizer=optimizer())
    return in_graph(distiller, setting.batch())
