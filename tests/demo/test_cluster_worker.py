"""The script for several workers: a job that is killed goes on from its last save, also with more workers."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from support.cluster import Cluster
from support.places import Place, download
from support.servers import S3Server

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "demo" / "cluster_worker.py"
STEPS, SAVE_EVERY = 100, 20
PATIENCE = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]


@contextlib.contextmanager
def job(size: int, url: str, server: S3Server, folder: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    """The script on so many workers; as after a launcher's, none is alive when the block ends."""
    addresses = Cluster(worker=size).addresses
    with contextlib.ExitStack() as stack:
        workers = []
        for index in range(size):
            environment = os.environ | {
                "TF_CONFIG": json.dumps({"cluster": addresses, "task": {"type": "worker", "index": index}}),
                "AWS_ENDPOINT_URL": server.endpoint,
                "AWS_ACCESS_KEY_ID": server.key,
                "AWS_SECRET_ACCESS_KEY": server.secret,
                "AWS_DEFAULT_REGION": server.region,
                "CUDA_VISIBLE_DEVICES": "-1",
                "KERAS_BACKEND": "tensorflow",
                "TMPDIR": str(folder),
            }
            log = stack.enter_context((folder / f"worker-{index}.log").open("w"))
            command = [sys.executable, str(SCRIPT), url]
            worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(worker.communicate)
            stack.callback(worker.kill)
            workers.append(worker)
        yield workers


def test_a_job_that_is_killed_goes_on_from_its_last_save_with_more_workers(ministack: S3Server, tmp_path: Path) -> None:
    place = Place(f"s3://{ministack.new_bucket()}/run", ministack.storage_options)
    with job(2, place.url, ministack, tmp_path) as workers:
        assert any(line.startswith("step 50 ") for line in workers[1].stdout or ()), log_of(1, tmp_path)
        workers[1].kill()
    step = int(tf.train.latest_checkpoint(download(place, tmp_path / "killed")).rpartition("-")[2])
    with job(3, place.url, ministack, tmp_path) as workers:
        printed = [worker.communicate(timeout=PATIENCE)[0].splitlines() for worker in workers]
        statuses = [worker.returncode for worker in workers]
    saves = range(step + SAVE_EVERY, STEPS + 1, SAVE_EVERY)

    assert step in range(40, STEPS, SAVE_EVERY)
    assert [0, 0, 0] == statuses, log_of(0, tmp_path)
    for lines in printed:
        assert f"starting from step {step}: {place.url}/ckpt-{step}" == lines[0]
        assert [f"saved {place.url}/ckpt-{saved}" for saved in saves] == [line for line in lines if "saved" in line]
    assert_holds_all_of(3, tf.train.latest_checkpoint(download(place, tmp_path / "finished")))


def log_of(rank: int, folder: Path) -> str:
    """The end of what a worker wrote to standard error."""
    return (folder / f"worker-{rank}.log").read_text(errors="replace")[-3000:]


def assert_holds_all_of(size: int, prefix: str) -> None:
    """The optimizer has counted every step, those before the kill too, and each worker's iterator is there."""
    step, optimizer = tf.Variable(0, dtype=tf.int64), keras.optimizers.Adam()
    tf.train.Checkpoint(step=step, optimizer=optimizer).restore(prefix).expect_partial()
    roots = {key.partition("/")[0] for key, _ in tf.train.list_variables(prefix)}

    assert (STEPS, STEPS) == (int(step), int(optimizer.iterations))
    assert {f"batches_{rank}" for rank in range(size)} == {root for root in roots if root.startswith("batches")}
