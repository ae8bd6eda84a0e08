"""What a training loop loses to its saves: without any, with synchronous ones, and with saves behind training.

    python benchmarks/stall.py [--megabytes 256] [--link 200] [--every 20] [--saves 5] [--json PATH]

One run, one process that trains, and another that serves: the three kinds in turn, twice. A step is a real one,
forward, backward and Adam, of a model of dense layers whose variables and slots have so many megabytes together. The
link to the server carries so many megabytes per second.

`lost` is how much more a step takes on average than without saves. Not all of that is stall: the machine's cores are
all busy with training, so what an upload must compute in any case, training loses. `upload` is that: the processor time
of obstore putting the same bytes, as a part of the processor time of the steps between two saves. `beyond` is the rest.
"""

import statistics
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import keras
import numpy as np
import obstore
import tensorflow as tf
from obstore.store import S3Store
from report import headline, keep, parser
from sink import sink
from support.cluster import Cluster

import ckpt_remote
from ckpt_remote.plan import shard_size

KINDS = {"none": None, "synchronous": False, "asynchronous": True}
LAYERS = 8
BATCH = 256

held = {}  # of the process that trains


def begin(megabytes):
    """Makes a model; with Adam's two slots there are three of each variable."""
    width = int((megabytes * 1e6 / 4 / 3 / LAYERS) ** 0.5)
    model = keras.Sequential([keras.Input((width,)), *(keras.layers.Dense(width, "relu") for _ in range(LAYERS))])
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)
    inputs = tf.random.stateless_normal([BATCH, width], seed=[1, 2])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - inputs))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    for _ in range(3):
        step()
    held.update(step=step, checkpoint=tf.train.Checkpoint(model=model, optimizer=optimizer))


def train(asynchronous, steps, every, url, options):
    """Trains; returns each step's seconds, saves included, and the processor time of all."""
    manager = None
    if asynchronous is not None:
        manager = ckpt_remote.CheckpointManager(
            held["checkpoint"], url, max_to_keep=1, storage_options=options, asynchronous=asynchronous
        )
        manager.save()  # claims the directory, and makes the connections
        manager.sync()
    seconds, stalls, busy = [], [], time.process_time()
    for number in range(1, steps + 1):
        start = time.perf_counter()
        held["step"]().numpy()
        if manager and number % every == 0:
            begun = time.perf_counter()
            manager.save()
            stalls.append(time.perf_counter() - begun)
        seconds.append(time.perf_counter() - start)
    if manager:
        manager.close()  # whatever a save still has to do is not training's
    return {"seconds": seconds, "stalls": stalls, "busy": time.process_time() - busy}


def upload(url, options):
    """Processor seconds of obstore for one checkpoint's bytes, in the pieces that a save makes."""
    bucket = url.removeprefix("s3://").partition("/")[0]
    config = {
        "endpoint": options["endpoint_url"],
        "region": options["client_kwargs"]["region_name"],
        "access_key_id": options["key"],
        "secret_access_key": options["secret"],
        "unsigned_payload": True,
    }
    store = S3Store(bucket, config=config, client_options={"allow_http": True, "timeout": "300s"})
    variables = [*held["checkpoint"].model.variables, *held["checkpoint"].optimizer.variables]
    arrays = [np.asarray(variable.value).reshape(-1).view(np.uint8) for variable in variables]
    size = sum(array.nbytes for array in arrays)
    busy = time.process_time()
    for array in arrays:
        for start in range(0, array.nbytes, shard_size(size)):
            piece = memoryview(array[start : start + shard_size(size)])
            obstore.put(store, uuid.uuid4().hex, [piece], use_multipart=False)
    return size, time.process_time() - busy


def measure(arguments):
    steps = arguments.every * arguments.saves
    rows = {kind: {"seconds": [], "stalls": [], "busy": 0.0} for kind in KINDS}
    with sink([arguments.link * 1e6]) as (link,), Cluster(worker=1) as cluster:
        trainer = cluster.run("worker", 0)
        trainer.call(begin, arguments.megabytes)
        bucket, options = link.server.new_bucket(), link.server.storage_options
        for turn in range(2):
            for kind, asynchronous in KINDS.items():
                url = f"s3://{bucket}/{kind}-{turn}"
                found = trainer.call(train, asynchronous, steps, arguments.every, url, options)
                rows[kind]["seconds"] += found["seconds"]
                rows[kind]["stalls"] += found["stalls"]
                rows[kind]["busy"] += found["busy"]
        size, raw = trainer.call(upload, f"s3://{bucket}/raw", options)
    return rows, size, raw


def main():
    wanted = parser(__doc__)
    wanted.add_argument("--megabytes", type=float, default=256.0, help="variables and slots together (default 256)")
    wanted.add_argument("--link", type=float, default=200.0, help="megabytes per second to the server (default 200)")
    wanted.add_argument("--every", type=int, default=20, help="steps between two saves (default 20)")
    wanted.add_argument("--saves", type=int, default=5, help="saves of each kind and turn (default 5)")
    arguments = wanted.parse_args()
    print(headline())
    rows, size, raw = measure(arguments)
    print(f"{size / 1e6:.0f} MB a save, a link of {arguments.link:g} MB/s, a save each {arguments.every} steps")
    titles = ("mean step", 11), ("median", 9), ("99th", 9), ("save()", 9), ("lost", 7), ("upload", 7), ("beyond", 7)
    print(f"{'saves':>14} " + " ".join(f"{title:>{width}}" for title, width in titles))
    plain = statistics.mean(rows["none"]["seconds"])
    for row in rows.values():
        row["mean"] = statistics.mean(row["seconds"])
        row["lost"] = row["mean"] / plain - 1
        row["upload"] = raw / (rows["none"]["busy"] / len(rows["none"]["seconds"]) * arguments.every)
        row["beyond"] = row["lost"] - row["upload"]
    for kind, row in rows.items():
        row["median"], row["99th"] = statistics.median(row["seconds"]), statistics.quantiles(row["seconds"], n=100)[-1]
        line = f"{kind:>14} {row['mean'] * 1e3:>8.1f} ms"
        line += "".join(f" {row[name] * 1e3:>6.1f} ms" for name in ("median", "99th"))
        if row["stalls"]:
            line += f" {statistics.median(row['stalls']) * 1e3:>6.1f} ms"
            line += "".join(f" {row[name]:>7.1%}" for name in ("lost", "upload", "beyond"))
        print(line)
    keep(arguments, bytes=size, rows=rows)


if __name__ == "__main__":
    main()
