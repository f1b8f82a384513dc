"""What of a Distiller is saved and exported, and how a file is replaced."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_ssd.distiller.steps import Steps
from keras_ssd.distribution import chief_path
from keras_ssd.export import export_student
from keras_ssd.heads import strip_heads
from keras_ssd.whole_files import replaced_when_complete


class Hidden:
    """Holds a value where neither Keras nor TensorFlow tracks or wraps it."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Saved(Steps):
    """The files of a Distiller: student, teacher's head, objectives, optimizers; no teacher."""

    _compile_arguments: Hidden

    def save_own_variables(self, store: Any) -> None:
        """Saves the random states of layers, which Keras leaves out."""
        for position, state in enumerate(self._random_states()):
            store[str(position)] = keras.ops.convert_to_numpy(state)

    def load_own_variables(self, store: Any) -> None:
        """Restores the random states of layers."""
        states = self._random_states()
        if len(store.keys()) != len(states):
            raise ValueError(
                f"The file holds {len(store.keys())} random states and this Distiller has "
                f"{len(states)}: load it into one of the same student and the same teacher's head."
            )
        for position, state in enumerate(states):
            state.assign(store[str(position)])

    def _random_states(self) -> list[keras.Variable]:
        """The variables that Keras counts among `variables` but not among `weights`."""
        weights = {id(weight) for weight in self.weights}
        return [variable for variable in self.variables if id(variable) not in weights]

    def save(self, filepath: str | os.PathLike, overwrite: bool = True, **options: Any) -> None:
        """Saves all but the teacher (`keras.Model.save`).

        That is student, teacher's head, objectives with their state, views and optimizers. The file
        is written under another name and renamed, so that a save that fails leaves the earlier file
        as it was. All workers call it, and the chief's file stays.
        """
        own = chief_path(filepath, self.distribute_strategy)
        with own as filepath, whole_file(filepath, overwrite) as path:
            super().save(path, overwrite=overwrite, **options)

    def save_weights(
        self, filepath: str | os.PathLike, overwrite: bool = True, **options: Any
    ) -> None:
        """Saves all variables (`keras.Model.save_weights`), never the teacher's; as `save` does."""
        own = chief_path(filepath, self.distribute_strategy)
        with own as filepath, whole_file(filepath, overwrite) as path:
            super().save_weights(path, overwrite=overwrite, **options)

    def export(
        self, filepath: str | os.PathLike, format: str = "tf_saved_model", **options: Any
    ) -> None:
        """Exports the student without its heads: `export_student`, or another format of Keras.

        Args:
            filepath: Where to.
            format: `"tf_saved_model"`, or another format of `keras.Model.export`.
            **options: `outputs` and `class_names` of `export_student`, or those of Keras.
        """
        if format == "tf_saved_model" and options.keys() <= {"outputs", "class_names"}:
            export_student(self, filepath, **options)
        else:
            with chief_path(filepath, self.distribute_strategy) as path:
                strip_heads(self.student).export(path, format=format, **options)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised, without the teacher."""
        parts = ("student", "views", "teacher_views", "teacher_head")
        lists = ("objectives", "teacher_objectives")
        serialized = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "seed": self.seed,
            **{name: serialized(getattr(self, name)) for name in parts},
            **{name: [serialized(one) for one in getattr(self, name)] for name in lists},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Saved:
        """The Distiller of a `get_config`, without a teacher: see `set_teacher`."""

        def restored(value: Any) -> Any:
            if isinstance(value, list):
                return [restored(one) for one in value]
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        plain = {name: config[name] for name in ("name", "seed")}
        rest = {name: restored(value) for name, value in config.items() if name not in plain}
        return cls(**plain, **rest)

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, serialised."""
        if not self.compiled:
            return None
        optimizers = {"optimizer": self.optimizer, "teacher_optimizer": self.teacher_optimizer}
        return keras.saving.serialize_keras_object({**optimizers, **self._compile_arguments.value})

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved Distiller was compiled."""
        self.compile(**keras.saving.deserialize_keras_object(config))


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
