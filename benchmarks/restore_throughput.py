"""How fast a restore is beside raw ranged GETs of the same bytes, and where the time goes.

    python benchmarks/restore_throughput.py [--gigabytes 1] [--rounds 5] [--endpoint URL] [--json PATH]

One process, one run, the two in turn: `raw` is obstore getting the same objects in the same ranges, with the same
number of requests in flight, and forgetting them; `restore` is `CheckpointManager.restore` into variables that exist:
fetched, checked, written to a local folder, and read back by TensorFlow. `fetch` and `assign` are the parts of that.
The server shares the machine, so look at the ratio, not at the rates.
"""

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import obstore
import tensorflow as tf
from obstore.store import S3Store
from report import headline, keep, parser
from support import servers

import ckpt_remote
from ckpt_remote.copy import RANGE
from ckpt_remote.progress import Entered, Restored, listen
from ckpt_remote.reader import STREAMS, open_checkpoint
from ckpt_remote.store import open_store

BYTES_PER_VARIABLE = 64 * 2**20


class Phases:
    """Hears how long each phase of a restore takes."""

    def __init__(self):
        self.seconds, self._phase, self._since = {}, None, 0.0

    def __call__(self, event):
        if isinstance(event, Entered | Restored):
            now = time.perf_counter()
            if self._phase:
                self.seconds[self._phase] = now - self._since
            self._phase, self._since = getattr(event, "phase", None), now


def raw_get(store, sizes, piece, streams):
    """Seconds that obstore takes for the same ranges, with as many requests in flight."""

    def get(span):
        path, start, stop = span
        obstore.get_range(store, path, start=start, end=stop)

    spans = [(path, start, min(start + piece, size)) for path, size in sizes.items() for start in range(0, size, piece)]
    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(get, spans))
    return time.perf_counter() - started


def measure(server, gigabytes, rounds, piece, streams):
    bucket = server.new_bucket()
    config = {
        "endpoint": server.endpoint,
        "access_key_id": server.key,
        "secret_access_key": server.secret,
        "region": server.region,
    }
    raw = S3Store(bucket, config=config, client_options={"allow_http": True, "timeout": "300s"})
    count, generator = max(1, round(gigabytes * 1e9 / BYTES_PER_VARIABLE)), np.random.default_rng(0)
    variables = [tf.Variable(generator.random(BYTES_PER_VARIABLE // 4, dtype=np.float32)) for _ in range(count)]
    checkpoint = tf.train.Checkpoint(variables=variables)
    rows = []
    with ckpt_remote.CheckpointManager(
        checkpoint, f"s3://{bucket}/run", max_to_keep=1, storage_options=server.storage_options
    ) as manager:
        manager.save()
        stored = open_checkpoint(open_store(f"s3://{bucket}/run", server.storage_options), "ckpt-1")
        sizes = {f"run/{key}": spans[-1].stop for key, spans in stored.data.items()}
        for _ in range(rounds + 1):
            phases = Phases()
            before = raw_get(raw, sizes, piece, streams)
            started = time.perf_counter()
            with listen(phases):
                manager.restore().assert_consumed()
            seconds = time.perf_counter() - started
            raw_seconds = (before + raw_get(raw, sizes, piece, streams)) / 2
            rows.append({"raw": raw_seconds, "restore": seconds, "ratio": raw_seconds / seconds, **phases.seconds})
    return sum(sizes.values()), rows[1:]  # the first warms both up


def main():
    wanted = parser(__doc__)
    wanted.add_argument("--gigabytes", type=float, default=1.0, help="size of the model (default 1)")
    wanted.add_argument("--rounds", type=int, default=5, help="counted repetitions (default 5)")
    wanted.add_argument("--endpoint", help="an S3 endpoint to use instead of starting ministack")
    wanted.add_argument("--piece", type=int, default=RANGE, help="bytes of a raw GET (default the library's)")
    wanted.add_argument("--streams", type=int, default=STREAMS, help="raw GETs in flight (default as many)")
    arguments = wanted.parse_args()
    with ExitStack() as stack:
        given = servers.S3Server("given", arguments.endpoint) if arguments.endpoint else None
        server = given or stack.enter_context(servers.ministack())
        print(headline())
        size, rows = measure(server, arguments.gigabytes, arguments.rounds, arguments.piece, arguments.streams)
    print(f"{server.name}, {size / 1e6:.0f} MB in ranges of {arguments.piece >> 20} MiB, {arguments.streams} in flight")
    for row in rows:
        print("  " + "   ".join(f"{name} {value:6.3f}" for name, value in row.items()))
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print("  median: " + "   ".join(f"{name} {value:.3f}" for name, value in medians.items()))
    keep(arguments, server=server.name, bytes=size, rows=rows, median=medians)


if __name__ == "__main__":
    main()
