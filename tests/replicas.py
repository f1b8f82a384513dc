"""Runs a function on the replicas of a strategy, each with its own rows."""

import tensorflow as tf


def on_replicas(strategy, function, *tensors):
    """What each replica gets; each argument is a list of one tensor a replica."""
    arguments = [_one_each(strategy, tensor) for tensor in tensors]
    results = tf.function(lambda: strategy.run(function, args=arguments))()
    parts = [strategy.experimental_local_results(part) for part in tf.nest.flatten(results)]
    return [tf.nest.pack_sequence_as(results, part) for part in zip(*parts, strict=True)]


def _one_each(strategy, tensors):
    return strategy.experimental_distribute_values_from_function(
        lambda context: tensors[context.replica_id_in_sync_group]
    )
