"""Every weight has the name, the shape and the company that it has in the authors' files."""

import keras
import pytest

from keras_ssd import models, with_auxiliary_classifiers
from keras_ssd.checkpoints import load_torch_weights, to_torch_state_dict
from keras_ssd.checkpoints.places import places
from keras_ssd.checkpoints.recognition import SIZES
from keras_ssd.layers import FrozenBackbone

from .states import network

BACKBONE = {  # entries of a full state dictionary, step counters included
    "resnet8": 56,
    "resnet14": 92,
    "resnet20": 128,
    "resnet32": 200,
    "resnet44": 272,
    "resnet56": 344,
    "resnet110": 668,
    "resnet8x4": 62,
    "resnet32x4": 206,
    "wrn_16_1": 82,
    "wrn_16_2": 83,
    "wrn_40_1": 226,
    "wrn_40_2": 227,
    "vgg8": 37,
    "vgg11": 58,
    "vgg13": 72,
    "vgg16": 93,
    "vgg19": 114,
    "mobilenet_v2": 320,
    "shufflenet_v1": 296,
    "shufflenet_v2": 338,
    "resnet50": 320,
    "resnet18_imagenet": 122,
    "resnet34_imagenet": 218,
    "resnet50_imagenet": 320,
}
HEADS = {  # the same of each auxiliary classifier, and the step counters of the whole network
    "resnet20": ([86, 44, 38], 48),
    "resnet56": ([230, 116, 110], 132),
    "resnet8x4": ([38, 20, 14], 21),
    "resnet32x4": ([134, 68, 62], 77),
    "wrn_16_2": ([57, 32, 31], 32),
    "wrn_40_1": ([153, 80, 79], 88),
    "wrn_40_2": ([153, 80, 79], 88),
    "vgg13": ([58, 44, 30, 30], 32),
    "vgg8": ([30, 23, 16, 16], 16),
    "mobilenet_v2": ([260, 206, 80, 80], 156),
    "shufflenet_v1": ([218, 74, 74], 109),
    "shufflenet_v2": ([248, 92, 92], 127),
    "resnet50": ([254, 176, 62, 56], 143),
    "resnet18_imagenet": ([92, 62, 32, 26], 54),
    "resnet34_imagenet": ([176, 122, 44, 38], 98),
    "resnet50_imagenet": ([254, 176, 62, 56], 143),
}
QUICK = ("resnet8", "resnet8x4", "wrn_16_2", "vgg8", "mobilenet_v2")


def quick_first(names):
    """The names as parameters; all but the quick ones are slow."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def shapes(name, heads=False):
    """By name, of a network that is built without values, which is quick."""
    with keras.StatelessScope(initialize_variables=False):
        model = models.build(name, num_classes=100, input_shape=(32, 32, 3))
        model = with_auxiliary_classifiers(model) if heads else model
    return {name: place.shape for name, place in places(model).items()}


def entries(names):
    return len(names) + sum(name.endswith("running_var") for name in names)


@pytest.mark.parametrize("name", quick_first(BACKBONE))
def test_entries_of_a_network(name):
    assert entries(shapes(name)) == BACKBONE[name]


@pytest.mark.parametrize("name", quick_first(HEADS))
def test_entries_of_its_auxiliary_classifiers(name):
    names = shapes(name, heads=True)
    heads, counters = HEADS[name]
    of_head = [
        [n for n in names if n.startswith("auxiliary_") and n.split(".")[1].endswith(f"{head}")]
        for head in range(1, len(heads) + 1)
    ]
    assert [entries(head) for head in of_head] == heads
    assert entries(names) == BACKBONE[name] + sum(heads)
    assert sum(name.endswith("running_var") for name in names) == counters


def test_every_network_can_be_recognized():
    assert set(SIZES) == set(models.names())


@pytest.mark.parametrize("name", quick_first(SIZES))
def test_sizes_by_which_a_network_is_recognized(name):
    found = shapes(name)
    assert SIZES[name] == (len(found), next(s[1] for s in found.values() if len(s) == 2))


AUXILIARY = "auxiliary_classifier.block_extractor"
SOME_SHAPES = {  # as the description of the files has them
    "resnet20": {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.running_mean": (16,),
        "layer1.2.bn2.weight": (16,),
        "layer2.0.downsample.0.weight": (32, 16, 1, 1),
        "layer2.0.downsample.1.running_var": (32,),
        "fc.weight": (100, 64),
        f"{AUXILIARY}1.1.2.conv2.weight": (64, 64, 3, 3),
        f"{AUXILIARY}2.0.0.downsample.1.running_var": (64,),
        f"{AUXILIARY}3.0.0.conv1.weight": (64, 64, 3, 3),
        "auxiliary_classifier.fc3.weight": (400, 64),
    },
    "resnet8x4": {
        "layer1.0.downsample.0.weight": (64, 32, 1, 1),
        "fc.weight": (100, 256),
    },
    "wrn_16_2": {
        "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "bn1.bias": (128,),
        f"{AUXILIARY}1.1.layer.0.convShortcut.weight": (128, 64, 1, 1),
        f"{AUXILIARY}3.0.layer.1.conv2.weight": (128, 128, 3, 3),
        "auxiliary_classifier.bn2.running_mean": (128,),
    },
    "vgg13": {
        "block0.0.bias": (64,),
        "block1.4.weight": (128,),
        "block3.0.weight": (512, 256, 3, 3),
        "classifier.weight": (100, 512),
        f"{AUXILIARY}1.9.4.running_mean": (512,),
        f"{AUXILIARY}4.0.0.weight": (512, 512, 3, 3),
        "auxiliary_classifier.fc4.weight": (400, 512),
    },
    "mobilenet_v2": {
        "conv1.0.weight": (16, 3, 3, 3),
        "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
        "blocks.0.0.conv.3.weight": (16, 1, 3, 3),
        "blocks.1.0.conv.0.weight": (48, 8, 1, 1),
        "blocks.6.0.conv.6.weight": (160, 480, 1, 1),
        "conv2.0.weight": (1280, 160, 1, 1),
        "classifier.bias": (100,),
        f"{AUXILIARY}4.0.0.conv.0.weight": (960, 160, 1, 1),
        f"{AUXILIARY}4.0.0.conv.3.weight": (960, 1, 3, 3),
        "auxiliary_classifier.conv2_3.1.running_var": (1280,),
    },
    "shufflenet_v1": {
        "layer1.0.conv1.weight": (54, 24, 1, 1),
        "layer1.0.conv3.weight": (216, 18, 1, 1),
        "layer1.1.conv1.weight": (60, 80, 1, 1),
        "linear.weight": (100, 960),
        f"{AUXILIARY}1.0.0.conv1.weight": (60, 80, 1, 1),
        f"{AUXILIARY}3.0.0.conv1.weight": (240, 320, 1, 1),
        f"{AUXILIARY}3.0.3.conv3.weight": (960, 80, 1, 1),
    },
    "shufflenet_v2": {
        "layer1.0.conv4.weight": (58, 1, 3, 3),
        "layer3.0.conv4.weight": (232, 1, 3, 3),
        "conv2.weight": (1024, 464, 1, 1),
        f"{AUXILIARY}1.2.weight": (1024, 464, 1, 1),
        f"{AUXILIARY}2.2.running_mean": (1024,),
        f"{AUXILIARY}3.0.0.conv1.weight": (464, 1, 3, 3),
    },
    "resnet50": {
        "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
        "layer4.0.shortcut.0.weight": (2048, 1024, 1, 1),
        "linear.weight": (100, 2048),
        f"{AUXILIARY}1.2.2.conv1.weight": (512, 2048, 1, 1),
        f"{AUXILIARY}4.0.0.conv1.weight": (512, 2048, 1, 1),
        "auxiliary_classifier.fc1.weight": (400, 2048),
    },
    "resnet18_imagenet": {
        "conv1.weight": (64, 3, 7, 7),
        "fc.bias": (100,),
        f"{AUXILIARY}1.2.0.downsample.0.weight": (512, 256, 1, 1),
        "auxiliary_classifier.fc4.weight": (400, 512),
    },
}


@pytest.mark.parametrize("name", quick_first(SOME_SHAPES))
def test_names_and_shapes(name):
    found = shapes(name, heads=True)
    assert {key: found.get(key) for key in SOME_SHAPES[name]} == SOME_SHAPES[name]


def test_a_model_of_nobody_has_the_names_of_its_layers():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, (3, 1), groups=2, name="body.0")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, use_bias=False, name="logits")(x))
    assert {name: array.shape for name, array in to_torch_state_dict(model).items()} == {
        "body.0.weight": (6, 2, 3, 1),
        "body.0.bias": (6,),
        "fc.weight": (5, 6),
    }


def nested():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, network("resnet8")(inputs))


def multiplied():
    return keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="two")]
    )


@pytest.mark.parametrize(
    ("model", "layer"),
    [(nested, r"'resnet8' \(Functional\)"), (multiplied, r"'two' \(DepthwiseConv2D\)")],
)
def test_layers_unknown_to_the_papers_are_refused(model, layer):
    with pytest.raises(ValueError, match=f"{layer} has no counterpart"):
        to_torch_state_dict(model())
    with pytest.raises(ValueError, match=f"{layer} has no counterpart"):
        load_torch_weights(model(), {"a.weight": keras.ops.convert_to_numpy([1.0])})


def test_two_networks_in_one_are_refused():
    frozen, inputs = network("resnet8"), keras.Input((8, 8, 3))
    twins = [FrozenBackbone(frozen, name=name)(inputs) for name in ("one", "other")]
    with pytest.raises(ValueError, match=r"Two layers of 'twins' are called 'conv1'"):
        to_torch_state_dict(keras.Model(inputs, twins, name="twins"))
