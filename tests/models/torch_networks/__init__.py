"""The papers' networks as PyTorch modules with the authors' module names.

They are written from the description of the networks and their checkpoints alone, not from
`keras_ssd.models`, so that a comparison of the two says something.
"""

from . import mobilenet, resnet, shufflenet, vgg, wide_resnet
from .networks import WithAuxiliaryClassifiers, WithProjection

NETWORKS = {
    **resnet.NETWORKS,
    **wide_resnet.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet.NETWORKS,
}


def build(name, num_classes, **arguments):
    """The plain network, in inference mode; it returns an `Outputs`."""
    return NETWORKS[name](num_classes=num_classes, **arguments).eval()


def with_auxiliary_classifiers(backbone, num_classes, num_views=4):
    heads = backbone.auxiliary_classifiers(num_classes * num_views)
    return WithAuxiliaryClassifiers(backbone, heads).eval()


def with_projection(backbone):
    return WithProjection(backbone, backbone.width).eval()
