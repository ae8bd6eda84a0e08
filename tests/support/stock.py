"""What plain TensorFlow sees in a folder that was copied from a store."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from ckpt_remote.bundle import decode_index, index_name, shard_name

__all__ = ["contents", "needed"]


def contents(prefix):
    """Every tensor of a checkpoint, by key; without those of dataset iterators, which only a restore can read."""
    reader = tf.train.load_checkpoint(prefix)
    types = reader.get_variable_to_dtype_map()
    return {key: np.asarray(reader.get_tensor(key)) for key, dtype in types.items() if dtype != tf.variant}


def needed(folder):
    """The names of what the state and the listed checkpoints consist of; each of them is read, whole."""
    names = {"checkpoint"}
    for path in tf.train.get_checkpoint_state(folder).all_model_checkpoint_paths:
        contents(path)
        name = Path(path).name
        index = decode_index((Path(folder) / index_name(name)).read_bytes())
        shards = {entry.shard for entry in index.entries.values() if not entry.slices}
        names |= {index_name(name), *(shard_name(name, shard, index.header.num_shards) for shard in shards)}
    return names
