"""`models.stage_multipliers`: which weight belongs to which stage."""

import keras
import pytest
from keras import layers

from keras_ssd import heads, models

NAMES = {  # network: multipliers for its stages
    name: 5
    if name.startswith(("vgg", "mobilenet")) or name == "resnet50" or name.endswith("imagenet")
    else 4
    for name in models.names()
}


def built(name="resnet8"):
    size = 32 if name.endswith("imagenet") else 8
    return models.build(name, num_classes=3, input_shape=(size, size, 3))


def by_stage(model, count, stages=None):
    """From a factor, as many as stages, to the first parts of the paths that have it."""
    found = {factor: [] for factor in range(count)}
    multipliers = models.stage_multipliers(model, range(count), stages)
    for path, factor in multipliers.items():
        found[factor].append(path)
    return found


def named(model, *layer_names):
    return [v.path for name in layer_names for v in model.get_layer(name).trainable_variables]


@pytest.mark.parametrize("with_heads", [False, True])
def test_stem_stages_and_what_lies_behind(with_heads):
    model = plain = built()
    if with_heads:
        model = heads.with_projection(heads.with_auxiliary_classifiers(plain))
    stages = by_stage(model, 4)
    assert stages[0] == named(plain, "conv1", "bn1")
    for number in (1, 2, 3):
        mine = [layer.name for layer in plain.layers if layer.name.startswith(f"layer{number}.")]
        assert sorted(stages[number]) == sorted(named(plain, *mine))
    unnamed = {v.path for v in model.trainable_variables}.difference(*stages.values())
    behind = ("logits", "proj_head.", "auxiliary_classifier.")
    assert unnamed
    assert all(path.startswith(behind) for path in unnamed)


@pytest.mark.parametrize(
    "name",
    [
        *("vgg8", "mobilenet_v2", "wrn_16_1"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in NAMES
            if name not in ("vgg8", "mobilenet_v2", "wrn_16_1")
        ),
    ],
)
def test_every_network(name):
    """Stages begin with the convolution or normalisation behind the end of the one before."""
    model = built(name)
    stages = by_stage(model, NAMES[name])
    paths = [v.path for v in model.trainable_variables]
    ends = [model.layers.index(model.get_layer(f"stage_{number}")) for number in stages]
    order = {v.path: index for index, x in enumerate(model.layers) for v in x.trainable_variables}
    for number, end in enumerate(ends):
        begin = ends[number - 1] if number else -1
        assert sorted(stages[number]) == sorted(p for p in paths if begin < order[p] < end)
        assert stages[number]


def shared_and_nested():
    """A layer that both stages call, one in a custom layer, and a stage inside another model."""
    images = keras.Input((8, 8, 3))
    inner = keras.Sequential([layers.Conv2D(4, 1, name="inner_conv"), layers.ReLU(name="middle")])
    x = inner(layers.Dense(3, name="first")(images))
    twice = layers.Dense(4, name="twice")
    side = layers.Dense(4, name="beside")(images)
    x = layers.ReLU(name="end")(layers.Add()([twice(twice(x)), side]))
    top = layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, [top, layers.Dense(2, name="unused")(side)])


def test_layers_by_name_in_any_model():
    model = shared_and_nested()
    model = keras.Model(model.input, {"logits": model.output[0], "more": model.output[1]})
    stages = by_stage(model, 2, ["middle", "end"])
    layer_of = [{path.split("/")[-2] for path in stage} for stage in stages.values()]
    assert layer_of == [{"first", "inner_conv"}, {"twice", "beside"}]


@pytest.mark.slow
def test_a_network_of_keras():
    resnet = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=3)
    ends = ["conv1_relu", *(f"conv{k}_block{n}_out" for k, n in enumerate((3, 4, 6, 3), 2))]
    stages = by_stage(resnet, 5, ends)
    firsts = [{path.split("_")[0] for path in stage} for stage in stages.values()]
    assert firsts == [{"conv1"}, {"conv2"}, {"conv3"}, {"conv4"}, {"conv5"}]
    assert sum(map(len, stages.values())) == len(resnet.trainable_variables) - 2


def test_frozen_layers_are_not_named():
    model = built()
    model.get_layer("conv1").trainable = False
    assert by_stage(model, 4)[0] == named(model, "bn1")


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_mistakes():
    model = built()
    with pytest.raises(ValueError, match=r"has 4 stages.*stage_0, stage_1.* there are 3 multipl"):
        models.stage_multipliers(model, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"No layer 'stag_1' .*'resnet8'\. Close names: stage_1"):
        models.stage_multipliers(model, [0.1], ["stag_1"])
    with pytest.raises(ValueError, match="deep, and 'stage_0' does not lie behind 'stage_1'"):
        models.stage_multipliers(model, [0.1, 0.2], ["stage_1", "stage_0"])
    twice = shared_and_nested()
    with pytest.raises(ValueError, match="Layer 'twice' is called 2 times"):
        models.stage_multipliers(twice, [0.1], ["twice"])
    with pytest.raises(ValueError, match=r"has no layers stage_0, stage_1, .*pass `stages=`"):
        models.stage_multipliers(twice, [0.1])
    with pytest.raises(ValueError, match=r"subclassed model.* give the optimizer a mapping"):
        models.stage_multipliers(Subclassed(), [0.1])
    with pytest.raises(TypeError, match="Expected a Keras model, got str"):
        models.stage_multipliers("resnet8", [0.1])
    frozen = heads.with_projection(model, backbone="frozen")
    with pytest.raises(ValueError, match="Nothing in the stages of model 'resnet8' is trained"):
        models.stage_multipliers(frozen, [0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), "a", None])
def test_factors_are_finite_numbers(wrong):
    model = models.build("resnet8", num_classes=3, input_shape=(8, 8, 3))
    with pytest.raises(ValueError, match="`multipliers` must be finite numbers >= 0, got"):
        models.stage_multipliers(model, [0.1, wrong, 0.2, 0.2])
