"""Configurations of replicas and workers, each in processes of its own, with a limit of time.

Logical devices must be set before TensorFlow starts, and two strategies in one process break each
other: so a script that compares configurations runs itself once a configuration.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import IO

import tensorflow as tf

from keras_ssd.distribution import get_strategy

_REPLICAS = "KERAS_SSD_REPLICAS"
_GRACE = 15.0  # seconds for the others to end by themselves once one has failed


@dataclasses.dataclass(frozen=True)
class Configuration:
    """So many replicas in one process, or so many workers of one replica each.

    Args:
        replicas: Logical CPU devices of the one process.
        workers: Processes that speak gRPC on 127.0.0.1; 0 for the one process.
    """

    replicas: int = 1
    workers: int = 0

    @property
    def name(self) -> str:
        """As it stands in a table."""
        count, kind = (self.workers, "worker") if self.workers else (self.replicas, "replica")
        return f"{count} {kind}{'s' * (count > 1)}"

    def environments(self) -> list[dict[str, str]]:
        """What each process finds in its environment; ports are free when this returns."""
        kept = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
        kept |= {"CUDA_VISIBLE_DEVICES": "-1", _REPLICAS: str(self.replicas)}
        kept.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        if not self.workers:
            return [kept]
        cluster = {"worker": [f"127.0.0.1:{port}" for port in _free_ports(self.workers)]}
        tasks = [{"type": "worker", "index": index} for index in range(self.workers)]
        configs = [json.dumps({"cluster": cluster, "task": task}) for task in tasks]
        return [{**kept, "TF_CONFIG": config} for config in configs]


def strategy_here() -> tf.distribute.Strategy:
    """The strategy of a process that `run` has started; to be called before any tensor is made."""
    if "TF_CONFIG" in os.environ:
        return get_strategy("multi_worker")
    replicas = int(os.environ.get(_REPLICAS, "1"))
    if replicas == 1:
        return tf.distribute.get_strategy()
    devices = [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, devices)
    return get_strategy("mirrored")


def run(
    configuration: Configuration, commands: Sequence[Sequence[str]], log: pathlib.Path, limit: float
) -> str | None:
    """Runs the processes of a configuration to their end, or stops them.

    Args:
        configuration: The configuration.
        commands: One for each of its processes.
        log: Where they write; process k to this name followed by k.
        limit: Seconds after which processes that still run are killed.

    Returns:
        None where all have ended well, else what happened to the first that has not.
    """
    paths = [log.with_name(f"{log.name}{index}") for index in range(len(commands))]
    files: list[IO[bytes]] = [path.open("wb") for path in paths]
    processes = [
        subprocess.Popen(list(command), env=environment, stdout=file, stderr=subprocess.STDOUT)
        for command, environment, file in zip(
            commands, configuration.environments(), files, strict=True
        )
    ]
    try:
        ended = _all_ended(processes, time.monotonic() + limit)
    finally:
        codes = [process.poll() for process in processes]
        for process in processes:
            process.kill()
            process.wait()
        for file in files:
            file.close()
    if all(code == 0 for code in codes):
        return None
    failed = [index for index, code in enumerate(codes) if code]
    index = failed[0] if failed else codes.index(None)
    who = f"worker {index}" if configuration.workers else "the process"
    if not ended and not failed:
        return f"{who} had not ended after {limit:g} seconds and was stopped"
    return f"{who} ended with code {codes[index]}: {_last_line(paths[index])}"


def _all_ended(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> bool:
    """Waits for all; no longer than until the deadline, and a while once one has failed."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return True
        if any(codes):
            deadline = min(deadline, time.monotonic() + _GRACE)
        time.sleep(0.1)
    return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:  # all are open at once, so that no two get the same
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _last_line(path: pathlib.Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it wrote nothing")
