"""How a save scales with the number of workers, each a process with a link of its own to the store.

    python benchmarks/many_workers.py [--workers 1 2 4 8] [--megabytes 512] [--link 16] [--json PATH]

One run: a replicated model is saved by 1, 2, 4 and 8 workers in turn. Every worker's link carries so many megabytes per
second in all, whatever number of connections it uses; the server itself is no limit. `speed-up` is one worker's time by
theirs; `of N` is that by the number of workers: 1.00 would be the sum of the links. `most` is the longest time
that any worker's `save()` took; all return when the checkpoint is visible. Requests are those of one save.

Then the work that the leader alone has: indexes of 100,000 tensors, in as many parts as there are workers, become one.
"""

import statistics
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import tensorflow as tf
from report import headline, keep, parser
from sink import sink
from support.cluster import Cluster

import ckpt_remote
from ckpt_remote.bundle import Entry, Header, Index, decode_index, encode_index, merge, tensor_key

VARIABLES = 32
TENSORS = 100_000

worker = {}  # of each process: its manager


def begin(megabytes, url, options):
    """In a worker: makes the model, which is the same for all, and its manager."""
    generator = np.random.default_rng(0)
    size = int(megabytes * 1e6) // 4 // VARIABLES
    variables = [tf.Variable(generator.random(size, dtype=np.float32)) for _ in range(VARIABLES)]
    checkpoint = tf.train.Checkpoint(variables=variables)
    worker["manager"] = ckpt_remote.CheckpointManager(checkpoint, url, max_to_keep=2, storage_options=options)
    worker["manager"].restore_or_initialize()


def save():
    """In a worker: saves; returns how many seconds it took."""
    start = time.perf_counter()
    worker["manager"].save()
    return time.perf_counter() - start


def measure(workers, megabytes, rate, rounds):
    with sink([rate] * workers) as links, Cluster(worker=workers) as cluster:
        bucket = links[0].server.new_bucket()
        tasks = [cluster.run("worker", rank) for rank in range(workers)]
        for task, link in zip(tasks, links, strict=True):
            task.send(begin, megabytes, f"s3://{bucket}/run", link.server.storage_options)
        for task in tasks:
            task.result()
        rows = []
        for _ in range(rounds + 1):  # the first claims the directory, and makes the connections
            received = [link.received for link in links]
            requests = [Counter(link.requests) for link in links]
            for task in tasks:
                task.send(save)
            seconds = max(task.result() for task in tasks)
            moved = [link.received - before for link, before in zip(links, received, strict=True)]
            made = [(link.requests - before).total() for link, before in zip(links, requests, strict=True)]
            rows.append(
                {
                    "workers": workers,
                    "seconds": seconds,
                    "bytes": sum(moved),
                    "most even": max(moved) / statistics.mean(moved),
                    "leader requests": made[0],
                    "other requests": max(made[1:], default=0),
                    "copies": sum(link.requests["COPY"] for link in links),
                }
            )
    return {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}


def merge_seconds(parts):
    """Seconds to decode the others' indexes, merge all and encode one, of TENSORS tensors."""
    each = []
    for part in range(parts):
        found = {
            tensor_key(f"model/block_{number:06d}/kernel/.ATTRIBUTES/VARIABLE_VALUE"): Entry(
                1, (64, 128), 0, 32768 * number, 32768, number
            )
            for number in range(part, TENSORS, parts)
        }
        each.append(encode_index(Index(Header(1), dict(sorted(found.items())))))
    mine = decode_index(each[0])
    start = time.perf_counter()
    encode_index(merge([mine, *map(decode_index, each[1:])]))
    return time.perf_counter() - start


def main():
    wanted = parser(__doc__)
    wanted.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    wanted.add_argument("--megabytes", type=float, default=512.0, help="size of the model (default 512)")
    wanted.add_argument("--link", type=float, default=16.0, help="megabytes per second of each worker (default 16)")
    wanted.add_argument("--rounds", type=int, default=2, help="counted saves (default 2)")
    arguments = wanted.parse_args()
    print(headline())
    print(f"{arguments.megabytes:g} MB, links of {arguments.link:g} MB/s, median of {arguments.rounds} saves")
    print(f"{'workers':>8} {'most':>8} {'speed-up':>9} {'of N':>6} {'moved':>9} {'even':>6} {'leader, other':>20}")
    rows = []
    for workers in arguments.workers:
        row = measure(workers, arguments.megabytes, arguments.link * 1e6, arguments.rounds)
        rows.append(row)
        row["speed-up"] = rows[0]["seconds"] * rows[0]["workers"] / row["seconds"]
        row["of N"] = row["speed-up"] / workers
        print(
            f"{workers:>8} {row['seconds']:>6.2f} s {row['speed-up']:>9.2f} {row['of N']:>6.2f} "
            f"{row['bytes'] / 1e6:>6.1f} MB {row['most even']:>6.3f} "
            f"{row['leader requests']:>17.0f}, {row['other requests']:.0f}",
            flush=True,
        )
    merges = {str(parts): merge_seconds(parts) for parts in arguments.workers if parts > 1}
    for parts, seconds in merges.items():
        print(f"{parts:>8} parts, {TENSORS:,} tensors: merged in {seconds:.2f} s")
    keep(arguments, rows=rows, merge=merges)


if __name__ == "__main__":
    main()
