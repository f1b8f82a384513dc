"""Strategies of `tf.distribute` under which everything here trains: devices, hosts, TPU."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.arguments import is_number
from keras_ssd.cluster import addresses_of, ended_after, is_address, meet, read_config, wait_for
from keras_ssd.collectives import all_gather

_LONGEST = 7 * 24 * 3600
_NAMES = ("auto", "default", "mirrored", "multi_worker", "tpu")
_MADE: list[MultiWorkerStrategy] = []  # that of several workers in this process, once made


class MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """TensorFlow's strategy of several workers, under which Keras 3's `fit` runs.

    Keras 3.15 reduces the nested metrics of a step in one call, scalars along an axis that they do
    not have, and 8-bit images to learn their shape; TensorFlow 2.21 reduces one value at a time,
    scalars along no axis, and no small integers.
    """

    def reduce(self, reduce_op: Any, value: Any, axis: int | None = None) -> Any:
        """As TensorFlow's, for nested structures and small integers, too; scalars along no axis."""
        reduced = super().reduce

        def reduced_leaf(leaf: Any) -> Any:
            local = self.experimental_local_results(leaf)[0]  # what holds several has no dtype
            dtype = tf.as_dtype(getattr(local, "dtype", tf.float32))
            is_small = dtype.is_bool or (dtype.is_integer and dtype.size < 4)
            if is_small:
                leaf = self.run(tf.cast, args=(leaf, tf.int32))
            shape = getattr(leaf, "shape", tf.TensorShape(()))
            value = reduced(reduce_op, leaf, axis=axis if tf.TensorShape(shape).rank else None)
            return tf.cast(value, dtype) if is_small else value

        return tf.nest.map_structure(reduced_leaf, value)


def get_strategy(name: str = "auto", *, timeout: float = 300.0) -> tf.distribute.Strategy:
    """The strategy of a name; build networks and the `Distiller` in its `scope()`.

        strategy = ssd.distribution.get_strategy("mirrored")
        with strategy.scope():
            student = ssd.with_projection(ssd.models.build("resnet8x4", data.info))
            distiller = ssd.Distiller(teacher, student, **ssd.presets.sskd())
            distiller.compile(optimizer=..., metrics=["accuracy"])
        distiller.fit(data.train, epochs=240)

    The batch size of the data is that of the global batch; the strategy shares it out.

    Args:
        name: One of

            * `"default"`: one device, TensorFlow's default strategy.
            * `"mirrored"`: all GPUs of this machine; without one its logical CPU devices.
            * `"multi_worker"`: one process a worker, all started with the same lines. The
              environment variable `TF_CONFIG` tells each who they are:
              `{"cluster": {"worker": ["host1:2222", "host2:2222"]},
              "task": {"type": "worker", "index": 0}}`. Call it before anything of TensorFlow runs;
              a process has one.
            * `"tpu"`: a TPU; `"tpu:ADDRESS"` with its name or `host:port`. Without an
              address the environment variable `TPU_NAME` tells, else it is that of this machine.
            * `"auto"`: `"multi_worker"` where `TF_CONFIG` names several workers, `"tpu"` where
              there is one or `TPU_NAME` is set, `"mirrored"` where there are several GPUs, else
              `"default"`.

            Asked for again, a name gives the same strategy (but for a TPU, which is begun anew).
        timeout: Seconds, > 0 and at most a week, that workers wait for one another at the start,
            and that a TPU with an address may take to answer. Workers and TPUs that answer and then
            start nothing end this process with a sentence, as TensorFlow waits for them and lets
            nobody in.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: If the name is unknown or `TF_CONFIG` does not tell who trains.
        TimeoutError: If a worker or the TPU does not answer in time.
        RuntimeError: If TensorFlow ran before `"multi_worker"`, or there is no TPU.
    """
    kind, _, address = str(name).partition(":")
    if kind not in _NAMES or (address and kind != "tpu"):
        raise ValueError(f"`name` must be one of {', '.join(_NAMES)} or tpu:ADDRESS, got {name!r}.")
    if not is_number(timeout) or not 0 < timeout <= _LONGEST:
        raise ValueError(
            f"`timeout` must be > 0 seconds and at most a week ({_LONGEST:,}), got {timeout!r}."
        )
    if kind == "auto":
        kind = _found()
    if kind == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return _mirrored(*(device.name for device in devices))
    if kind == "multi_worker":
        return _multi_worker(timeout)
    if kind == "tpu":
        return _tpu(address or os.environ.get("TPU_NAME", ""), timeout)
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Whether this process writes the files of a run: true of exactly one worker.

    Args:
        strategy: A strategy; None for the one whose scope is open.

    Returns:
        True where there is one worker.
    """
    resolver = (strategy or tf.distribute.get_strategy()).cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


@contextlib.contextmanager
def chief_path(
    path: str | os.PathLike, strategy: tf.distribute.Strategy | None = None
) -> Iterator[pathlib.Path]:
    """The path for the chief, and for every other worker one that is thrown away.

    All workers save, the chief's file stays, and it is there when any of them goes on:

        with ssd.distribution.chief_path("student.keras", strategy) as path:
            student.save(path)

    Keras makes variables while it saves, and in the scope of several workers TensorFlow makes none
    unless all of them do.

    Args:
        path: A file to write.
        strategy: A strategy; None for the one whose scope is open.

    Yields:
        Where this process writes.
    """
    path = pathlib.Path(path)
    strategy = strategy or tf.distribute.get_strategy()
    try:
        if is_chief(strategy):
            yield path
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield pathlib.Path(folder, path.name)
    finally:
        with lost_workers_told(strategy):
            _gathered(strategy, 0)


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Refuses a strategy of several workers under which Keras' `fit` fails."""
    bare = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if bare and not isinstance(strategy, MultiWorkerStrategy):
        raise ValueError(
            f"Keras {keras.__version__} fails to `fit` under MultiWorkerMirroredStrategy: use "
            '`keras_ssd.distribution.get_strategy("multi_worker")`, which mends it.'
        )


def check_same(strategy: tf.distribute.Strategy, what: str, number: int) -> None:
    """Refuses, on all workers, a number that is not the same on each of them.

    Args:
        strategy: Of the workers, each of which calls this.
        what: What the number is, for the sentence.
        number: This worker's, an integer.

    Raises:
        ValueError: If another worker's is another one.
    """
    numbers = _gathered(strategy, number)
    if len(set(numbers)) > 1:
        raise ValueError(
            f"{what} must be the same on all workers, got {numbers}, one a replica: give all of "
            "them one folder that each can read, on a file system that they share."
        )


def take_from_chief(strategy: tf.distribute.Strategy, variables: Sequence[keras.Variable]) -> None:
    """Gives all workers the chief's values of what each has kept by itself.

    Args:
        strategy: Of the workers, each of which calls this.
        variables: Of floats, such as the moving averages of batch normalisation.
    """
    floats = [one for one in variables if keras.backend.is_float_dtype(one.dtype)]
    if not (floats and isinstance(strategy, MultiWorkerStrategy)):
        return
    gather = tf.function(lambda: [all_gather(one.value[tf.newaxis])[0] for one in floats])
    for variable, value in zip(floats, strategy.run(gather), strict=True):
        variable.assign(strategy.experimental_local_results(value)[0])


def warn_if_alone(strategy: tf.distribute.Strategy) -> None:
    """Warns of a worker that trains by itself.

    Args:
        strategy: That in whose scope the model was made.
    """
    if _MADE and not isinstance(strategy, MultiWorkerStrategy):
        warnings.warn(
            "This Distiller was made outside the scope of the workers' strategy, so each worker "
            "trains by itself and writes the same files: make networks, Distiller and optimizer "
            "inside `with strategy.scope():`.",
            stacklevel=4,
        )


@contextlib.contextmanager
def lost_workers_told(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """While it lasts, what TensorFlow raises where a worker is lost says so in one sentence."""
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
    try:
        yield
    except (*lost, tf.errors.InternalError) as error:
        is_lost = isinstance(error, lost) or "Collective ops is aborted" in str(error)
        if not (is_lost and isinstance(strategy, MultiWorkerStrategy)):
            raise
        raise RuntimeError(
            f"Another of the {_size(strategy)} workers ended or cannot be reached, so this one "
            "stops, too: start all of them again, and `callbacks.Backup` goes on after the last "
            "whole epoch."
        ) from error


def _gathered(strategy: tf.distribute.Strategy, number: int) -> list[int]:
    """The numbers of all replicas of the workers, who wait for one another here."""
    if not isinstance(strategy, MultiWorkerStrategy):
        return [number]
    mine = tf.constant([number])
    of_all = strategy.run(tf.function(lambda: all_gather(mine)))
    return strategy.experimental_local_results(of_all)[0].numpy().tolist()


def _size(strategy: tf.distribute.Strategy) -> int:
    return sum(map(len, strategy.cluster_resolver.cluster_spec().as_dict().values()))


def _found() -> str:
    """What `"auto"` stands for here."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if text not in ("", "{}") and len(addresses_of(read_config())) > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "default"


@functools.cache  # TensorFlow numbers collectives as it does those of several workers
def _mirrored(*devices: str) -> tf.distribute.MirroredStrategy:
    return tf.distribute.MirroredStrategy(devices)


def _multi_worker(timeout: float) -> MultiWorkerStrategy:
    config = read_config()
    if _MADE:  # TensorFlow numbers the collectives of each from 0, and takes one's for another's
        return _MADE[0]
    addresses = addresses_of(config)
    task = config["task"]
    own = config["cluster"][task["type"]][task["index"]]
    end = time.monotonic() + timeout
    meet(own, [address for address in addresses if address != own], end, timeout)
    late = (
        f"The workers {', '.join(addresses)} answered, but one of them did not start within "
        f"{timeout:g} s: end what is left of an earlier job and start all of them again."
    )
    try:
        with ended_after(max(end - time.monotonic(), 1.0), late):
            strategy = MultiWorkerStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise RuntimeError(
            'TensorFlow ran before `get_strategy("multi_worker")`: call it first, before networks '
            f"and data are made ({error})."
        ) from error
    except tf.errors.OpError as error:
        raise RuntimeError(
            f"The workers {', '.join(addresses)} could not start together: end what is left of an "
            f"earlier job and start all of them again ({error.message})."
        ) from error
    _MADE.append(strategy)
    return strategy


def _tpu(address: str, timeout: float) -> tf.distribute.Strategy:
    end = time.monotonic() + timeout
    if "://" not in address and is_address(address):
        address = f"grpc://{address}"
    if address.startswith("grpc://"):
        place = address.removeprefix("grpc://")
        if not is_address(place):
            raise ValueError(f"The address of a TPU is grpc://host:port, got {address!r}.")
        wait_for(place, end, timeout)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address or "local")
        if address not in ("", "local"):
            late = (
                f"The TPU at {address!r} did not start within {timeout:g} s: check its address "
                "with your provider, or give it more time (`timeout=`)."
            )
            with ended_after(max(end - time.monotonic(), 1.0), late):
                tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"There must be a TPU {f'at {address!r}' if address else 'in this machine'}, and none "
            f"could be started ({reason}): check its name with your provider, or use another "
            "strategy."
        ) from error
