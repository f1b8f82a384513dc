"""The trainable part on the teacher's side: a head on the outputs of the frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.distiller import preflight
from keras_ssd.layers.structure import flat_layers
from keras_ssd.objectives import Objective

PREFIX = "teacher_"  # of the names under which the head's own terms are shown


def is_trained(distiller: Any) -> bool:
    """Whether the head of a Distiller learns while its student does."""
    head = distiller.teacher_head
    if head is None or not head.trainable_variables:
        return False
    reached = any(objective.trains_teacher_head for objective in distiller.objectives)
    return reached or bool(distiller.teacher_objectives)


def checked_head(head: Any) -> keras.Model | None:
    """The head, or None for none; refuses what is no model from named outputs to named outputs."""
    if head is None:
        return None
    functional = isinstance(head, keras.Model) and getattr(head, "outputs", None) is not None
    if not functional or isinstance(head, keras.Sequential):
        raise TypeError(
            "`teacher_head` must be a functional Keras model from outputs of the teacher to a dict "
            f"of named outputs, such as `node_embedding_head(512, 10)`, got {head!r}."
        )
    if not isinstance(head.output, Mapping):
        raise ValueError(
            f"The teacher's head {head.name!r} must return a dict of named outputs, got a "
            f"{type(head.output).__name__}: end it in `keras.Model(inputs, {{'node': output}})`."
        )
    layers = flat_layers(head)
    if head.losses or any(getattr(layer, "activity_regularizer", None) for layer in layers):
        raise ValueError(
            f"The teacher's head {head.name!r} has losses of its own (a regularizer, `add_loss`), "
            "which no term would count: give `weight_decay` to its optimizer instead."
        )
    preflight.check_scope("teacher's head", head.variables, tf.distribute.get_strategy())
    return head


def check_apart(head: keras.Model | None, student: keras.Model) -> None:
    """Refuses a head that shares variables with the student: two optimizers would move them."""
    if head is None:
        return
    students = {id(variable) for variable in student.variables}
    shared = [variable.path for variable in head.variables if id(variable) in students]
    if shared:
        raise ValueError(
            f"The teacher's head {head.name!r} shares the variable {shared[0]!r} with the student, "
            "and each is trained by itself: give the head layers of its own."
        )


def check_training(
    head: keras.Model | None,
    objectives: Sequence[Objective],
    teacher_objectives: Sequence[Objective],
    reserved: Sequence[str],
) -> None:
    """Refuses objectives of the head without a head, and names that hide one another."""
    if not teacher_objectives:
        return
    if head is None:
        raise ValueError(
            "`teacher_objectives` train the teacher's head, and there is none: give "
            "`teacher_head=`, for instance `node_embedding_head(width, num_classes)`."
        )
    if not head.trainable_variables:
        raise ValueError(
            f"`teacher_objectives` train the teacher's head {head.name!r}, which has no trainable "
            "variable: leave them out, or set `trainable`."
        )
    taken = [*reserved, *(one.name for one in objectives)]
    preflight.check_objectives(teacher_objectives, ())
    preflight.check_untrained(teacher_objectives, head)
    for objective in teacher_objectives:
        if shown_name(objective) in taken:
            raise ValueError(
                f"The head's term {objective.name!r} is shown as {shown_name(objective)!r}, which "
                "is the name of another term: give one of them another `name=`."
            )


def shown_name(objective: Objective) -> str:
    """The name under which a term of the head is shown."""
    return PREFIX + objective.name.removeprefix(PREFIX)


def outputs_with_head(
    head: keras.Model | None, teacher: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Symbolic outputs of the teacher and of its head; None where only a call tells.

    Raises:
        ValueError: If the head does not fit the teacher.
    """
    if teacher is None or head is None:
        return None if teacher is None else dict(teacher)
    _all_taken(head, teacher)
    return {**teacher, **head.output}


def check_outputs(
    distiller: Any,
    frozen: Mapping[str, Any] | None,
    teacher: Mapping[str, Any] | None,
    student: Mapping[str, Any] | None,
) -> None:
    """Refuses terms of student or head whose outputs do not exist or do not fit one another.

    Args:
        distiller: What holds objectives and views.
        frozen: Named outputs (symbolic or real) of the frozen teacher, None where not known yet.
        teacher: The same with those of its head.
        student: The same of the student.
    """
    views = distiller.views.num_views
    preflight.check_outputs(distiller.objectives, views, teacher, student)
    if not distiller.teacher_objectives:
        return
    terms = distiller.teacher_objectives
    preflight.check_outputs(terms, views, frozen, teacher, learner="teacher's head")
    labeled = any(term.needs_labels and "logits" in term.student_outputs for term in terms)
    if labeled and teacher is not None and student is not None:
        classes = teacher["logits"].shape[-1], student["logits"].shape[-1]
        if classes[0] != classes[1]:
            raise ValueError(
                f"The teacher's head has {classes[0]} classes and the student {classes[1]}, and "
                "both learn from the same labels: make the head with `num_classes="
                f"{classes[1]}`."
            )


def run_head(
    head: keras.Model | None, teacher: Mapping[str, tf.Tensor], training: bool
) -> dict[str, tf.Tensor]:
    """What the head makes of the teacher's outputs; nothing without a head.

    Args:
        head: The head. Its inputs are named like the outputs that they take; a single input of
            another name takes the teacher's only output.
        teacher: Named outputs of the frozen teacher.
        training: Whether it is called as in a training step.

    Raises:
        ValueError: If the outputs are not those that the head takes.
    """
    if head is None:
        return {}
    return dict(head(_all_taken(head, teacher), training=training))


def _all_taken(head: keras.Model, teacher: Mapping[str, Any]) -> Any:
    """The outputs of the teacher that the head takes, as the structure of its input."""
    taken = keras.tree.map_structure(lambda wanted: _taken(head, wanted, teacher), head.input)
    read = set(map(id, keras.tree.flatten(taken)))
    twice = [name for name in head.output if name in teacher and id(teacher[name]) not in read]
    if twice:
        raise ValueError(
            f"The teacher and its head {head.name!r} both have the output {twice[0]!r}: give the "
            f"teacher without it, as `frozen_encoder(teacher, output={head.inputs[0].name!r})`, or "
            "name the head's otherwise."
        )
    return taken


def _taken(head: keras.Model, wanted: Any, teacher: Mapping[str, Any]) -> Any:
    output = teacher.get(wanted.name)
    if output is None and len(head.inputs) == len(teacher) == 1:
        output = next(iter(teacher.values()))
    if output is None:
        raise ValueError(
            f"The input {wanted.name!r} of the teacher's head {head.name!r} is named like no "
            f"output of the teacher, which has {sorted(teacher)}: name it like the one that it "
            "takes, as in `keras.Input([512], name='embedding')`."
        )
    shape, expected = tuple(output.shape), tuple(wanted.shape)
    if len(shape) == 3 and len(expected) == 2:
        raise ValueError(
            f"The teacher's head {head.name!r} takes one vector an image, {expected}, and the "
            f"teacher gives a sequence of tokens, {shape}: pool them, with "
            "`frozen_encoder(teacher, pooling='first_token')` or `pooling='mean'`."
        )
    fits = len(shape) == len(expected) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape[1:], expected[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"The teacher's head {head.name!r} takes {expected} and the teacher gives {shape}: "
            f"make the head for {shape[-1]} values an image."
        )
    return output
