"""What is timed: our training step, its bare parts, and the step of `keras.distillation`.

All run on resident tensors in a `tf.function`: batch 64, so 256 rows of 32x32 where a method turns
its images, and 100 classes. Data loading, callbacks and `fit` are in none of them.
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf
from keras.distillation import Distiller as PeerDistiller
from keras.distillation import FeatureDistillation, LogitsDistillation
from timing import Contestant

import keras_ssd as ssd

FLOAT32, BFLOAT16 = "float32", "mixed_bfloat16"
SMALL, WIDE = ("resnet56", "resnet20"), ("resnet32x4", "resnet8x4")
IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Setting:
    """Teacher, student and how they run.

    Args:
        pair: Names of teacher and student.
        precision: Dtype policy of the student; the teacher's feature maps are in the same.
        fused: Whether batch normalisation is ours (in the teacher folded), not Keras'.
        preset: Name of a preset.
        images: Images a batch.
        num_classes: Classes.
        input_shape: Height, width and channels of an image.
    """

    pair: tuple[str, str]
    precision: str = FLOAT32
    fused: bool = True
    preset: str = "sskd"
    images: int = IMAGES
    num_classes: int = 100
    input_shape: tuple[int, int, int] = (32, 32, 3)

    @property
    def options(self) -> dict:
        """Views and objectives."""
        return getattr(ssd.presets, self.preset)()

    def build(self, name: str, dtype: str) -> keras.Model:
        """A network with the heads that the preset reads."""
        network = ssd.models.build(
            name,
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            mean=(0.5071, 0.4867, 0.4408),
            std=(0.2675, 0.2565, 0.2761),
            dtype=dtype,
        )
        network = network if self.fused else with_keras_batch_norm(network)
        if self.preset in ("hsakd", "combined"):
            network = ssd.with_auxiliary_classifiers(network)
        if self.preset in ("sskd", "sskd_pretext", "combined"):
            backbone = "frozen" if self.preset == "sskd_pretext" else "trainable"
            network = ssd.with_projection(network, backbone=backbone)
        return network

    def student(self) -> keras.Model:
        """The student."""
        return self.build(self.pair[1], self.precision)

    def teacher(self) -> ssd.FrozenTeacher | None:
        """The frozen teacher, None where the preset reads none."""
        if not any(objective.teacher_outputs for objective in self.options["objectives"]):
            return None
        if not self.fused:
            return ssd.freeze(self.build(self.pair[0], self.precision), fold_batch_norm=False)
        dtype = None if self.precision == FLOAT32 else "bfloat16"
        return ssd.freeze(self.build(self.pair[0], FLOAT32), dtype=dtype)

    def batch(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Raw images and labels."""
        shape = [self.images, *self.input_shape]
        images = tf.random.stateless_uniform(shape, [0, 1], 0, 256, tf.int32)
        labels = tf.random.stateless_uniform([self.images], [0, 2], 0, self.num_classes, tf.int32)
        return tf.cast(images, tf.uint8), labels

    def rows(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The same as the rows that the networks see."""
        return tuple(
            tf.repeat(part, self.options["views"].num_views, axis=0) for part in self.batch()
        )


def with_keras_batch_norm(network: keras.Model) -> keras.Model:
    """The network with new layers, batch normalisation being Keras' own."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.BatchNormalization.from_config(layer.get_config())
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(network, clone_function=clone)


def optimizer(
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.001,
) -> keras.optimizers.Optimizer:
    """SGD as the papers ran it."""
    return ssd.optimizers.SGD(learning_rate, momentum=0.9, weight_decay=5e-4)


def step(setting: Setting) -> Contestant:
    """Our training step: views, teacher, student, objectives, update, metrics."""
    distiller = ssd.Distiller(setting.teacher(), setting.student(), **setting.options)
    distiller.compile(optimizer=optimizer())
    return in_graph(distiller, setting.batch())


def in_graph(distiller: keras.Model, batch: tuple[tf.Tensor, tf.Tensor]) -> Contestant:
    """One training step of a compiled Keras model on one batch, under XLA where `fit` uses it."""
    jit_compile = bool(distiller.jit_compile)  # not on a CPU
    function = tf.function(lambda: distiller.train_step(batch)["loss"], jit_compile=jit_compile)
    return lambda: function().numpy()


def parts(setting: Setting) -> Contestant:
    """The same teacher's forward alone, and the same student's forward, backward and update."""
    teacher, student, sgd = setting.teacher(), setting.student(), optimizer()
    variables = student.trainable_variables
    sgd.build(variables)
    rows = setting.rows()[0]

    @tf.function
    def forward() -> dict[str, tf.Tensor]:
        return {} if teacher is None else teacher(rows)

    @tf.function
    def update() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = student(rows, training=True)
            outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
            loss = tf.add_n([tf.reduce_mean(tensor**2) for tensor in outputs.values()])
        gradients = tape.gradient(loss, variables)
        sgd.apply(gradients, variables)
        return loss

    def both() -> None:
        for tensor in forward().values():
            tensor.numpy()
        update().numpy()

    return both


def peer(setting: Setting) -> Contestant:
    """`keras.distillation.Distiller` with two losses, logits and one feature map, on our rows.

    Its teacher is the Keras model itself, in the student's precision: it takes nothing else.
    """
    setting = dataclasses.replace(setting, preset="kd")
    teacher, student = (setting.build(name, setting.precision) for name in setting.pair)
    distiller = PeerDistiller(
        teacher=teacher,
        student=student,
        distillation_losses=[
            LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence()),
            FeatureDistillation(teacher_layer_name="stage_3", student_layer_name="stage_3"),
        ],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(optimizer=optimizer(), loss=loss)
    rows = dataclasses.replace(setting, preset="sskd").rows()
    distiller.train_on_batch(*rows)  # builds
    return in_graph(distiller, rows)
