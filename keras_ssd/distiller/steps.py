"""What one batch does: views, one teacher forward, one student forward, objectives, one update."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.batch import Batch
from keras_ssd.collectives import all_sum, num_replicas, replica_rows, row_count
from keras_ssd.distiller import preflight
from keras_ssd.distiller.gradients import shared_gradients
from keras_ssd.distiller.guard import Guard, fed_everywhere
from keras_ssd.distiller.inputs import Inputs, check_inputs, images_of, with_known_size
from keras_ssd.distiller.rehearsal import OWN, Rehearsal, TapedTerm
from keras_ssd.distiller.teacher_head import check_outputs, is_trained, run_head, shown_name
from keras_ssd.distiller.trackers import Trackers
from keras_ssd.losses import at_least_float32
from keras_ssd.objectives import HardLabels, Objective
from keras_ssd.teacher import FrozenTeacher, named
from keras_ssd.views import Views

_TEACHERS_DRAWS = 1 << 40  # added to the seed: the teacher's own views are drawn independently
_Term = tuple[Objective, tf.Tensor, tf.Tensor]  # an objective, its sum and its count
_CROSS_ENTROPY = HardLabels(name="cross_entropy")  # the loss of an evaluation


class Steps(keras.Model):
    """The training and evaluation step of the Distiller, which sets the attributes below.

    Attributes:
        student: The network that is trained.
        teacher: The frozen teacher, or None.
        objectives: The terms of the loss.
        views: From images to rows.
        teacher_views: The teacher's own, or None: the same rows.
        teacher_head: What is trained on the teacher's side, or None.
        teacher_objectives: The terms that train it.
        teacher_optimizer: What updates it, or None.
        seed: Seed of the views.
        evaluate_views: Whether an evaluation runs views, teacher and objectives.
    """

    student: keras.Model
    teacher: FrozenTeacher | None
    objectives: tuple[Objective, ...]
    views: Views
    teacher_views: Views | None
    teacher_head: keras.Model | None
    teacher_objectives: tuple[Objective, ...]
    teacher_optimizer: Any  # an optimizer where the head is trained, else None
    seed: int
    evaluate_views: bool
    _trackers: Trackers | None

    @property
    def trackers(self) -> Trackers:
        """The means that are shown."""
        if self._trackers is None:
            raise ValueError("Call `compile()` before you train or evaluate.")
        return self._trackers

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing: all is built, and Keras' average of a batch over replicas needs equal shards."""

    def call(self, x: Any, training: bool | None = None) -> tf.Tensor:
        """The student's logits of plain images (or of a dict with `image`)."""
        return named(self.student(images_of(x), training=training), "student")["logits"]

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One update of the student; returns the running means of the epoch."""
        inputs = self._inputs(data, training=True)
        check_inputs(self, inputs)
        preflight.check_batch_size(self.objectives, inputs.images)
        preflight.check_batch_size(self.teacher_objectives, inputs.images)
        rows, teacher = self._views_and_teacher(inputs, self._step_seed(), training=True)
        trains_head = is_trained(self)
        with tf.GradientTape(persistent=trains_head) as tape:
            batch, guard, added = self._batch(inputs, rows, teacher, training=True)
            self._require_logits(guard, batch)
            terms = _run(self.objectives, batch)
            head_terms = self._head_terms(batch, teacher)
            preflight.check_untrained(self.objectives, self.student)  # layers may be built only now
            share = guard.nan_if_broken(_share(terms, self._student_losses(batch, added)))
            scaled = self.optimizer.scale_loss(share)
            if trains_head:
                reaching = [*_reaching_head(terms), *head_terms]
                head_share = _share(reaching, tf.zeros([], share.dtype))
                head_scaled = self.teacher_optimizer.scale_loss(guard.nan_if_broken(head_share))
        if trains_head:
            self._update(tape, head_scaled, "teacher_head", self.teacher_optimizer, guard)
        self._update(tape, scaled, "student", self.optimizer, guard)
        self._track(batch, terms, head_terms, guard.checked(share))
        return self.get_metrics_result()

    def rehearse(self, data: Any) -> Rehearsal:
        """A training step on one replica that changes nothing, its gradient a term at a time.

        Args:
            data: A batch, as `fit` hands one to `train_step`.
        """
        inputs = self._inputs(data, training=True)
        check_inputs(self, inputs)
        with keras.StatelessScope():  # moving averages of the teacher stay as they are
            rows, teacher = self._views_and_teacher(inputs, self._step_seed(), training=True)
        # What would be written to a variable (batch-norm statistics, random states) stays in here.
        scope = keras.StatelessScope(collect_losses=True, initialize_variables=False)
        with scope, tf.GradientTape(persistent=True) as tape:
            batch, *_ = self._batch(inputs, rows, teacher, training=True)
            terms = _run(self.objectives, batch)
            preflight.check_untrained(self.objectives, self.student)
            taped = [TapedTerm.of(*term) for term in terms]
            of_head = [TapedTerm.of(*term) for term in _reaching_head(terms)]
            head_terms = self._head_terms(batch, teacher)
            of_head += [TapedTerm.of(*term, name=shown_name(term[0])) for term in head_terms]
        with tape:  # regularisers find no weights in the scope
            own = self._student_losses(batch, scope.losses)
        if own != 0:
            taped.append(TapedTerm(OWN, 1.0, own, None, own))
        students, head = self.student.trainable_variables, self.teacher_head
        heads = head.trainable_variables if head is not None and is_trained(self) else []
        return Rehearsal(
            batch,
            [term.rehearsed(tape, students) for term in taped],
            [term.rehearsed(tape, heads) for term in of_head if heads],
        )

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One batch of an evaluation; changes no variable but the running means."""
        inputs = self._inputs(data, training=False)
        if self.evaluate_views:
            check_inputs(self, inputs)
            preflight.check_batch_size(self.objectives, inputs.images)
            objectives = self.objectives
            rows, teacher = self._views_and_teacher(inputs, None, training=False)
        elif inputs.labels is None:
            raise ValueError(
                "An evaluation without labels measures nothing: give `y`, or compile with "
                "`evaluate_views=True` to see the objectives."
            )
        else:
            objectives, (rows, teacher) = (_CROSS_ENTROPY,), (inputs.images, {})
        batch, guard, added = self._batch(inputs, rows, teacher, training=False)
        self._require_logits(guard, batch)
        terms = _run(objectives, batch)
        share = guard.nan_if_broken(_share(terms, self._student_losses(batch, added)))
        head_terms = self._head_terms(batch, teacher) if self.evaluate_views else []
        self._track(batch, terms if self.evaluate_views else [], head_terms, guard.checked(share))
        return self.get_metrics_result()

    def predict_step(self, data: Any) -> tf.Tensor:
        """The student's logits of one batch."""
        images = images_of(keras.utils.unpack_x_y_sample_weight(data)[0])
        return self(fed_everywhere(images, self.student, training=False), training=False)

    def _inputs(self, data: Any, training: bool) -> Inputs:
        inputs = Inputs.of(data)
        preflight.check_student_size(self.student, inputs.images)
        images = fed_everywhere(inputs.images, self.student, training)
        return dataclasses.replace(inputs, images=images)

    def _step_seed(self) -> tf.Tensor:
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int64)
        return tf.stack([tf.constant(self.seed, tf.int64), step])

    def _views_and_teacher(
        self, inputs: Inputs, seed: tf.Tensor | None, training: bool
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        images = with_known_size(inputs.images, self.student)
        rows = inputs.rows(self.views, images, seed)
        if inputs.teacher is not None:
            return rows, inputs.teacher_rows(self.views.num_views)
        if self.teacher is None:
            return rows, {}
        teachers_rows = rows
        if self.teacher_views is not None:
            teachers_seed = (
                None if seed is None else seed + tf.constant([_TEACHERS_DRAWS, 0], seed.dtype)
            )
            teachers_rows = self.teacher_views(images, teachers_seed)
        return rows, self.teacher(teachers_rows, training=training)

    def _batch(
        self, inputs: Inputs, rows: tf.Tensor, teacher: Mapping[str, tf.Tensor], training: bool
    ) -> tuple[Batch, Guard, list[tf.Tensor]]:
        """Runs the student and puts all that objectives are given into a Batch."""
        with_views = training or self.evaluate_views
        outputs, added = self._run_student(rows, training)
        student = named(outputs, "student")
        if with_views:
            learns = training and is_trained(self)
            frozen, teacher = teacher, {**teacher, **run_head(self.teacher_head, teacher, learns)}
            check_outputs(self, frozen or None, teacher or None, student)
        guard = Guard(inputs, student["logits"].shape[-1])
        batch = Batch(
            images=rows,
            labels=guard.labels,
            sample_weight=guard.sample_weight,
            teacher=teacher,
            student=student,
            num_views=self.views.num_views if with_views else 1,
            index=inputs.index,
            training=training,
        )
        return batch, guard, added

    def _head_terms(self, batch: Batch, frozen: Mapping[str, tf.Tensor]) -> list[_Term]:
        """The terms that train the teacher's head, which is their student."""
        return _run(
            self.teacher_objectives,
            dataclasses.replace(batch, teacher=frozen, student=batch.teacher),
        )

    def _require_logits(self, guard: Guard, batch: Batch) -> None:
        guard.require_logits("student", batch.student["logits"])
        read = any("logits" in objective.teacher_outputs for objective in self.objectives)
        if read and "logits" in batch.teacher:
            guard.require_logits("teacher", batch.teacher["logits"])

    def _run_student(self, rows: tf.Tensor, training: bool) -> tuple[Any, list[tf.Tensor]]:
        """The student's outputs, and with several replicas what its layers gave to `add_loss`."""
        if num_replicas() == 1:
            return self.student(rows, training=training), []
        # Layers keep `add_loss` in one list, while the replicas' traces alternate at collectives.
        with keras.StatelessScope(collect_losses=True, initialize_variables=False) as scope:
            outputs = self.student(rows, training=training)
        for variable in self.student.variables:
            updated = scope.get_current_value(variable)
            if updated is not None:
                variable.assign(updated)
        return outputs, scope.losses

    def _student_losses(self, batch: Batch, added: list[tf.Tensor]) -> tf.Tensor:
        """Regularisers, `add_loss` and `compile(loss=)`: this replica's share."""
        logits = at_least_float32(batch.select(batch.student["logits"], "plain"))
        loss = tf.zeros([], logits.dtype)
        for term in added:
            loss += tf.cast(tf.reduce_sum(term), loss.dtype)
        if self.loss is not None or self.losses:
            labels = None if batch.labels is None else tf.maximum(batch.labels, 0)
            weights = batch.weights_of("plain", labeled=labels is not None)
            mean = self.compute_loss(y=labels, y_pred=logits, sample_weight=weights)
            # Keras divides by the number of replicas, as if they had equal numbers of images.
            loss += tf.cast(mean * num_replicas(), loss.dtype)
        elif not added:
            return loss
        rows = row_count(logits)
        _, total = replica_rows(rows)
        part = tf.math.divide_no_nan(tf.cast(rows, loss.dtype), tf.cast(total, loss.dtype))
        return tf.where(part > 0, loss * part, 0)  # the mean of a replica without images is NaN

    def _update(
        self,
        tape: tf.GradientTape,
        scaled_loss: tf.Tensor,
        part: str,
        optimizer: keras.optimizers.Optimizer,
        guard: Guard,
    ) -> None:
        variables = getattr(self, part).trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        # A head that no objective reads has no gradient; zeros would let weight decay move it.
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        if not pairs:
            raise ValueError(
                f"No objective reaches a trainable variable of the {part.replace('_', ' ')}: "
                "check `trainable` and the outputs that the objectives read."
            )
        checked = guard.checked([gradient for gradient, _ in pairs])
        shared = shared_gradients(checked, optimizer)
        optimizer.apply(shared, [variable for _, variable in pairs])

    def _track(
        self, batch: Batch, terms: list[_Term], head_terms: list[_Term], share: tf.Tensor
    ) -> None:
        trackers = self.trackers
        student = batch.select(batch.student["logits"], "plain")
        images = tf.cast(row_count(student), share.dtype)
        sums = {objective.name: (total, count) for objective, total, count in terms}
        sums |= {shown_name(objective): (total, count) for objective, total, count in head_terms}
        if terms:
            sums |= self._diagnostics(batch)
        # Replicas add up tensors of one dtype at a time.
        sums = tf.nest.map_structure(lambda x: tf.cast(x, share.dtype), sums)
        # Every replica counts the global batch: what a callback is shown is a mean over replicas.
        loss, images, sums = all_sum((share, images, sums))
        trackers.loss.update_state(loss, sample_weight=images)
        trackers.update_means(sums)
        teacher = batch.teacher.get("logits")
        comparable = teacher is not None and teacher.shape[-1] == student.shape[-1]
        if comparable:
            teacher = batch.select(teacher, "plain")
            trackers.update_agreement(teacher, student, batch.weights_of("plain"))
        labeled = batch.labels is not None
        if labeled:
            known = tf.cast(batch.labels_of("plain") >= 0, tf.float32)
            weights = batch.weights_of("plain", labeled=True)
            trackers.compiled.update(batch.labels, student, known, weights)
        trackers.show(
            loss=labeled or bool(terms),
            terms=bool(terms),
            diagnostics=bool(terms) and labeled,
            agreement=comparable,
            compiled=labeled,
        )

    def _diagnostics(self, batch: Batch) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """What objectives show beside their values; under one name, the first one's."""
        shown: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}
        for objective in self.objectives:
            shown = {**objective.diagnostics(batch), **shown}
        return {name: shown[name] for name in self.trackers.diagnostics if name in shown}


def _run(objectives: Sequence[Objective], batch: Batch) -> list[_Term]:
    constant = dataclasses.replace(
        batch, teacher=tf.nest.map_structure(tf.stop_gradient, dict(batch.teacher))
    )
    terms = []
    for objective in objectives:
        total, count = objective(batch if objective.trains_teacher_head else constant)
        total = tf.convert_to_tensor(total)
        count = tf.cast(count, total.dtype)
        if total.shape.rank or count.shape.rank:
            raise ValueError(
                f"`{objective.name}` must return two scalars, the sum over its rows and their "
                f"weight, got shapes {total.shape} and {count.shape}: sum over the rows."
            )
        terms.append((objective, total, count))
    return terms


def _share(terms: Sequence[_Term], others: tf.Tensor) -> tf.Tensor:
    """This replica's share of the weighted terms and `others`: all shares add up to the loss."""
    share = others
    counts = all_sum([count for _, _, count in terms])
    for (objective, total, _), count in zip(terms, counts, strict=True):
        mean = tf.math.divide_no_nan(total, tf.stop_gradient(count))
        share += tf.cast(objective.weight * mean, share.dtype)
    return share


def _reaching_head(terms: Sequence[_Term]) -> list[_Term]:
    return [term for term in terms if term[0].trains_teacher_head]
