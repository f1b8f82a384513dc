"""Distiller: a teacher, a student and objectives as one Keras model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.callbacks import followed, of_this_worker
from keras_ssd.distiller import preflight
from keras_ssd.distiller.check import report_on, warn_of_values
from keras_ssd.distiller.first_batch import first_batch, num_batches
from keras_ssd.distiller.guard import plain_sentences
from keras_ssd.distiller.report import CheckReport
from keras_ssd.distiller.saving import Hidden, Saved
from keras_ssd.distiller.teacher_head import (
    check_apart,
    check_outputs,
    check_training,
    checked_head,
    is_trained,
    outputs_with_head,
    shown_name,
)
from keras_ssd.distiller.trackers import RESERVED, Trackers
from keras_ssd.distribution import check_strategy, take_from_chief, warn_if_alone
from keras_ssd.layers import ImagePreprocessing
from keras_ssd.objectives import Objective
from keras_ssd.teacher import FrozenTeacher, check_batch_norm, freeze, known_outputs
from keras_ssd.views import Plain, Views


@keras.saving.register_keras_serializable(package="keras_ssd")
class Distiller(Saved):
    """Trains a student with objectives that may read a frozen teacher, inside Keras' own `fit`.

    A step makes views of the batch, runs the teacher (outside the tape) and the student once each
    on all rows, adds up the objectives and updates the student. With several replicas every term
    is that of the global batch.

    The metrics are `loss`, one mean a term under its objective's name, `teacher_agreement` (share
    of plain images that both networks put into one class) and those given to `compile`.
    `evaluate` makes one student forward an image and shows `loss` (cross-entropy of the plain
    logits, plus `compile(loss=)` and the student's own losses) and the compiled metrics. `predict`
    gives the plain logits. The terms that train a teacher's head are shown as `teacher_...` and are
    no part of `loss`.

    Inputs: `x` is images `[B, height, width, channels]`, or a dict with `image` and optionally
    `index` and `teacher` (named outputs that were stored: then no teacher runs). `y` is integers
    `[B]` (-1: unlabeled) or one-hot or soft rows `[B, C]` (all zero: unlabeled), or absent.
    An image of `sample_weight` 0 takes part in nothing but batch-norm statistics (the student's; a
    teacher's by `teacher_batch_norm`) and `metrics=`, which Keras leaves unweighted, too; its
    pixels must be finite.
    Labels out of range and negative weights stop the run; under XLA, which drops assertions (and
    which Keras turns on by itself on one GPU), the loss turns NaN and the gradient 0.

    Args:
        teacher: A built Keras model, a `FrozenTeacher`, or a function from images to outputs. It is
            copied, never changed and never saved. None where no objective reads a teacher.
        student: A built Keras model that returns logits or a dict of named outputs.
        objectives: Objectives with different names.
        views: `Plain` or `Rotations`. Default: `Plain()`, no augmentation.
        teacher_preprocessing: Layer, model or function from these images to the teacher's input.
        teacher_views: Views of the teacher's own, as many as the student's, drawn independently of
            them. Default: the teacher sees what the student sees.
        teacher_head: A functional Keras model from outputs of the teacher (each input is named like
            the one that it takes; a single input may take the only one) to more named outputs. To
            the student's objectives its outputs are constants. It is saved with the Distiller.
        teacher_objectives: The terms that train the head, with `compile(teacher_optimizer=)`, in
            the same steps as the student. What they call the student is the head; its outputs
            stand beside those of the teacher. Without any, and where no objective of the student
            has `trains_teacher_head`, the head stays as it is and runs in inference mode.
        teacher_batch_norm: How the teacher runs in a training step; an evaluation and `check`'s
            comparisons run it in inference mode. None: `"inference"`, or as a `FrozenTeacher` was
            frozen.

            * `"inference"`: with its moving averages; dropout is off.
            * `"batch"`: its batch normalisation uses the statistics of the rows of this replica, so
              that its answer for an image depends on the other images. Dropout is off, and no
              moving average changes.
            * `"batch_update"`: so, and dropout is on and its own moving averages follow, as
              published for SSLD (76.00 against 75.84 %, from one run each).

            `freeze` tells the rest: what it refuses, replicas, resuming.
        seed: Seed of the views. Step k of a run draws from `(seed, k)`.
        name: Name of the model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If networks, objectives and views do not fit one another.
    """

    def __init__(
        self,
        teacher: keras.Model | FrozenTeacher | Callable | None = None,
        student: keras.Model | None = None,
        objectives: Sequence[Objective] = (),
        views: Views | None = None,
        *,
        teacher_preprocessing: Callable[[tf.Tensor], tf.Tensor] | None = None,
        teacher_views: Views | None = None,
        teacher_head: keras.Model | None = None,
        teacher_objectives: Sequence[Objective] = (),
        teacher_batch_norm: str | None = None,
        seed: int = 0,
        name: str = "distiller",
    ) -> None:
        check_strategy(tf.distribute.get_strategy())
        student = preflight.checked_student(student)
        preflight.check_objectives(objectives, RESERVED)
        preflight.check_untrained(objectives, student)
        views = Plain() if views is None else views
        preflight.check_views(views, teacher_views)
        teacher_head = checked_head(teacher_head)
        check_apart(teacher_head, student)
        check_training(teacher_head, objectives, teacher_objectives, RESERVED)
        # autocast=False: float images must reach the networks' own normalisation in full precision.
        # The policy: Keras scales the loss of a model whose own policy is mixed_float16 alone.
        policy = "mixed_float16" if preflight.uses_float16(student) else student.dtype_policy
        super().__init__(name=name, dtype=policy, autocast=False)
        self.student = student
        self.objectives = tuple(objectives)
        self.views = views
        self.teacher_views = teacher_views
        self.teacher_head = teacher_head
        self.teacher_objectives = tuple(teacher_objectives)
        self.teacher_optimizer = None
        everyone = (*self.objectives, *self.teacher_objectives)
        self.objective_states = [one.state for one in everyone if one.state is not None]
        self.seed = int(seed)
        self.evaluate_views = False
        self._trackers = None
        self.set_teacher(teacher, teacher_preprocessing, teacher_batch_norm=teacher_batch_norm)
        self.built = True

    def set_teacher(
        self,
        teacher: keras.Model | FrozenTeacher | Callable | None,
        teacher_preprocessing: Callable[[tf.Tensor], tf.Tensor] | None = None,
        *,
        teacher_batch_norm: str | None = None,
    ) -> None:
        """Gives the Distiller its teacher, for instance after it was loaded from a file.

        Args:
            teacher: As in the constructor; None takes the teacher away.
            teacher_preprocessing: As in the constructor.
            teacher_batch_norm: As in the constructor; no file holds it.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If the teacher does not fit the student, the objectives or an argument.
        """
        check_batch_norm(teacher, teacher_batch_norm)
        preflight.check_preprocessing(teacher, teacher_preprocessing)
        with self.distribute_strategy.scope():
            frozen = (
                None
                if teacher is None
                else freeze(
                    teacher, preprocessing=teacher_preprocessing, batch_norm=teacher_batch_norm
                )
            )
        if frozen is not None and isinstance(frozen.preprocessing, ImagePreprocessing | None):
            preflight.check_one_input("teacher", frozen.model)
        outputs = None if frozen is None else frozen.outputs
        with_head = outputs_with_head(self.teacher_head, outputs)
        check_outputs(self, outputs, with_head, known_outputs(self.student))
        if frozen is not None:
            preflight.warn_if_teacher_is_smaller(frozen, self.student)
        self.teacher = frozen
        self.train_function = self.test_function = None  # they have traced the old teacher
        self._values_seen = False

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: keras.losses.Loss | Callable | None = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        *,
        teacher_optimizer: str | keras.optimizers.Optimizer | None = None,
        evaluate_views: bool = False,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
    ) -> None:
        """Configures training.

        Args:
            optimizer: Any Keras optimizer; `keras_ssd.optimizers.SGD` is that of the papers.
            loss: One more term, on labels and plain logits: a Keras loss object with
                `from_logits=True`, or a function of both. The mean is over all images of the batch,
                unlabeled ones counting 0.
            metrics: Fed with labels and plain logits; unlabeled images are left out.
            weighted_metrics: The same, weighted by `sample_weight`.
            teacher_optimizer: Any Keras optimizer, for the teacher's head where it is trained; its
                learning rate is its own, and no callback of Keras changes it.
            evaluate_views: Evaluate with views, teacher and objectives, without augmentation. What
                pretext training needs, where the logits do not change.
            run_eagerly: As in Keras.
            steps_per_execution: As in Keras; 1 with several replicas.
            jit_compile: As in Keras; not with several replicas.
            auto_scale_loss: As in Keras.

        Raises:
            ValueError: If a combination cannot be honoured.
        """
        preflight.check_loss(loss)
        preflight.check_optimizers(optimizer, teacher_optimizer, is_trained(self))
        with self.distribute_strategy.scope():
            optimizer = keras.optimizers.get(optimizer)
            teacher_optimizer = keras.optimizers.get(teacher_optimizer)
        replicas = self.distribute_strategy.num_replicas_in_sync
        for one in filter(None, (optimizer, teacher_optimizer)):
            preflight.check_scope("optimizer", one.variables, self.distribute_strategy)
            if replicas > 1:
                preflight.refuse_across_replicas(
                    replicas, one, loss, jit_compile, steps_per_execution
                )
        self.evaluate_views = bool(evaluate_views)
        options = {
            "loss": loss,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
            "auto_scale_loss": auto_scale_loss,
        }
        with self.distribute_strategy.scope():
            trackers = Trackers(
                [one.name for one in self.objectives] + [*map(shown_name, self.teacher_objectives)],
                preflight.diagnostic_names(self.objectives, self.student),
                metrics,
                weighted_metrics,
            )
            self._compile_loss = None  # Keras would keep the loss of an earlier `compile`
            self.loss = None
            super().compile(optimizer=optimizer, **options)
            if not self.optimizer.built:
                self.optimizer.build(self.student.trainable_variables)
            self.teacher_optimizer = self._prepared(teacher_optimizer, auto_scale_loss)
        self._trackers = trackers
        self._compile_arguments = Hidden(
            {
                **options,
                "metrics": metrics,
                "weighted_metrics": weighted_metrics,
                "evaluate_views": evaluate_views,
            }
        )

    def _prepared(
        self, optimizer: keras.optimizers.Optimizer | None, auto_scale_loss: bool
    ) -> keras.optimizers.Optimizer | None:
        """The optimizer of the teacher's head, built; it scales the loss of a float16 head."""
        if optimizer is None or self.teacher_head is None:
            return None
        is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if auto_scale_loss and not is_scaled and preflight.uses_float16(self.teacher_head):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        if not optimizer.built:
            optimizer.build(self.teacher_head.trainable_variables)
        return optimizer

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        *,
        check: bool = True,
        **options: Any,
    ) -> keras.callbacks.History:
        """Trains the student; arguments and result are those of `keras.Model.fit`, and `check`.

        The order of `Splits.train` follows the epoch by itself (`callbacks.FollowEpoch`).

        Args:
            x: As in Keras.
            y: As in Keras.
            batch_size: As in Keras.
            epochs: As in Keras.
            verbose: As in Keras.
            callbacks: As in Keras.
            check: Whether the first call looks at the first images, without running a network, and
                warns where their values do not fit one. A data set is begun once more for it.
            **options: As in Keras.

        Raises:
            ValueError: If labels, weights, images or the teacher's absence make a step impossible.
        """
        preflight.check_scope("student", self.student.variables, self.distribute_strategy)
        warn_if_alone(self.distribute_strategy)
        preflight.check_fit(x, y, options.get("class_weight"))
        if check and not self._values_seen:
            self._values_seen = warn_of_values(self, x)
        if isinstance(x, tf.data.Dataset):
            options.setdefault("shuffle", False)  # Keras warns that it ignores its own default
        callbacks = of_this_worker(followed(callbacks, x), self.distribute_strategy)
        self.trackers.set_modes(getattr(callbacks, "callbacks", callbacks))
        self._initial_epoch = None  # Keras would begin where an earlier `fit` was resumed
        with plain_sentences(self.distribute_strategy):
            history = super().fit(x, y, batch_size, epochs, verbose, callbacks=callbacks, **options)
            head = self.teacher_head
            if head is not None and is_trained(self) and epochs > 0:  # as Keras does the student's
                self.teacher_optimizer.finalize_variable_values(head.trainable_variables)
            # Batch normalisation on each worker has seen its own images.
            for network in filter(None, (self.student, self.teacher_head)):
                take_from_chief(self.distribute_strategy, network.non_trainable_variables)
            return history

    def check(
        self, x: Any, y: Any = None, sample_weight: Any = None, batch_size: int | None = None
    ) -> CheckReport:
        """Runs one batch through everything and prints a short table.

        The table begins with warnings, each with what to do: a teacher at chance, with its classes
        in another order or with images normalised as it was not trained; values that do not fit
        what a network expects; probabilities in place of logits; a batch too small to compare
        images; a term without gradient. Then teacher and student (precision, accuracy, entropy),
        and the terms of the student's loss and of the teacher's head: value, norm of the weighted
        gradient on who learns, and its cosine with the gradient of all of them.

        No Keras variable changes. It takes as long as some training steps (a backward pass a term,
        and the teacher a few times more); with several replicas the whole batch runs on one.

        Args:
            x: As in `fit`: a data set (begun once more for it), or images, or a dict.
            y: As in `fit`.
            sample_weight: As in `fit`.
            batch_size: Images taken out of arrays, evenly spread; 32 if None.

        Returns:
            The report; `print(report)` gives the table again.

        Raises:
            ValueError: If nothing is compiled yet, there is no batch that can be read again (a
                generator has none), or a step would fail.
        """
        if not self.compiled:
            raise ValueError("Call `compile()` before you check.")
        if tf.distribute.has_strategy():
            raise ValueError("Leave the scope of the tf.distribute strategy before checking.")
        size = 32 if batch_size is None else batch_size
        batch = preflight.checked_batch(x, first_batch(x, y, sample_weight, size))
        with plain_sentences(self.distribute_strategy):
            report = report_on(self, batch, num_batches(x, size))
        print(report)
        return report

    def evaluate(self, *args: Any, **options: Any) -> Any:
        """Evaluates the student; arguments and result are those of `keras.Model.evaluate`."""
        with self.trackers.evaluation(), plain_sentences(self.distribute_strategy):
            return super().evaluate(*args, **options)

    def predict(self, *args: Any, **options: Any) -> Any:
        """The student's logits; arguments and result are those of `keras.Model.predict`."""
        with plain_sentences(self.distribute_strategy):
            return super().predict(*args, **options)

    def train_on_batch(self, *args: Any, **options: Any) -> Any:
        """Trains on one batch; arguments and result are those of `keras.Model.train_on_batch`."""
        self._refuse_whole_batches("train_on_batch", "fit")
        return super().train_on_batch(*args, **options)

    def test_on_batch(self, *args: Any, **options: Any) -> Any:
        """Evaluates one batch; arguments and result are those of `keras.Model.test_on_batch`."""
        self._refuse_whole_batches("test_on_batch", "evaluate")
        with self.trackers.evaluation():
            return super().test_on_batch(*args, **options)

    def _refuse_whole_batches(self, method: str, instead: str) -> None:
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                f"In `{method}` Keras gives the whole batch to each of the {replicas} replicas, so "
                f"that every image counts {replicas} times: call `{instead}` instead."
            )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics that the current phase shows."""
        return [] if self._trackers is None else self._trackers.shown

    def reset_metrics(self) -> None:
        """Starts every mean anew, shown or not."""
        for tracker in [] if self._trackers is None else self._trackers.all:
            tracker.reset_state()
