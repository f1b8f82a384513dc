"""Strategies by name, and what is told where they cannot be had."""

import json
import socket
import subprocess
import sys
import threading
import time

import keras
import pytest
import tensorflow as tf
from distiller.one_and_two import examples, network

import keras_ssd as ssd
from keras_ssd import cluster, distribution
from keras_ssd.distribution import get_strategy, is_chief

TWO = {"worker": ["127.0.0.1:23001", "127.0.0.1:23002"]}
FIRST = {"type": "worker", "index": 0}


def set_config(monkeypatch, cluster, task):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# Names


def test_default_is_that_of_tensorflow():
    assert get_strategy("default") is tf.distribute.get_strategy()


def test_auto_is_the_default_where_there_is_one_device(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    assert get_strategy() is tf.distribute.get_strategy()


def test_auto_is_the_default_for_a_worker_alone(monkeypatch):
    set_config(monkeypatch, {"worker": ["127.0.0.1:23001"]}, FIRST)
    assert get_strategy("auto") is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("gpus", "tpus", "variables", "kind"),
    [
        (1, 0, {}, "default"),
        (2, 0, {"TF_CONFIG": ""}, "mirrored"),
        (0, 0, {"TF_CONFIG": "{}"}, "default"),
        (2, 0, {}, "mirrored"),
        (2, 1, {}, "tpu"),
        (0, 0, {"TPU_NAME": "mine"}, "tpu"),
        (2, 1, {"TF_CONFIG": json.dumps({"cluster": TWO, "task": FIRST})}, "multi_worker"),
    ],
)
def test_auto_takes_what_is_there(monkeypatch, gpus, tpus, variables, kind):
    devices = {"GPU": gpus, "TPU": tpus}
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: [None] * devices.get(kind, 1)
    )
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for made in ("_mirrored", "_multi_worker", "_tpu"):
        monkeypatch.setattr(distribution, made, lambda *_, made=made: made.removeprefix("_"))
    default = tf.distribute.get_strategy()
    assert get_strategy("auto") == (default if kind == "default" else kind)


def test_mirrored_takes_every_logical_device_and_is_made_once(monkeypatch):
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", list)  # a second one breaks the first
    distribution._mirrored.cache_clear()
    strategy = get_strategy("mirrored")
    assert len(strategy) == len(tf.config.list_logical_devices("CPU")) == 2
    assert get_strategy("mirrored") is strategy
    distribution._mirrored.cache_clear()


@pytest.mark.parametrize("name", ["gpu", "", "mirrored:1", None, "multi_worker:host:1"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match="`name` must be one of auto, default, mirrored"):
        get_strategy(name)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e6, "a", None])
def test_a_timeout_is_above_0_and_at_most_a_week(timeout):
    with pytest.raises(ValueError, match="`timeout` must be > 0 seconds"):
        get_strategy("default", timeout=timeout)


# TF_CONFIG


def test_several_workers_need_a_config(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="TF_CONFIG must tell the workers, and it is not set"):
        get_strategy("multi_worker")


@pytest.mark.parametrize("text", ["worker", "{'cluster': {}}", '{"cluster": '])
@pytest.mark.parametrize("name", ["multi_worker", "auto"])
def test_a_config_that_is_no_json_is_refused(monkeypatch, text, name):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must be JSON such as"):
        get_strategy(name)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("[]", "cluster"),
        ("3", "cluster"),
        (json.dumps({"task": FIRST}), "cluster"),
        (json.dumps({"cluster": TWO}), "task"),
        (json.dumps({"cluster": TWO, "task": 0}), "task"),
    ],
)
def test_a_config_without_its_parts_is_refused(monkeypatch, text, missing):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=f"TF_CONFIG must hold '{missing}'"):
        get_strategy("multi_worker")


@pytest.mark.parametrize(
    "task",
    [
        {},
        {"type": "worker"},
        {"index": 0},
        {"type": "worker", "index": 2},
        {"type": "worker", "index": -1},
        {"type": "worker", "index": "0"},
        {"type": "worker", "index": True},
        {"type": "chief", "index": 0},
        {"type": ["worker"], "index": 0},
    ],
    ids=str,
)
def test_a_task_that_is_not_in_the_cluster_is_refused(monkeypatch, task):
    set_config(monkeypatch, TWO, task)
    with pytest.raises(ValueError, match="`task` of TF_CONFIG must be one of its `cluster`"):
        get_strategy("multi_worker")


@pytest.mark.parametrize("cluster", [{}, {**TWO, "ps": ["a:1"]}, {**TWO, "evaluator": ["a:1"]}])
def test_other_jobs_are_refused(monkeypatch, cluster):
    set_config(monkeypatch, cluster, FIRST)
    with pytest.raises(ValueError, match="must hold `worker` and may hold `chief`"):
        get_strategy("multi_worker")


@pytest.mark.parametrize(
    "workers", ["a:1", [], {"0": "a:1"}, ["a"], ["a:b"], [":1"], ["a:0"], ["a:70000"], [1]], ids=str
)
def test_addresses_are_host_and_port(monkeypatch, workers):
    set_config(monkeypatch, {"worker": workers}, FIRST)
    with pytest.raises(ValueError, match="must be a list of addresses host:port"):
        get_strategy("multi_worker")


def test_addresses_differ(monkeypatch):
    set_config(monkeypatch, {"chief": ["a:1"], "worker": ["a:1"]}, FIRST)
    with pytest.raises(ValueError, match="addresses in TF_CONFIG must differ"):
        get_strategy("multi_worker")


# Workers that do not come


def test_a_worker_that_does_not_come_is_named(monkeypatch):
    nobody = f"127.0.0.1:{free_port()}"
    set_config(monkeypatch, {"worker": [f"127.0.0.1:{free_port()}", nobody]}, FIRST)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"Nobody answered at {nobody} within 0\.5 s"):
        get_strategy("multi_worker", timeout=0.5)
    assert time.monotonic() - start < 20


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        set_config(monkeypatch, {"worker": [f"127.0.0.1:{port}", "127.0.0.1:1"]}, FIRST)
        with pytest.raises(ValueError, match=f"port {port} .* must be free"):
            get_strategy("multi_worker", timeout=5)


def test_workers_that_all_wait_for_each_other_meet():
    places = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    met = []

    def come(number):
        time.sleep(0.2 * number)
        others = [place for place in places if place != places[number]]
        cluster.meet(places[number], others, time.monotonic() + 10, timeout=10)
        with cluster._listening(places[number]):  # as TensorFlow's server does now
            met.append(number)
            time.sleep(1.0)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(met) == [0, 1, 2]


def test_tensorflow_must_not_have_run_before(monkeypatch):
    tf.zeros([])
    set_config(monkeypatch, {"worker": [f"127.0.0.1:{free_port()}"]}, FIRST)
    with pytest.raises(RuntimeError, match=r"TensorFlow ran before `get_strategy\(.*call it first"):
        get_strategy("multi_worker", timeout=5)


def test_no_time_is_told(monkeypatch):
    set_config(monkeypatch, {"worker": [f"127.0.0.1:{free_port()}", "127.0.0.1:1"]}, FIRST)
    with pytest.raises(TimeoutError, match="no time was left"):
        get_strategy("multi_worker", timeout=1e-9)


def test_workers_meet_over_ipv6():
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    address = f"[::1]:{free_port()}"
    with cluster._listening(address):
        cluster.wait_for(address, time.monotonic() + 5, timeout=5)


def test_what_takes_too_long_ends_the_process_with_a_sentence():
    code = (
        "import ctypes, keras_ssd.cluster as d\n"
        "with d.ended_after(1.0, 'It took too long.'):\n"
        "    ctypes.PyDLL(None).sleep(60)"  # holds Python's lock, as TensorFlow does
    )
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "It took too long." in ended.stderr
    assert time.monotonic() - start < 55


# TPU


@pytest.mark.parametrize("address", ["grpc://host", "grpc://:8470", "grpc://host:x"])
def test_the_address_of_a_tpu_has_a_port(address):
    with pytest.raises(ValueError, match="The address of a TPU is grpc://host:port"):
        get_strategy(f"tpu:{address}")


@pytest.mark.parametrize("scheme", ["", "grpc://"])
def test_a_tpu_that_does_not_answer_is_named(scheme):
    place = f"127.0.0.1:{free_port()}"
    with pytest.raises(TimeoutError, match=rf"Nobody answered at {place} within 0\.5 s"):
        get_strategy(f"tpu:{scheme}{place}", timeout=0.5)


def test_a_tpu_that_takes_the_connection_and_says_nothing_ends_the_process():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = f"127.0.0.1:{mute.getsockname()[1]}"
        code = f"import keras_ssd; keras_ssd.distribution.get_strategy('tpu:{place}', timeout=3.0)"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode != 0
    assert f"The TPU at 'grpc://{place}' did not start within 3 s: check its" in ended.stderr


def test_the_name_of_a_tpu_comes_from_the_environment(monkeypatch):
    place = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("TPU_NAME", f"grpc://{place}")
    with pytest.raises(TimeoutError, match=f"Nobody answered at {place}"):
        get_strategy("tpu", timeout=0.2)


# Who writes


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "chief"),
    [
        (TWO, "worker", 0, True),
        (TWO, "worker", 1, False),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "chief", 0, True),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "worker", 0, False),
    ],
)
def test_one_worker_writes(cluster, kind, index, chief):
    spec = tf.train.ClusterSpec(cluster)

    class Strategy:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            spec, task_type=kind, task_id=index
        )

    assert is_chief(Strategy()) is chief


def test_a_process_alone_writes(two_replicas):
    assert is_chief()
    assert is_chief(two_replicas)


class Worker(tf.distribute.Strategy):
    """The default strategy, as it looks to a worker that is not the chief."""

    def __init__(self):
        super().__init__(tf.distribute.get_strategy().extended)
        self.cluster_resolver_of_worker = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(TWO), task_type="worker", task_id=1
        )

    @property
    def cluster_resolver(self):
        return self.cluster_resolver_of_worker


@pytest.fixture
def of_second_worker(monkeypatch):
    """A Distiller that believes it is the second of two workers."""
    student = network(4)
    distiller = ssd.Distiller(student=student, **ssd.presets.labels_only())
    distiller.compile(ssd.optimizers.SGD(0.1))
    for model in (student, distiller):
        monkeypatch.setattr(model, "_distribute_strategy", Worker())
    return distiller


def test_only_the_files_of_the_chief_stay(of_second_worker, tmp_path):
    of_second_worker.save(tmp_path / "distiller.keras")
    of_second_worker.save_weights(tmp_path / "distiller.weights.h5")
    ssd.export_student(of_second_worker, tmp_path / "student")
    of_second_worker.export(tmp_path / "exported", verbose=False)
    assert not any(tmp_path.iterdir())


def test_a_fit_in_another_scope_is_refused(two_replicas):
    distiller = ssd.Distiller(student=network(4), **ssd.presets.labels_only())
    distiller.compile(ssd.optimizers.SGD(0.1))
    with (
        two_replicas.scope(),
        pytest.raises(ValueError, match=r"same `tf\.distribute`"),
    ):
        distiller.fit(*examples(4), verbose=0)


def test_a_worker_that_trains_alone_is_warned(monkeypatch):
    monkeypatch.setattr(distribution, "_MADE", [None])
    distiller = ssd.Distiller(student=network(4), **ssd.presets.labels_only())
    distiller.compile(ssd.optimizers.SGD(0.1))
    with pytest.warns(UserWarning, match="each worker trains by itself"):
        distiller.fit(*examples(4), verbose=0)


def test_callbacks_that_write_stay_with_the_chief():
    writers = [keras.callbacks.CSVLogger("log.csv"), keras.callbacks.TensorBoard("log")]
    others = [keras.callbacks.EarlyStopping(), keras.callbacks.ModelCheckpoint("a.keras")]
    given = [writers[0], *others, writers[1]]
    assert ssd.callbacks.of_this_worker(list(given), Worker()) == others
    assert ssd.callbacks.of_this_worker(list(given), tf.distribute.get_strategy()) == given
