"""Heads on a network, and taking them off again."""

from keras_ssd.heads.projection import with_projection
from keras_ssd.heads.taps import named_outputs, strip_heads

__all__ = ["named_outputs", "strip_heads", "with_projection"]
