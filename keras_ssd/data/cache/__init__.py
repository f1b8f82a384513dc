"""What a teacher said of training images, stored on disk."""

from keras_ssd.data.cache.cached_teacher import cached_teacher
from keras_ssd.data.cache.imported_teacher import imported_teacher

__all__ = ["cached_teacher", "imported_teacher"]
