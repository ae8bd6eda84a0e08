"""Compare the latest checkpoints of two folders bit for bit, with plain TensorFlow and nothing else.

    python docs/demo/compare.py FOLDER OTHER_FOLDER

Every entry counts: weights, optimizer slots, counters and random seeds. Ends with 0 when all are equal, with
1 otherwise. `ckpt_remote` is not imported: what is read here any TensorFlow program can read. Of a tf.data
iterator's state only the presence is compared: it holds the batches that happened to be prefetched, so its
bytes depend on timing while the batches to come do not.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping

import tensorflow as tf

__all__ = ["ITERATOR_STATE", "differences", "digests", "main"]

ITERATOR_STATE = "iterator state"


def digests(prefix: str) -> dict[str, str]:
    """The SHA-256 of each entry of a checkpoint: dtype, shape and bits, so -0.0 is not 0.0 and NaN is NaN.

    Iterator state is `ITERATOR_STATE` throughout.
    """
    dtypes = tf.train.load_checkpoint(prefix).get_variable_to_dtype_map()
    return {name: _digest(prefix, name, dtypes[name]) for name, _ in tf.train.list_variables(prefix)}


def _digest(prefix: str, name: str, dtype: tf.DType) -> str:
    # RestoreV2 reads what `get_tensor` cannot: the variants in which tf.data keeps an iterator's state.
    [tensor] = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=[name], shape_and_slices=[""], dtypes=[dtype])
    if dtype == tf.variant:
        return ITERATOR_STATE
    return hashlib.sha256(tf.io.serialize_tensor(tensor).numpy()).hexdigest()


def differences(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """The names whose digests differ, or that only one side has, in order."""
    return sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))


def main(arguments: list[str]) -> int:
    """Compare the folders, say what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description="Compare the latest checkpoints of two folders bit for bit.")
    parser.add_argument("folders", nargs=2, metavar="FOLDER")
    found = []
    for folder in parser.parse_args(arguments).folders:
        latest = tf.train.latest_checkpoint(folder)
        if latest is None:
            print(f"{folder} holds no checkpoint that tf.train.latest_checkpoint finds.")
            return 1
        found.append(digests(latest))
        print(f"tf.train.latest_checkpoint: {latest}, {len(found[-1])} entries")
    different = differences(*found)
    for name in different:
        print(f"different: {name}")
    compared = sum(digest != ITERATOR_STATE for digest in found[0].values())
    print(f"{compared} entries compared bit for bit, {len(different)} different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
