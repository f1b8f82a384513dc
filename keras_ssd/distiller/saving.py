"""What of a Distiller is saved, and how a file is replaced."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras

from keras_ssd.whole_files import replaced_when_complete

if TYPE_CHECKING:
    from keras_ssd.distiller.distiller import Distiller


class Hidden:
    """Holds a value where neither Keras nor TensorFlow tracks or wraps it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def config(distiller: Distiller) -> dict[str, Any]:
    """The constructor's arguments, serialised, without the teacher."""
    return {
        "name": distiller.name,
        "student": keras.saving.serialize_keras_object(distiller.student),
        "objectives": [keras.saving.serialize_keras_object(o) for o in distiller.objectives],
        "views": keras.saving.serialize_keras_object(distiller.views),
        "seed": distiller.seed,
    }


def constructor_arguments(config: dict[str, Any], custom_objects: Any) -> dict[str, Any]:
    """The constructor's arguments of a `config`."""

    def restored(value: Any) -> Any:
        return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

    return {
        "name": config["name"],
        "student": restored(config["student"]),
        "objectives": [restored(objective) for objective in config["objectives"]],
        "views": restored(config["views"]),
        "seed": config["seed"],
    }


def compile_config(optimizer: keras.optimizers.Optimizer, arguments: Hidden) -> dict[str, Any]:
    """The arguments of `compile`, serialised."""
    return keras.saving.serialize_keras_object({"optimizer": optimizer, **arguments.value})


def _random_states(distiller: Distiller) -> list[keras.Variable]:
    """The variables that Keras counts among `variables` but not among `weights`."""
    weights = {id(weight) for weight in distiller.weights}
    return [variable for variable in distiller.variables if id(variable) not in weights]


def save_random_states(distiller: Distiller, store: Any) -> None:
    """Writes the states of all seed generators."""
    for position, state in enumerate(_random_states(distiller)):
        store[str(position)] = keras.ops.convert_to_numpy(state)


def load_random_states(distiller: Distiller, store: Any) -> None:
    """Reads the states of all seed generators."""
    states = _random_states(distiller)
    if len(store.keys()) != len(states):
        raise ValueError(
            f"The file holds {len(store.keys())} random states and the student has {len(states)}: "
            "load it into a Distiller of the same student."
        )
    for position, state in enumerate(states):
        state.assign(store[str(position)])


@contextlib.contextmanager
def whole_file(filepath: str | os.PathLike, overwrite: bool) -> Iterator[str | os.PathLike]:
    """Gives a name to write to, which becomes `filepath` once all is written."""
    path = pathlib.Path(filepath)
    single_file = path.name.endswith((".keras", ".weights.h5")) and not path.is_dir()
    if not single_file or (path.exists() and not overwrite):
        yield filepath  # Keras' own business: folders, shards, the question before overwriting
        return
    with replaced_when_complete(path) as partial:
        yield partial
