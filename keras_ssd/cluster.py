"""Who trains together, by the variable `TF_CONFIG`, and how workers meet at the start."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

_JOBS = ("chief", "worker")  # those that train together; TF_CONFIG may hold no other
_WATCH = """
import os, signal, sys, time
process, seconds, sentence = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
time.sleep(seconds)
if os.getppid() == process:
    print(sentence, file=sys.stderr, flush=True)
    os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
"""


@contextlib.contextmanager
def ended_after(seconds: float, sentence: str) -> Iterator[None]:
    """Ends this process with a sentence where the block takes longer.

    By another process: TensorFlow holds Python's lock while it waits for workers, and signals.
    """
    arguments = [sys.executable, "-c", _WATCH, str(os.getpid()), str(seconds), sentence]
    watch = subprocess.Popen(arguments)
    try:
        yield
    finally:
        watch.kill()
        watch.wait()


def read_config() -> dict[str, Any]:
    """The variable `TF_CONFIG`, checked."""
    text = os.environ.get("TF_CONFIG")
    example = (
        '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    if not text:
        raise ValueError(
            "The environment variable TF_CONFIG must tell the workers, and it is not set: give "
            f"each worker one such as {example}."
        )
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"TF_CONFIG must be JSON such as {example}, got {text!r} ({error})."
        ) from None
    for key in ("cluster", "task"):
        if not isinstance(config, Mapping) or not isinstance(config.get(key), Mapping):
            raise ValueError(f"TF_CONFIG must hold {key!r}, as in {example}, got {text!r}.")
    _check_cluster(config["cluster"], example)
    _check_task(config["cluster"], config["task"], example)
    return dict(config)


def _check_cluster(cluster: Mapping[str, Any], example: str) -> None:
    if not cluster or set(cluster) - set(_JOBS):
        raise ValueError(
            "The `cluster` of TF_CONFIG must hold `worker` and may hold `chief`, got "
            f"{sorted(cluster)}: leave every other job out of it."
        )
    addresses = [address for job in cluster.values() if isinstance(job, list) for address in job]
    if not all(isinstance(job, list) and job for job in cluster.values()) or not all(
        map(is_address, addresses)
    ):
        raise ValueError(
            "Each job in the `cluster` of TF_CONFIG must be a list of addresses host:port, as in "
            f"{example}, got {dict(cluster)}."
        )
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"The addresses in TF_CONFIG must differ, got {addresses}.")


def is_address(address: Any) -> bool:
    """Whether it is `host:port`."""
    host, _, port = str(address).rpartition(":")
    return isinstance(address, str) and bool(host) and port.isdecimal() and 0 < int(port) < 65_536


def _check_task(cluster: Mapping[str, Any], task: Mapping[str, Any], example: str) -> None:
    kind, index = task.get("type"), task.get("index")
    workers = cluster.get(kind, []) if isinstance(kind, str) else []
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(workers):
        raise ValueError(
            "The `task` of TF_CONFIG must be one of its `cluster`: a `type` of "
            f"{sorted(cluster)} and an `index` from 0, as in {example}, got {dict(task)}."
        )


def addresses_of(config: Mapping[str, Any]) -> list[str]:
    """Those of all workers."""
    return [address for job in config["cluster"].values() for address in job]


def meet(own: str, others: list[str], end: float, timeout: float) -> None:
    """Waits until all workers are there.

    TensorFlow would wait for them as well, for an hour and without a word. Each worker listens at
    its own address meanwhile, so that none has to be the first.
    """
    with _listening(own):
        for address in others:
            wait_for(address, end, timeout)


@contextlib.contextmanager
def _listening(address: str) -> Iterator[None]:
    port = int(address.rpartition(":")[2])
    kind = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    dualstack = kind == socket.AF_INET6
    try:
        server = socket.create_server(("", port), family=kind, dualstack_ipv6=dualstack)
    except OSError as error:
        raise ValueError(
            f"This worker's port {port} ({address} in TF_CONFIG) must be free, and it is not "
            f"({error}): end what listens there, or give another port to all workers."
        ) from None
    with server:
        yield


def wait_for(address: str, end: float, timeout: float) -> None:
    """Waits until something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    reason: OSError | str = "no time was left"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left):
                return
        except OSError as error:
            reason = error
            time.sleep(min(0.1, left))
    raise TimeoutError(
        f"Nobody answered at {address} within {timeout:g} s ({reason}): start what listens there, "
        "mend the address, or give it more time (`timeout=`)."
    )
