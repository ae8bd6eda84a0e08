"""How fast a synchronous save is beside raw PUTs of the same bytes, and what it costs in memory and on local disk.

One process, one run, the two in turn: `raw` is obstore putting the same memory, in the same pieces and
with the same number of requests in flight; `save` is `CheckpointManager.save`: index, state and the deletion of the
checkpoint before are in it. The server shares the machine, so look at the ratio, not at the rates.
"""

import statistics
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import obstore
import tensorflow as tf
from obstore.store import S3Store
from report import headline, keep, parser
from support import servers

import ckpt_remote
from ckpt_remote.plan import shard_size
from ckpt_remote.upload import STREAMS

BYTES_PER_VARIABLE = 64 * 2**20


def resident(kind):
    """Resident memory in bytes: now (VmRSS), or the most since `forget_peak` (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {kind} in /proc/self/status: this benchmark needs Linux")


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


class Watched:
    """A save under observation: its seconds, and how memory and the temporary folder grew."""

    def __init__(self, manager, temporary):
        forget_peak()
        before = resident("VmRSS")
        written_before = disk_bytes(temporary)
        started = time.perf_counter()
        manager.save()
        self.seconds = time.perf_counter() - started
        self.memory = resident("VmHWM") - before
        self.disk = disk_bytes(temporary) - written_before


def disk_bytes(temporary):
    """Bytes that this process has handed to file systems, and what lies in the temporary folder now."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["write_bytes"]) + sum(f.stat().st_size for f in Path(temporary).rglob("*") if f.is_file())


def raw_put(store, arrays, piece):
    """Seconds that obstore takes for the same bytes, pieces and concurrency, into new objects as a save's are."""
    folder = uuid.uuid4().hex
    pieces = [array[start : start + piece] for array in arrays for start in range(0, array.nbytes, piece)]

    def put(numbered):
        number, data = numbered
        obstore.put(store, f"{folder}/{number}", [memoryview(data)], use_multipart=False)

    started = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(put, enumerate(pieces)))
    seconds = time.perf_counter() - started
    obstore.delete(store, [f"{folder}/{number}" for number in range(len(pieces))])
    return seconds


def measure(server, variables, rounds):
    bucket = server.new_bucket()
    raw = S3Store(
        bucket,
        config={
            "endpoint": server.endpoint,
            "access_key_id": server.key,
            "secret_access_key": server.secret,
            "region": server.region,
            "unsigned_payload": True,
        },
        client_options={"allow_http": urlsplit(server.endpoint).scheme == "http", "timeout": "300s"},
    )
    arrays = [np.asarray(variable.value()).reshape(-1).view(np.uint8) for variable in variables]
    total = sum(array.nbytes for array in arrays)
    checkpoint = tf.train.Checkpoint(variables=list(variables))
    rows = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        ckpt_remote.CheckpointManager(
            checkpoint, f"s3://{bucket}/run", max_to_keep=1, storage_options=server.storage_options
        ) as manager,
    ):
        tempfile.tempdir = temporary
        for _ in range(rounds + 1):
            before = raw_put(raw, arrays, shard_size(total))
            save = Watched(manager, temporary)
            after = raw_put(raw, arrays, shard_size(total))
            rows.append(
                {
                    "raw MB/s": total / 1e6 / statistics.mean([before, after]),
                    "save MB/s": total / 1e6 / save.seconds,
                    "ratio": statistics.mean([before, after]) / save.seconds,
                    "memory MB": save.memory / 1e6,
                    "disk MB": save.disk / 1e6,
                }
            )
        tempfile.tempdir = None
    return rows[1:]  # the first warms both up


def main():
    wanted = parser(__doc__)
    wanted.add_argument("--gigabytes", type=float, default=1.0, help="size of the model (default 1)")
    wanted.add_argument("--rounds", type=int, default=5, help="counted repetitions (default 5)")
    wanted.add_argument("--endpoint", help="an S3 endpoint to use instead of starting ministack")
    arguments = wanted.parse_args()
    count = max(1, round(arguments.gigabytes * 1e9 / BYTES_PER_VARIABLE))
    generator = np.random.default_rng(0)
    variables = [tf.Variable(generator.random(BYTES_PER_VARIABLE // 4, dtype=np.float32)) for _ in range(count)]
    with ExitStack() as stack:
        given = servers.S3Server("given", arguments.endpoint) if arguments.endpoint else None
        server = given or stack.enter_context(servers.ministack())
        rows = measure(server, variables, arguments.rounds)
    size = count * BYTES_PER_VARIABLE
    print(headline())
    print(f"{server.name}, {size / 1e6:.0f} MB in pieces of {shard_size(size) / 2**20:.0f} MiB, {STREAMS} in flight")
    for row in rows:
        print("  " + "   ".join(f"{name} {value:8.2f}" for name, value in row.items()))
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print("  median: " + "   ".join(f"{name} {value:.2f}" for name, value in medians.items()))
    keep(arguments, server=server.name, bytes=size, streams=STREAMS, piece=shard_size(size), rows=rows, median=medians)


if __name__ == "__main__":
    main()
