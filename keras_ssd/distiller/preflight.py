"""What is checked before and while a Distiller trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.collectives import num_replicas
from keras_ssd.distiller.compiled_metrics import refuse_probability_form
from keras_ssd.heads import strip_heads
from keras_ssd.layers.functional import is_functional
from keras_ssd.layers.structure import flat_layers
from keras_ssd.objectives import Objective
from keras_ssd.teacher import FrozenTeacher, known_outputs
from keras_ssd.views import Views

_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)


def checked_student(student: Any) -> keras.Model:
    """The student; refuses what is no built Keras model of the current strategy scope."""
    if not isinstance(student, keras.Model):
        raise TypeError(f"`student` must be a Keras model, got {student!r}.")
    if not student.built:
        raise ValueError(
            f"The student {student.name!r} has no weights yet: call it once on a batch of images, "
            "or give it an input shape, before you make the Distiller."
        )
    check_one_input("student", student)
    check_scope("student", student.variables, tf.distribute.get_strategy())
    return student


def check_one_input(part: str, network: Any) -> None:
    """Refuses functional networks that take more than the images."""
    inputs = getattr(network, "inputs", None) or [None]
    if len(inputs) != 1:
        raise ValueError(
            f"The {part} {network.name!r} has {len(inputs)} inputs, and it is given the images "
            "alone: wrap it in a model that makes the others of them."
        )


def check_views(views: Any, teacher_views: Any = None) -> None:
    """Refuses what makes no views, or other numbers of rows for teacher and student."""
    for name, given in (("views", views), ("teacher_views", teacher_views)):
        if not isinstance(given, Views) and (given is not None or name == "views"):
            raise TypeError(f"`{name}` must be `Plain(...)` or `Rotations(...)`, got {given!r}.")
    if teacher_views is not None and teacher_views.num_views != views.num_views:
        raise ValueError(
            f"`teacher_views` make {teacher_views.num_views} rows of an image and `views` "
            f"{views.num_views}: row for row, teacher and student must see one view."
        )


def check_preprocessing(teacher: Any, preprocessing: Any) -> None:
    """Refuses preprocessing for no teacher: nothing would keep it."""
    if teacher is None and preprocessing is not None:
        raise ValueError(
            "`teacher_preprocessing` makes the images of a teacher, and there is none: give both "
            "together, or leave it out."
        )


def check_optimizers(optimizer: Any, teacher_optimizer: Any, trains_head: bool) -> None:
    """Refuses a trained head without an optimizer of its own, and the other way round."""
    if trains_head and teacher_optimizer is None:
        raise ValueError(
            "The teacher's head is trained, so it needs an optimizer of its own: give "
            "`compile(teacher_optimizer=)`, for instance `optimizers.SGD(0.01, momentum=0.9, "
            "weight_decay=5e-4)`."
        )
    if not trains_head and teacher_optimizer is not None:
        raise ValueError(
            "`teacher_optimizer` updates a teacher's head, and none is trained here: give the "
            "Distiller `teacher_head=` and `teacher_objectives=`, or leave it out."
        )
    if trains_head and teacher_optimizer is optimizer and not isinstance(optimizer, str):
        raise ValueError(
            "`optimizer` and `teacher_optimizer` are one object, and each must hold its own state: "
            "make two."
        )


def check_scope(
    part: str, variables: Iterable[keras.Variable], strategy: tf.distribute.Strategy
) -> None:
    """Refuses a part of the Distiller whose variables belong to another strategy scope."""
    if not all(strategy.extended.variable_created_in_scope(v.value) for v in variables):
        raise ValueError(
            f"The {part} and the Distiller must be made under the same `tf.distribute` strategy: "
            "make both inside one `with strategy.scope():`."
        )


def check_objectives(objectives: Sequence[Objective], reserved: Iterable[str]) -> None:
    """Refuses things that are no objectives and names that hide one another."""
    if not isinstance(objectives, (list, tuple)):
        raise TypeError(f"`objectives` must be a list of objectives, got {objectives!r}.")
    if not objectives:
        raise ValueError("`objectives` is empty: give at least one, or a preset such as `sskd()`.")
    names = list(reserved)
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(
                f"`objectives` must hold Objective instances, got {objective!r}: derive it from "
                "`keras_ssd.objectives.Objective`, or give a loss to `compile(loss=)`."
            )
        if objective.name in names:
            raise ValueError(
                f"Two terms are named {objective.name!r} (or it is a reserved name): give one of "
                "them another `name=`."
            )
        if objective.state is not None:
            part = f"memory of `{objective.name}`"
            check_scope(part, objective.state.variables, tf.distribute.get_strategy())
        names.append(objective.name)


def check_untrained(objectives: Iterable[Objective], learner: keras.Model) -> None:
    """Refuses trainable variables that objectives hold: only the learner's are trained."""
    trained = {id(variable) for variable in learner.variables}
    for objective in objectives:
        for part in [objective.state, *keras.tree.flatten(list(vars(objective).values()))]:
            weights = part.trainable_weights if isinstance(part, keras.Layer) else [part]
            for weight in weights:
                trainable = isinstance(weight, keras.Variable) and weight.trainable
                if trainable and id(weight) not in trained:
                    raise ValueError(
                        f"`{objective.name}` holds the trainable variable {weight.path!r}, and "
                        f"only those of {learner.name!r} are trained: make its layer a head of "
                        "that, or freeze it (`trainable=False`)."
                    )


def check_outputs(
    objectives: Sequence[Objective],
    num_views: int,
    teacher: Mapping[str, Any] | None,
    student: Mapping[str, Any] | None,
    learner: str = "student",
) -> None:
    """Refuses objectives whose outputs do not exist or do not fit one another.

    Args:
        objectives: The objectives.
        num_views: Rows of an image.
        teacher: Named outputs (symbolic or real) of the teacher, None where not known yet.
        student: The same of what learns.
        learner: What learns: the student, which has logits always, or the teacher's head.
    """
    read = {name for objective in objectives for name in objective.student_outputs}
    if student is not None and (learner == "student" or "logits" in read):
        check_logits(learner, student)
    for objective in objectives:
        if objective.needs_views and num_views == 1:
            raise ValueError(
                f"`{objective.name}` reads transformed views, but the views make one row an image: "
                "use `views=Rotations()`."
            )
        _check_names(objective, "teacher", objective.teacher_outputs, teacher)
        _check_names(objective, learner, objective.student_outputs, student)
        if teacher is not None and "logits" in objective.teacher_outputs:
            check_logits("teacher", teacher)
        objective.check_outputs(teacher, student, num_views)


def diagnostic_names(objectives: Sequence[Objective], student: keras.Model) -> list[str]:
    """What objectives show beside their values; none where only a call tells the outputs."""
    outputs = known_outputs(student) or {}
    names = [name for objective in objectives for name in objective.diagnostic_names(outputs)]
    return list(dict.fromkeys(names))


def check_logits(owner: str, outputs: Mapping[str, Any]) -> None:
    """Refuses outputs without logits `[rows, classes]`."""
    if "logits" not in outputs:
        raise ValueError(
            f"The {owner} must return `logits`, got the outputs {sorted(outputs)}: name its class "
            "scores so."
        )
    logits = outputs["logits"]
    if getattr(logits.shape, "rank", 2) is None:  # only a real tensor can hide it
        raise ValueError(
            f"The shape of the {owner}'s logits must be known, got none: end its function in "
            "`tf.ensure_shape(logits, [None, classes])`."
        )
    if len(logits.shape) != 2 or logits.shape[-1] is None or logits.shape[-1] < 2:
        raise ValueError(
            f"The {owner}'s logits must be [rows, classes] with at least 2 classes, got "
            f"{tuple(logits.shape)}: end a two-class network in 2 logits, pool feature maps, and "
            "give a table of logits for as many views as the Distiller has (of one: [n, classes])."
        )
    if ends_in_probabilities(logits):
        raise ValueError(
            f"The {owner} ends in a softmax or sigmoid, and logits are needed: build it without "
            "(`classifier_activation=None` in `keras.applications`)."
        )


def _check_names(
    objective: Objective, owner: str, wanted: Sequence[str], outputs: Mapping[str, Any] | None
) -> None:
    missing = [name for name in wanted if outputs is not None and name not in outputs]
    if missing:
        raise ValueError(
            f"`{objective.name}` reads the {owner}'s output {missing[0]!r}, which the {owner} "
            f"lacks (it has {sorted(outputs or ())}): attach the head (`with_projection`, "
            "`with_auxiliary_classifiers`, `with_node_embedding`, `with_connector`; the teacher's "
            "may be its `teacher_head=`) or the peer (`with_peer`), or name a layer with "
            "`named_outputs`."
        )


def ends_in_probabilities(output: Any) -> bool:
    """Whether a symbolic output comes straight from a softmax or sigmoid."""
    # Keras has no public way from a tensor to the layer that made it; a real tensor has no history.
    history = getattr(output, "_keras_history", None)
    if history is None:
        return False
    operation = history.operation
    if isinstance(operation, keras.Model):
        inner = getattr(operation, "outputs", None)
        return inner is not None and ends_in_probabilities(inner[history.tensor_index])
    name = type(operation).__name__
    return name in ("Softmax", "Sigmoid") or getattr(operation, "activation", 0) in _PROBABILITIES


def check_student_size(student: keras.Model, images: tf.Tensor) -> None:
    """Refuses images that the student's input does not fit; a subclassed one tells by itself."""
    wanted = getattr(student, "input_shape", None) if known_outputs(student) is not None else None
    if isinstance(wanted, tuple) and not images.shape[1:].is_compatible_with(wanted[1:]):
        raise ValueError(
            f"The student takes images {wanted[1:]}, got {tuple(images.shape[1:])}: build it for "
            "these images, or resize them in the input pipeline."
        )


def check_batch_size(objectives: Sequence[Objective], images: tf.Tensor) -> None:
    """Refuses a static global batch of one image where images are compared with one another."""
    comparing = [objective.name for objective in objectives if objective.compares_images]
    if comparing and images.shape[0] == 1 and num_replicas() == 1:
        raise ValueError(
            f"`{comparing[0]}` compares the images of a batch with one another, and this batch "
            "holds one image: use a larger `batch_size`."
        )


def per_replica_batch_norm(student: keras.Model) -> bool:
    """Whether a batch normalisation of the student sees its own replica's rows alone."""
    return any(
        isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
        for layer in flat_layers(student)
    )


def convolves(student: keras.Model) -> bool:
    """Whether a layer of the student is a convolution."""
    return any("Conv" in type(layer).__name__ for layer in flat_layers(student))


def uses_float16(student: keras.Model) -> bool:
    """Whether a layer of the student computes in float16, so that the loss must be scaled."""
    return any(layer.compute_dtype == "float16" for layer in flat_layers(student))


def warn_if_teacher_is_smaller(teacher: FrozenTeacher, student: keras.Model) -> None:
    """Warns where teacher and student look swapped."""
    if teacher.model is None:
        return
    sizes = [_size_without_heads(network) for network in (teacher.model, student)]
    if sizes[0] < sizes[1]:
        warnings.warn(
            f"The teacher has fewer parameters ({sizes[0]:,}) than the student ({sizes[1]:,}): are "
            "they swapped?",
            stacklevel=3,
        )


def _size_without_heads(network: keras.Model) -> int:
    has_logits = is_functional(network) and "logits" in (known_outputs(network) or ())
    return (strip_heads(network) if has_logits else network).count_params()


def check_fit(x: Any, y: Any, class_weight: Any) -> None:
    """Refuses arguments of `fit` that Keras would fail on, or ignore."""
    if class_weight is not None and y is not None and _some_unlabeled(y):
        raise ValueError(
            "`class_weight` has no weight for unlabeled images (-1, or a row of zeros): give "
            "`sample_weight` instead."
        )
    if isinstance(x, tf.data.Dataset) and int(x.cardinality()) == 0:
        raise ValueError(
            "The data set holds no batch: use a smaller batch size, or keep the last, smaller "
            "batch (`drop_remainder=False`)."
        )


def _some_unlabeled(y: Any) -> bool:
    labels = np.asarray(y)
    one_hot = labels.ndim == 2 and labels.shape[1] > 1
    return bool((labels.sum(axis=1) <= 0).any() if one_hot else (labels < 0).any())


def checked_batch(x: Any, batch: Any) -> Any:
    """The first batch of `x`; refuses None, which stands for no batch that can be seen."""
    if batch is None:
        advice = {
            "Splits": "give one of its data sets, such as `data.train`",
            "generator": "it would be used up; give a tf.data set, a PyDataset or arrays",
        }
        raise ValueError(
            f"`check` needs a batch of images, got none from this {type(x).__name__}: "
            + advice.get(type(x).__name__, "give a tf.data set, a PyDataset or arrays of images")
            + "."
        )
    return batch


def check_loss(loss: Any) -> None:
    """Refuses a `compile(loss=)` that expects probabilities."""
    if isinstance(loss, str):
        raise ValueError(
            f"`loss` {loss!r} is a name, and names mean the form that expects probabilities: give "
            "an object such as keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
        )
    if loss is not None:
        refuse_probability_form("loss", loss)


def refuse_across_replicas(
    replicas: int,
    optimizer: keras.optimizers.Optimizer,
    loss: Any,
    jit_compile: bool | str,
    steps_per_execution: int,
) -> None:
    """Refuses what `compile` is given and Keras cannot do on several replicas of one process."""
    if jit_compile is True:
        raise ValueError(
            f"`jit_compile=True` does not work on {replicas} replicas of one process (Keras "
            'compiles the whole strategy): leave it at "auto".'
        )
    if steps_per_execution != 1:
        raise ValueError(
            f"`steps_per_execution={steps_per_execution}` does not work on {replicas} replicas "
            "in Keras: leave it at 1."
        )
    reduction = getattr(loss, "reduction", "mean")
    if reduction not in ("mean", "sum_over_batch_size"):
        raise ValueError(
            f"A `loss` with `reduction={reduction!r}` cannot be that of the global batch on "
            f"{replicas} replicas: leave it at the mean over images."
        )
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for option in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        if getattr(inner, option):
            raise ValueError(
                f"The optimizer's `{option}` does not work on {replicas} replicas in Keras: "
                "build the optimizer without it, or train on one replica."
            )
