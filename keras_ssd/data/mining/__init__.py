"""Mining: which images of an unlabeled pool a teacher finds worth learning from."""

from keras_ssd.data.mining.hashes import difference_hash
from keras_ssd.data.mining.manifest import Manifest, Row, read_manifest
from keras_ssd.data.mining.neighbours import near_duplicates
from keras_ssd.data.mining.pools import Pool, ShardedPool, array_pool, open_pool
from keras_ssd.data.mining.records import Record, Scored
from keras_ssd.data.mining.scores import Scores
from keras_ssd.data.mining.scoring import score
from keras_ssd.data.mining.selection import Selection, select, top_k_per_class

__all__ = [
    "Manifest",
    "Pool",
    "Record",
    "Row",
    "Scored",
    "Scores",
    "Selection",
    "ShardedPool",
    "array_pool",
    "difference_hash",
    "near_duplicates",
    "open_pool",
    "read_manifest",
    "score",
    "select",
    "top_k_per_class",
]
