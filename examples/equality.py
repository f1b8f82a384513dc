"""1 replica = 2 = 4 = 2 worker processes, on your own network: trains a few steps and compares.

    python examples/equality.py                                           # a tiny ResNet, SSKD
    python examples/equality.py --student my.keras --teacher big.keras --preset kd

Every configuration sees the same global batches in random views and starts from the same weights;
the first one is what the others are compared with. Replicas are logical CPU devices, workers are
processes that speak gRPC on 127.0.0.1, so that a laptop will do. Exit code 1: something differs.

A variable's difference is the norm of its difference over its norm, but over no less than 1 % of
what all weights are on average: a bias in front of batch normalisation, whose true gradient is 0,
is rounding errors and nothing else.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import sys
import tempfile
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from processes import Configuration, run, strategy_here

import keras_ssd as ssd
from keras_ssd.layers.structure import flat_layers, takes_raw_images

_STUDENT = flags.DEFINE_string(
    "student", "resnet8", "A .keras file, or a name of `models.build` (10 classes, 16x16 images)."
)
_TEACHER = flags.DEFINE_string(
    "teacher", None, "The same; the student's network with other weights if none."
)
_PRESET = flags.DEFINE_enum("preset", "sskd", ssd.presets.__all__, "What the student learns.")
_REPLICAS = flags.DEFINE_list("replicas", ["1", "2", "4"], "Numbers of replicas in one process.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes; 0 for none.", 0)
_PRECISION = flags.DEFINE_enum(
    "precision", "float64", ["float64", "float32", "mixed_bfloat16"], "Of all networks."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images a step, of all replicas together.", 1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps.", 1)
_SYNCHRONIZED = flags.DEFINE_bool(
    "synchronized_batch_norm", True, "Of networks that are built here; a file is as it is."
)
_TIME_LIMIT = flags.DEFINE_float("time_limit", 600.0, "Seconds that a process may take.", 1.0)
_FOLDER = flags.DEFINE_string("folder", None, "Set by the script itself: where its parts meet.")
_TASK = flags.DEFINE_string("task", None, "Set by the script itself: a part of it.")

_BOUNDS = {  # of losses and of weights
    "float64": (1e-10, 1e-10),
    "float32": (1e-4, 1e-3),
    "mixed_bfloat16": (2e-2, 2e-2),  # a bfloat16 has between two and three digits
}
_AUXILIARY = ("hsakd", "hsakd_online", "hsakd_teacher", "combined", "combined_teacher")
_PROJECTION = ("sskd", "sskd_pretext", "combined", "combined_teacher")
_FLOOR = 0.01
_LOSSES = "losses of the steps"


def main(_: list[str]) -> None:
    """Prepares the networks, runs all configurations and prints a table."""
    logging.set_verbosity(logging.ERROR)
    if _TASK.value is not None:
        _train(pathlib.Path(_FOLDER.value))
        return
    start = time.perf_counter()
    configurations = _configurations()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        try:
            notes = _prepare(folder)
        except (TypeError, ValueError) as error:
            raise SystemExit(f"{_PRESET.value} on {_STUDENT.value}: {error}") from None
        print("\n".join(notes), flush=True)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda one: _outcome(one, folder), configurations))
    equal = _print_table(outcomes)
    print(f"{time.perf_counter() - start:.0f} seconds")
    if not equal:
        raise SystemExit(1)


def _configurations() -> list[Configuration]:
    try:
        numbers = [int(number) for number in _REPLICAS.value]
    except ValueError:
        numbers = []
    several = len(numbers) + bool(_WORKERS.value) > 1
    if not numbers or min(numbers) < 1 or _WORKERS.value == 1 or not several:
        raise SystemExit(
            "Give --replicas such as 1,2,4 and --workers 0 or at least 2: two configurations or "
            "more, of which the first is what the others are compared with."
        )
    configurations = [Configuration(replicas=number) for number in numbers]
    return configurations + [Configuration(workers=_WORKERS.value)] * bool(_WORKERS.value)


# What all configurations share: networks and images, in files.


def _prepare(folder: pathlib.Path) -> list[str]:
    """Writes networks and images; returns what is to be said of them."""
    keras.utils.set_random_seed(0)
    student = _network(_STUDENT.value)
    teacher = _with_other_weights(student) if _TEACHER.value is None else _network(_TEACHER.value)
    _write_data(folder, student)
    preset = getattr(ssd.presets, _PRESET.value)()
    if any(term.teacher_outputs for term in preset["objectives"]):
        teacher = _encoder(teacher) if _PRESET.value == "ega" else _with_heads(teacher)
        teacher.save(folder / "teacher.keras")
    if _PRESET.value == "ega":
        width, classes = teacher.output["embedding"].shape[-1], _classes(student)
        ssd.node_embedding_head(width, classes).save(folder / "teacher_head.keras")
        student = ssd.with_node_embedding(student)
    student = _with_heads(student)
    if _PRESET.value == "hsakd_online":
        student = ssd.with_peer(student, _with_other_weights(student))
    student.save(folder / "student.keras")
    first = (
        f"{_PRESET.value} on {_STUDENT.value}: {_STEPS.value} steps of {_BATCH_SIZE.value} images, "
        f"{_PRECISION.value}"
    )
    return [first, *_what_differs(student)]


def _network(name: str) -> keras.Model:
    """A network of a file or of a name, in the precision asked for."""
    keras.config.set_floatx("float64" if _PRECISION.value == "float64" else "float32")
    if name in ssd.models.names():
        return ssd.models.build(
            name,
            num_classes=10,
            input_shape=(16, 16, 3),
            mean=[0.5] * 3,
            std=[0.25] * 3,
            synchronized_batch_norm=_SYNCHRONIZED.value,
            dtype=_PRECISION.value,
        )
    if not pathlib.Path(name).is_file():
        raise SystemExit(f"{name!r} is no file and no name of `keras_ssd.models.names()`.")

    def converted(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": _PRECISION.value})

    loaded = keras.models.load_model(name, compile=False)
    if len(loaded.inputs) != 1 or len(loaded.inputs[0].shape) != 4:
        raise SystemExit(
            f"{name!r} must take images [rows, height, width, channels] alone, got "
            f"{[tuple(tensor.shape) for tensor in loaded.inputs]}: give a network that does."
        )
    copy = _copy(ssd.named_outputs(loaded, {}), converted)  # functional, a Sequential one, too
    copy.dtype_policy = keras.DTypePolicy(_PRECISION.value)
    return copy


def _copy(network: keras.Model, remake: Any = None) -> keras.Model:
    options = {} if remake is None else {"clone_function": remake, "recursive": True}
    copy = keras.models.clone_model(network, **options)
    copy.set_weights(network.get_weights())
    return copy


def _with_other_weights(network: keras.Model) -> keras.Model:
    """A copy, each weight times a number between 0.5 and 1.5."""
    random = np.random.default_rng(1)
    copy = _copy(network)
    copy.set_weights([w * random.uniform(0.5, 1.5, w.shape) for w in network.get_weights()])
    return copy


def _with_heads(network: keras.Model) -> keras.Model:
    """The heads that the preset reads and the network lacks."""
    names = network.output if isinstance(network.output, dict) else ()
    if _PRESET.value in _AUXILIARY and "auxiliary_1" not in names:
        network = ssd.with_auxiliary_classifiers(network)
    if _PRESET.value in _PROJECTION and "projection" not in names:
        network = ssd.with_projection(network)
    return network


def _encoder(teacher: keras.Model) -> keras.Model:
    """Its embedding; where it names none, its logits are the vector that EGA compares."""
    output = teacher.output
    if isinstance(output, dict):
        output = output.get("embedding", output.get("logits"))
    return keras.Model(teacher.input, {"embedding": output})


def _classes(network: keras.Model) -> int:
    output = network.output
    return (output["logits"] if isinstance(output, dict) else output).shape[-1]


def _write_data(folder: pathlib.Path, student: keras.Model) -> None:
    random = np.random.default_rng(0)
    shape = [size or 32 for size in student.input_shape[1:]]
    count = _STEPS.value * _BATCH_SIZE.value
    colours = random.uniform(-1, 1, [count, 1, 1, shape[-1]])
    images = colours + 0.5 * random.standard_normal([count, *shape])
    if takes_raw_images(student) is not False:
        images = np.clip(128 + 64 * images, 0, 255).astype("uint8")
    labels = random.integers(0, _classes(student), count)
    np.savez(folder / "data.npz", images=images, labels=labels)


def _what_differs(student: keras.Model) -> list[str]:
    """What makes replicas differ from one device by design, a sentence each."""
    layers = [layer for layer in flat_layers(student) if layer.trainable]
    notes = []
    kind = keras.layers.BatchNormalization
    own = [layer.name for layer in layers if isinstance(layer, kind) and not layer.synchronized]
    if own:
        notes.append(
            f"This network differs by design: batch normalisation ({own[0]!r} and "
            f"{len(own) - 1} more) takes the statistics of each replica's own images. Use "
            "synchronized_batch_norm=True (`synchronized=True` in the layer), or none."
        )
    random = [layer.name for layer in layers if getattr(layer, "seed_generator", None) is not None]
    if random:
        notes.append(
            f"This network differs by design: {random[0]!r} draws other random numbers on each "
            "replica. Set its rate to 0 to compare."
        )
    return notes


# One process of a configuration.


class _Losses(keras.callbacks.Callback):
    """The loss of each step by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Forgets the steps before."""
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Keeps what is shown of this one."""
        self.values.append(float(logs["loss"]))


def _train(folder: pathlib.Path) -> None:
    strategy = strategy_here()
    keras.config.set_floatx("float64" if _PRECISION.value == "float64" else "float32")
    with np.load(folder / "data.npz") as data:
        arrays = data["images"], data["labels"]
    with strategy.scope():
        names = ("student", "teacher", "teacher_head")
        files = {name: folder / f"{name}.keras" for name in names}
        networks = {
            name: keras.models.load_model(file) for name, file in files.items() if file.exists()
        }
        distiller = ssd.Distiller(**networks, **getattr(ssd.presets, _PRESET.value)())
        heads = {"teacher_optimizer": _sgd()} if "teacher_head" in networks else {}
        distiller.compile(_sgd(), **heads)
    losses = _Losses()
    batches = tf.data.Dataset.from_tensor_slices(arrays).batch(_BATCH_SIZE.value)
    distiller.fit(batches, verbose=0, callbacks=[losses], check=False)
    floats = [v for v in distiller.variables if keras.backend.is_float_dtype(v.dtype)]
    weights = {f"{place} {v.path}": v.numpy() for place, v in enumerate(floats)}
    np.savez(folder / f"{_TASK.value}.npz", **{**weights, _LOSSES: np.array(losses.values)})


def _sgd() -> keras.optimizers.Optimizer:
    return ssd.optimizers.SGD(0.01, momentum=0.9, weight_decay=5e-4)


# The comparison.


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a configuration did.

    Args:
        name: Of the configuration.
        failure: What stopped it, or None.
        results: The losses and the weights of each of its processes, by name.
    """

    name: str
    failure: str | None
    results: list[dict[str, np.ndarray]]


def _outcome(configuration: Configuration, folder: pathlib.Path) -> _Outcome:
    label = configuration.name.replace(" ", "_")
    tasks = [f"{label}_{index}" for index in range(max(1, configuration.workers))]
    command = [sys.executable, __file__, *sys.argv[1:], f"--folder={folder}"]
    commands = [[*command, f"--task={task}"] for task in tasks]
    failure = run(configuration, commands, folder / f"{label}.log", _TIME_LIMIT.value)
    if failure is not None:
        return _Outcome(configuration.name, failure, [])
    results = []
    for task in tasks:
        with np.load(folder / f"{task}.npz") as arrays:
            results.append(dict(arrays))
    return _Outcome(configuration.name, None, results)


def _print_table(outcomes: list[_Outcome]) -> bool:
    """Prints a row a configuration; returns whether all are equal to the first."""
    bounds = _BOUNDS[_PRECISION.value]
    print(f"Largest relative differences; bounds: losses {bounds[0]:g}, weights {bounds[1]:g}")
    print(
        f"{'configuration':16}{'losses':>10}{'weights':>10}  {'verdict':11}largest of the weights"
    )
    reference, *others = outcomes
    if reference.failure is not None:
        print(f"{reference.name:16}{'failed: ' + reference.failure}")
        return False
    print(f"{reference.name:16}{'-':>10}{'-':>10}  {'reference':11}")
    return all([_print_row(one, reference.results[0], bounds) for one in others])


def _print_row(
    outcome: _Outcome, expected: dict[str, np.ndarray], bounds: tuple[float, float]
) -> bool:
    if outcome.failure is not None:
        print(f"{outcome.name:16}{'failed: ' + outcome.failure}")
        return False
    losses, weights, worst = max(_differences(found, expected) for found in outcome.results)
    equal = losses <= bounds[0] and weights <= bounds[1]
    verdict = "equal" if equal else "different"
    print(f"{outcome.name:16}{losses:10.1e}{weights:10.1e}  {verdict:11}{worst}")
    return equal


def _differences(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> tuple[float, float, str]:
    """The largest relative difference of the losses, that of the weights, and its name.

    Infinite where a number is none: it equals nothing.
    """
    losses = np.abs(found[_LOSSES] - expected[_LOSSES]).max() / np.abs(expected[_LOSSES]).max()
    names = [name for name in expected if name != _LOSSES]
    values = {name: np.float64(expected[name]) for name in names}
    squares = sum(np.sum(value**2) for value in values.values())
    mean = np.sqrt(squares / sum(value.size for value in values.values()))
    weights = {
        name: np.linalg.norm(np.float64(found[name]) - value)
        / max(np.linalg.norm(value), _FLOOR * mean * np.sqrt(value.size))
        for name, value in values.items()
    }
    numbers = {name: one if np.isfinite(one) else np.inf for name, one in weights.items()}
    worst = max(numbers, key=numbers.__getitem__)
    return losses if np.isfinite(losses) else np.inf, numbers[worst], worst.partition(" ")[2]


if __name__ == "__main__":
    app.run(main)
