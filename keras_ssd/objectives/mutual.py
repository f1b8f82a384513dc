"""Mutual: two networks that teach each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.batch import PEER, Batch
from keras_ssd.collectives import all_sum
from keras_ssd.objectives.objective import Objective


@keras.saving.register_keras_serializable(package="keras_ssd")
class Mutual(Objective):
    """An objective in both directions between the two networks of `with_peer`.

    Each network is once the student of the objective, and the other one, as a constant, its
    teacher; the two values are added. An objective that reads no teacher, such as `HardLabels`, is
    thus applied to both networks.

    Args:
        objective: The objective. Its own `weight` multiplies the sum.
        name: Name of the term's metric. Default: that of the objective.

    Raises:
        TypeError: If `objective` is none, or holds state, which two networks cannot share.

    Source: Zhang et al. 2018 (arXiv:1706.00384); for HSAKD the online variant of
    https://github.com/winycg/HSAKD.
    """

    def __init__(self, objective: Objective, *, name: str | None = None) -> None:
        fits = isinstance(objective, Objective) and not isinstance(objective, Mutual)
        if not fits or objective.state is not None:
            raise TypeError(
                "`objective` must be an Objective without state and no `Mutual` itself, got "
                f"{objective!r}."
            )
        super().__init__(weight=objective.weight, name=name or objective.name)
        self.objective = objective
        names = dict.fromkeys((*objective.student_outputs, *objective.teacher_outputs))
        self.student_outputs = (*names, *(PEER + output for output in names))
        self.needs_labels = objective.needs_labels
        self.needs_views = objective.needs_views
        self.compares_images = objective.compares_images

    def check_outputs(
        self,
        teacher: Mapping[str, Any] | None,  # noqa: ARG002 (each is the other's)
        student: Mapping[str, Any] | None,
        num_views: int,
    ) -> None:
        """Refuses networks that the objective refuses as teacher and student."""
        if student is not None:
            own, peer = _apart(student)
            self.objective.check_outputs(peer, own, num_views)
            self.objective.check_outputs(own, peer, num_views)

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum over this replica's rows in both directions, and the weight of the rows."""
        own, peer = _apart(batch.student)
        total, count = self.objective(_taught(batch, student=own, teacher=peer))
        peers_total, peers_count = self.objective(_taught(batch, student=peer, teacher=own))
        # A selective objective may keep more rows in one direction: two means are added, not sums.
        whole, peers_whole = all_sum((count, peers_count))
        means = tf.math.divide_no_nan(total, whole)
        means += tf.math.divide_no_nan(peers_total, peers_whole)
        return means * (whole + peers_whole), count + peers_count

    def diagnostic_names(self, student: Mapping[str, Any]) -> Sequence[str]:
        """Those of the objective, for both networks."""
        own, peer = _apart(student)
        peers = self.objective.diagnostic_names(peer)
        return [*self.objective.diagnostic_names(own), *(PEER + name for name in peers)]

    def diagnostics(self, batch: Batch) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """Those of the objective, for both networks."""
        own, peer = _apart(batch.student)
        peers = self.objective.diagnostics(_taught(batch, student=peer, teacher=own))
        return {
            **self.objective.diagnostics(_taught(batch, student=own, teacher=peer)),
            **{PEER + name: sums for name, sums in peers.items()},
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        objective = keras.saving.serialize_keras_object(self.objective)
        return {"objective": objective, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Mutual:
        """The objective of a `get_config`."""
        return cls(**{**config, "objective": _restored(config["objective"])})


def _restored(objective: Any) -> Objective:
    return keras.saving.deserialize_keras_object(objective)


def _taught(
    batch: Batch, student: Mapping[str, tf.Tensor], teacher: Mapping[str, tf.Tensor]
) -> Batch:
    constant = {name: tf.stop_gradient(tensor) for name, tensor in teacher.items()}
    return dataclasses.replace(batch, student=student, teacher=constant)


def _apart(outputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outputs of both networks, under the names that each gives them itself."""
    peer = {
        name.removeprefix(PEER): output for name, output in outputs.items() if name.startswith(PEER)
    }
    return {name: output for name, output in outputs.items() if not name.startswith(PEER)}, peer
