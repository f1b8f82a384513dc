"""A training step on several replicas, and the collectives of the package that are in it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
from contestants import IMAGES, Setting, optimizer
from timing import Contestant

import keras_ssd as ssd

_Calls = list[tuple[str, list[tf.TensorSpec]]]  # which of them, and of what


def step_on(strategy: tf.distribute.Strategy, setting: Setting) -> tuple[ssd.Distiller, Contestant]:
    """A Distiller, and its step on all replicas, each with its rows of the global batch."""
    with strategy.scope():
        distiller = ssd.Distiller(setting.teacher(), setting.student(), **setting.options)
        distiller.compile(optimizer=optimizer())
    count = strategy.num_replicas_in_sync
    batch = tuple(
        _distributed(strategy, np.array_split(part.numpy(), count)) for part in setting.batch()
    )

    @tf.function
    def step() -> Any:
        return strategy.run(lambda *data: distiller.train_step(data)["loss"], batch)

    return distiller, lambda: _finished(strategy, step())


def collectives_of(
    step: Contestant, distiller: ssd.Distiller, strategy: tf.distribute.Strategy
) -> tuple[int, Contestant]:
    """How many collectives a step has, which was not run before, and what makes them alone.

    Without the sum of the weights' gradients, which is Keras'.
    """
    weights = [tuple(variable.shape) for variable in distiller.student.trainable_variables]
    with _noted(weights) as heard:
        step()
    calls = [heard[replica] for replica in sorted(heard)]
    if not calls:
        return 0, lambda: None
    kinds = [kind for kind, _ in calls[0]]
    tensors = [
        [
            _distributed(strategy, [tf.ones(s.shape, s.dtype).numpy() for s in of_all])
            for of_all in zip(*(specs for _, specs in call), strict=True)
        ]
        for call in zip(*calls, strict=True)
    ]

    def in_turn(tensors: list[list[tf.Tensor]]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        done: list[tf.Tensor] = []
        for kind, some in zip(kinds, tensors, strict=True):
            with tf.control_dependencies(done):
                some = [tf.identity(tensor) for tensor in some]
            if kind == "all_gather":
                done = [context.all_gather(some[0], axis=0)]
            else:
                done = context.all_reduce(tf.distribute.ReduceOp.SUM, some)
        return done

    alone = tf.function(lambda: strategy.run(in_turn, (tensors,)))
    return len(kinds), lambda: _finished(strategy, alone())


@contextlib.contextmanager
def _noted(left_out: list[tuple[int, ...]]) -> Iterator[dict[int, _Calls]]:
    """The collectives that are traced meanwhile, by replica, but that of tensors of some shapes.

    A gather forgets the number of rows; that of its gradient is the number of all images.
    """
    heard: dict[int, _Calls] = defaultdict(list)

    def noting(kind: str, place: int) -> Any:
        original = getattr(tf.distribute.ReplicaContext, kind)

        def call(context: Any, *arguments: Any, **options: Any) -> Any:
            replica = int(tf.get_static_value(context.replica_id_in_sync_group))
            specs = [
                tf.TensorSpec([IMAGES if d is None else d for d in tensor.shape], tensor.dtype)
                for tensor in map(tf.convert_to_tensor, tf.nest.flatten(arguments[place]))
            ]
            if [tuple(spec.shape) for spec in specs] != left_out:
                heard[replica].append((kind, specs))
            return original(context, *arguments, **options)

        return mock.patch.object(tf.distribute.ReplicaContext, kind, call)

    with noting("all_gather", 0), noting("all_reduce", 1):
        yield heard


def _distributed(strategy: tf.distribute.Strategy, parts: list[np.ndarray]) -> Any:
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def _finished(strategy: tf.distribute.Strategy, results: Any) -> None:
    """Waits for what all replicas give."""
    for part in tf.nest.flatten(results):
        for tensor in strategy.experimental_local_results(part):
            tensor.numpy()
