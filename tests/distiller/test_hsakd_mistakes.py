"""HSAKD, the combination and two peers inside the Distiller: what they refuse."""

import keras
import pytest

import keras_ssd as ssd
from keras_ssd.objectives import AuxiliaryTransfer, Mutual

from .hsakd import distiller, each, network, preset_of
from .tiny import IMAGES, assert_equal, differs, fit, sgd, step, trained


def peers(**options):
    return ssd.with_peer(network(), network(seed=2, **options))


def without(model, *heads):
    outputs = {name: rows for name, rows in model.output.items() if name not in heads}
    return keras.Model(model.input, outputs, name=model.name)


AUXILIARY = ["auxiliary_1", "auxiliary_2"]
ADVICE = r"attach the head \(.*`with_auxiliary_classifiers`"
NOT_MADE = {  # name: (method, student, teacher, what the sentence says)
    "teacher without heads": (
        "hsakd",
        network,
        lambda: without(network(8), *AUXILIARY),
        f"`auxiliary_transfer` reads the teacher's output 'auxiliary_1', which .* lacks.*{ADVICE}",
    ),
    "student without heads": (
        "hsakd",
        lambda: without(network(), *AUXILIARY),
        lambda: network(8),
        f"`auxiliary_transfer` reads the student's output 'auxiliary_1', which .* lacks.*{ADVICE}",
    ),
    "teacher to be, without heads": (
        "hsakd_teacher",
        lambda: without(network(), *AUXILIARY),
        lambda: None,
        "`auxiliary_labels` reads the student's output 'auxiliary_1', which the student lacks",
    ),
    "more heads in the teacher": (
        "hsakd",
        network,
        lambda: network(8, heads=3),
        r"the teacher has 3 \(auxiliary_1, .*auxiliary_3\) and the student 2 .* as many `taps=`",
    ),
    "more heads in the student": (
        "combined",
        lambda: network(heads=3),
        lambda: network(8),
        r"the teacher has 2 \(auxiliary_1, auxiliary_2\) and the student 3 .* as many `taps=`",
    ),
    "other views in the student": (
        "hsakd",
        lambda: network(views=2),
        lambda: network(8),
        "'auxiliary_1' has 12 columns in the teacher and 6 in the student",
    ),
    "other views in both": (
        "hsakd",
        lambda: network(views=2),
        lambda: network(8, views=2),
        r"heads of 3 classes x 4 views = 12 columns, but 'auxiliary_1' of the teacher has 6: .*=4",
    ),
    "other views in the teacher to be": (
        "hsakd_teacher",
        lambda: network(views=2),
        lambda: None,
        r"heads of 3 classes x 4 views = 12 columns, but 'auxiliary_1' of the student has 6: .*=4",
    ),
    "other classes": (
        "hsakd",
        network,
        lambda: network(8, classes=4),
        "the teacher has 4 classes and the student 3",
    ),
    "no projection": (
        "combined",
        network,
        lambda: without(network(8), "projection"),
        r"`similarity_transfer` reads the teacher's output 'projection', .*\(`with_projection`",
    ),
    "no peer": (
        "hsakd_online",
        network,
        lambda: None,
        r"`hard_labels` reads the student's output 'peer_logits', which .* \(`with_peer`\)",
    ),
    "peer without heads": (
        "hsakd_online",
        lambda: ssd.with_peer(network(), without(network(), *AUXILIARY)),
        lambda: None,
        f"`auxiliary_labels` reads the student's output 'peer_auxiliary_1', which .*{ADVICE}",
    ),
    "peer with more heads": (
        "hsakd_online",
        lambda: peers(heads=3),
        lambda: None,
        "`auxiliary_transfer` pairs the heads of both networks",
    ),
    "peer with other views": (
        "hsakd_online",
        lambda: peers(views=2),
        lambda: None,
        "heads of 3 classes x 4 views = 12 columns, but 'auxiliary_1' of the student has 6",
    ),
}


@pytest.mark.parametrize("case", NOT_MADE)
def test_refused_at_construction(case):
    method, student, teacher, message = NOT_MADE[case]
    with pytest.raises(ValueError, match=message):
        ssd.Distiller(teacher(), student(), **preset_of(method))


@each
def test_plain_views_are_refused(method):
    preset = {"objectives": preset_of(method)["objectives"], "views": ssd.views.Plain()}
    with pytest.raises(ValueError, match=r"reads transformed views.*: use `views=Rotations\(\)`"):
        distiller(method, preset=preset)


class Plainly(keras.Model):
    """A subclassed network: what it returns is known once it is called."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, images, training=None):
        return self.model(images, training=training)


@pytest.mark.filterwarnings("ignore:The teacher has fewer parameters")
@pytest.mark.parametrize("case", [name for name in NOT_MADE if NOT_MADE[name][0] != "hsakd_online"])
def test_refused_at_the_first_step_where_only_a_call_tells(case):
    method, student, teacher, message = NOT_MADE[case]
    networks = []
    for model in (teacher(), student()):
        networks.append(model and Plainly(model))
        if model:
            networks[-1](IMAGES)
    model = ssd.Distiller(*networks, **preset_of(method))
    model.compile(sgd(), run_eagerly=True)
    before = trained(model)
    with pytest.raises(ValueError, match=message):
        step(model)
    assert_equal(trained(model), before)


def test_a_subclassed_student_is_trained_but_shows_no_diagnostics():
    student = Plainly(network())
    student(IMAGES)
    model = distiller("hsakd_teacher", student=student)
    before = trained(model)
    assert fit(model).keys() == {"loss", "hard_labels", "auxiliary_labels"}
    assert differs(trained(model), before)


def test_a_metric_named_like_a_diagnostic():
    metric = keras.metrics.SparseCategoricalAccuracy(name="auxiliary_1_joint_accuracy")
    with pytest.raises(ValueError, match="Two metrics are named 'auxiliary_1_joint_accuracy'"):
        distiller("hsakd_teacher", metrics=[metric])


def test_mutual_survives_a_config():
    objective = Mutual(AuxiliaryTransfer(2.0, weight=0.5, diagnostics=False), name="both")
    read = Mutual.from_config(objective.get_config())
    assert (read.name, read.weight, read.objective.temperature) == ("both", 0.5, 2.0)
    assert read.get_config() == objective.get_config()
