"""What `peer_defects.py` measures of `keras.distillation` and of keras_ssd, a file a section."""
