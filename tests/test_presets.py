import inspect

import pytest

from keras_ssd import presets
from keras_ssd.objectives import (
    AuxiliaryLabels,
    AuxiliaryTransfer,
    ContrastivePretext,
    EmbeddingGraph,
    HardLabels,
    Mutual,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
    SymmetricSoftLabels,
)
from keras_ssd.views import Plain, Rotations

PADDED = {"padding": 2, "pad_value": 7}

SPELLED_OUT = {  # name: (preset, objectives, views)
    "labels_only": (
        presets.labels_only(),
        [HardLabels(1.0)],
        Plain(crop=True, flip=True, padding=4, pad_value=0),
    ),
    "labels_only, changed": (
        presets.labels_only(crop=False, flip=False, **PADDED),
        [HardLabels()],
        Plain(crop=False, flip=False, **PADDED),
    ),
    "kd": (
        presets.kd(),
        [HardLabels(0.1), SoftLabels(4.0, weight=0.9)],
        Plain(crop=True, flip=True, padding=4, pad_value=0),
    ),
    "kd, changed": (
        presets.kd(
            labels_weight=0.2,
            soft_labels_weight=0.8,
            temperature=2.0,
            crop=False,
            flip=False,
            **PADDED,
        ),
        [HardLabels(0.2), SoftLabels(2.0, weight=0.8)],
        Plain(crop=False, flip=False, **PADDED),
    ),
    "sskd_pretext": (
        presets.sskd_pretext(),
        [ContrastivePretext(1.0, weight=1.0)],
        Rotations(crop="each", flip=True, padding=4, pad_value=0),
    ),
    "sskd_pretext, changed": (
        presets.sskd_pretext(temperature=0.5, crop=None, flip=False, **PADDED),
        [ContrastivePretext(0.5)],
        Rotations(crop=None, flip=False, **PADDED),
    ),
    "sskd": (
        presets.sskd(),
        [
            HardLabels(0.1),
            SoftLabels(4.0, weight=0.9),
            SelectiveSoftLabels(4.0, keep_wrong=1.0, weight=2.7),
            SimilarityTransfer(0.5, keep_wrong=0.75, weight=10.0),
        ],
        Rotations(crop="each", flip=True, padding=4, pad_value=0),
    ),
    "sskd, changed": (
        presets.sskd(
            labels_weight=1.0,
            soft_labels_weight=2.0,
            selective_weight=3.0,
            similarity_weight=4.0,
            temperature=5.0,
            similarity_temperature=6.0,
            keep_wrong_labels=0.7,
            keep_wrong_similarity=0.8,
            crop="shared",
            flip=False,
            **PADDED,
        ),
        [
            HardLabels(1.0),
            SoftLabels(5.0, weight=2.0),
            SelectiveSoftLabels(5.0, keep_wrong=0.7, weight=3.0),
            SimilarityTransfer(6.0, keep_wrong=0.8, weight=4.0),
        ],
        Rotations(crop="shared", flip=False, **PADDED),
    ),
    "ssld": (
        presets.ssld(),
        [SymmetricSoftLabels(1.0, temperature=1.0)],
        Plain(crop=True, flip=True, padding=4, pad_value=0),
    ),
    "ssld, changed": (
        presets.ssld(soft_labels_weight=2.0, temperature=3.0, crop=False, flip=False, **PADDED),
        [SymmetricSoftLabels(2.0, temperature=3.0)],
        Plain(crop=False, flip=False, **PADDED),
    ),
    "hsakd_teacher": (
        presets.hsakd_teacher(),
        [HardLabels(1.0), AuxiliaryLabels(1.0)],
        Rotations(crop="shared", flip=True, padding=4, pad_value=0),
    ),
    "hsakd_teacher, changed": (
        presets.hsakd_teacher(
            labels_weight=2.0,
            auxiliary_weight=3.0,
            diagnostics=False,
            crop=None,
            flip=False,
            **PADDED,
        ),
        [HardLabels(2.0), AuxiliaryLabels(3.0, diagnostics=False)],
        Rotations(crop=None, flip=False, **PADDED),
    ),
    "hsakd": (
        presets.hsakd(),
        [
            HardLabels(1.0),
            SoftLabels(3.0, weight=1.0, views="all"),
            AuxiliaryTransfer(3.0, weight=1.0),
        ],
        Rotations(crop="shared", flip=True, padding=4, pad_value=0),
    ),
    "hsakd, changed": (
        presets.hsakd(
            labels_weight=2.0,
            soft_labels_weight=3.0,
            auxiliary_weight=4.0,
            temperature=5.0,
            diagnostics=False,
            crop="each",
            flip=False,
            **PADDED,
        ),
        [
            HardLabels(2.0),
            SoftLabels(5.0, weight=3.0, views="all"),
            AuxiliaryTransfer(5.0, weight=4.0, diagnostics=False),
        ],
        Rotations(crop="each", flip=False, **PADDED),
    ),
    "hsakd_online": (
        presets.hsakd_online(),
        [
            Mutual(HardLabels(1.0)),
            Mutual(AuxiliaryLabels(1.0)),
            Mutual(SoftLabels(3.0, weight=1.0, views="all")),
            Mutual(AuxiliaryTransfer(3.0, weight=1.0, diagnostics=False)),
        ],
        Rotations(crop="shared", flip=True, padding=4, pad_value=0),
    ),
    "hsakd_online, changed": (
        presets.hsakd_online(
            labels_weight=2.0,
            auxiliary_labels_weight=3.0,
            soft_labels_weight=4.0,
            auxiliary_weight=5.0,
            temperature=6.0,
            diagnostics=False,
            crop=None,
            flip=False,
            **PADDED,
        ),
        [
            Mutual(HardLabels(2.0)),
            Mutual(AuxiliaryLabels(3.0, diagnostics=False)),
            Mutual(SoftLabels(6.0, weight=4.0, views="all")),
            Mutual(AuxiliaryTransfer(6.0, weight=5.0, diagnostics=False)),
        ],
        Rotations(crop=None, flip=False, **PADDED),
    ),
    "combined_teacher": (
        presets.combined_teacher(),
        [HardLabels(1.0), AuxiliaryLabels(1.0), ContrastivePretext(1.0, weight=1.0)],
        Rotations(crop="each", flip=True, padding=4, pad_value=0),
    ),
    "combined_teacher, changed": (
        presets.combined_teacher(
            labels_weight=2.0,
            auxiliary_weight=3.0,
            pretext_weight=4.0,
            pretext_temperature=0.5,
            diagnostics=False,
            crop="shared",
            flip=False,
            **PADDED,
        ),
        [
            HardLabels(2.0),
            AuxiliaryLabels(3.0, diagnostics=False),
            ContrastivePretext(0.5, weight=4.0),
        ],
        Rotations(crop="shared", flip=False, **PADDED),
    ),
    "combined": (
        presets.combined(),
        [
            HardLabels(1.0),
            SoftLabels(3.0, weight=1.0, views="all"),
            AuxiliaryTransfer(3.0, weight=1.0),
            SimilarityTransfer(0.5, keep_wrong=0.75, weight=10.0),
        ],
        Rotations(crop="each", flip=True, padding=4, pad_value=0),
    ),
    "combined, changed": (
        presets.combined(
            labels_weight=2.0,
            soft_labels_weight=3.0,
            auxiliary_weight=4.0,
            similarity_weight=5.0,
            temperature=6.0,
            similarity_temperature=0.7,
            keep_wrong_similarity=0.8,
            diagnostics=False,
            crop="shared",
            flip=False,
            **PADDED,
        ),
        [
            HardLabels(2.0),
            SoftLabels(6.0, weight=3.0, views="all"),
            AuxiliaryTransfer(6.0, weight=4.0, diagnostics=False),
            SimilarityTransfer(0.7, keep_wrong=0.8, weight=5.0),
        ],
        Rotations(crop="shared", flip=False, **PADDED),
    ),
    "ega": (
        presets.ega(),
        [HardLabels(1.0), EmbeddingGraph(0.8, 0.24)],
        Plain(crop=True, flip=True, padding=4, pad_value=0),
        Plain(crop=True, flip=True, padding=4, pad_value=0),
        [HardLabels(1.0)],
    ),
    "ega, changed": (
        presets.ega(
            labels_weight=0.5,
            node_weight=1.0,
            edge_weight=0.3,
            shared_view=True,
            crop=False,
            flip=False,
            **PADDED,
        ),
        [HardLabels(0.5), EmbeddingGraph(1.0, 0.3)],
        Plain(crop=False, flip=False, **PADDED),
        None,
        [HardLabels()],
    ),
    "ega, head of before": (
        presets.ega(train_teacher_head=False),
        [HardLabels(), EmbeddingGraph()],
        Plain(crop=True, flip=True),
        Plain(crop=True, flip=True),
        [],
    ),
}


def described(thing):
    return thing and (type(thing), thing.get_config())


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_a_preset_is_its_objectives_spelled_out(name):
    preset, objectives, views, *teachers = SPELLED_OUT[name]
    assert list(preset)[:2] == ["objectives", "views"]
    assert list(preset)[2:] == (["teacher_views", "teacher_objectives"] if teachers else [])
    if teachers:
        assert [described(preset["teacher_views"])] == [described(teachers[0])]
        assert [*map(described, preset["teacher_objectives"])] == [*map(described, teachers[1])]
    assert [described(each) for each in preset["objectives"]] == list(map(described, objectives))
    assert described(preset["views"]) == described(views)


@pytest.mark.parametrize("name", sorted({name.split(",")[0] for name in SPELLED_OUT}))
def test_presets_share_nothing_and_take_keywords_only(name):
    preset = getattr(presets, name)
    one, other = preset(), preset()
    assert one["views"] is not other["views"]
    assert one["objectives"] is not other["objectives"]
    assert not set(map(id, inside(one["objectives"]))) & set(map(id, inside(other["objectives"])))
    kinds = {parameter.kind for parameter in inspect.signature(preset).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def inside(objectives):
    """The objectives, and those inside a `Mutual`."""
    return [*objectives, *(each.objective for each in objectives if isinstance(each, Mutual))]


def test_every_preset_is_spelled_out():
    names = presets.__all__
    for name in names:
        assert {name, f"{name}, changed"} <= SPELLED_OUT.keys()
    assert len(names) == 11
