"""The demo: a training run saves to S3, is killed with SIGKILL, resumes, and ends as if nothing had happened.

    make demo        (python docs/demo/run.py, once `make servers` has installed the embedded S3 server)

Ends with 0 only when the second process really went on from a saved step, when its final weights, optimizer,
random seeds and next batch equal, bit for bit, those of a run that was never killed, and when plain
TensorFlow reads them from a copy of the bucket. Everything runs on this machine, on 127.0.0.1; the server,
the processes and the files are gone afterwards.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parents[1] / "tests"))

from support.servers import S3Server, moto  # noqa: E402  (found through the line above)

__all__ = ["main"]

BUCKET = "demo"
KILL_AT_STEP = 450  # between two saves, so that work is lost
LOG_LINES = 30

Process: TypeAlias = "subprocess.Popen[str]"


class DemoError(RuntimeError):
    """Something that the demo is to show did not happen."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a training process said of itself."""

    first_step: int
    weights: str | None = None  # SHA-256, optimizer included; None when the process was killed
    next_batch: str | None = None  # SHA-256 of what it would train on next


def main() -> int:
    """Run the demo, say what happens, and return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `with` blocks are left
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="ckpt_remote-demo-") as folder, moto() as server:
            demonstrate(server, Path(folder))
    except KeyboardInterrupt:
        say("\nInterrupted: the server, the processes and the files are gone.")
        return 128 + signal.SIGINT
    except RuntimeError as error:  # ours, or the server's start, which explains itself, too
        say(f"\nTHE DEMO FAILED: {error}")
        return 1
    say(f"\nThe demo took {time.monotonic() - started:.0f} seconds.")
    return 0


def demonstrate(server: S3Server, folder: Path) -> None:
    """Show one thing after the other, and stop at the first that is not as promised."""
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    say(f"An S3 server (moto) runs at {server.endpoint}. It holds an empty bucket, s3://{BUCKET}.")

    say("\n1. Train without interruption")
    expected = train(server, "reference", folder)

    say(f"\n2. Train again, into another folder, and kill the process at step {KILL_AT_STEP}")
    train(server, "killed", folder, kill_at=KILL_AT_STEP)
    saved = latest_step(client, "killed")
    say(f"Killed with SIGKILL. Its latest checkpoint is of step {saved}; the bucket holds")
    show_objects(client, "killed")

    say("\n3. Start it again")
    resumed = train(server, "killed", folder)

    say("\n4. Copy both folders out of the bucket, and compare them with plain TensorFlow")
    compare(download(client, "reference", folder), download(client, "killed", folder))

    say("\nResult")
    say(f"  killed at step                {KILL_AT_STEP}")
    say(f"  resumed from step             {resumed.first_step}")
    say(f"  final weights, never killed   {expected.weights}")
    say(f"  final weights, resumed        {resumed.weights}")
    say(f"  next batch, never killed      {expected.next_batch}")
    say(f"  next batch, resumed           {resumed.next_batch}")
    check(saved, expected, resumed)
    say("  The killed run ended bit for bit as the run that was never killed.")


def check(saved_step: int, expected: Run, resumed: Run) -> None:
    """Hold the resumed run against what it was to be."""
    if saved_step == 0 or resumed.first_step != saved_step:
        raise DemoError(f"step {saved_step} was saved, but training went on from step {resumed.first_step}.")
    if resumed.weights is None or resumed.weights != expected.weights:
        raise DemoError("the final weights differ from those of the run that was never killed.")
    if resumed.next_batch is None or resumed.next_batch != expected.next_batch:
        raise DemoError("the next batch differs from that of the run that was never killed.")


def train(server: S3Server, name: str, folder: Path, *, kill_at: int | None = None) -> Run:
    """Run train.py into a folder of the bucket; kill it once it says that it reached step `kill_at`."""
    url = f"s3://{BUCKET}/{name}"
    log = folder / f"{name}.log"
    run = Run(first_step=0)
    say(f"$ python train.py {url}")
    with python(["train.py", url], client_environment(server, folder), log) as process:
        for line in lines(process):
            match line.split():
                case ["starting", "from", "step", step, *_]:
                    run = replace(run, first_step=int(step.rstrip(":")))
                case ["step", step, *_] if int(step) == kill_at:
                    process.kill()
                case ["final", "weights", digest]:
                    run = replace(run, weights=digest)
                case ["next", "batch", digest]:
                    run = replace(run, next_batch=digest)
    expected = 0 if kill_at is None else -signal.SIGKILL
    if process.returncode != expected:
        raise DemoError(f"train.py ended with status {process.returncode}, not {expected:d}.\n{tail(log)}")
    return run


def compare(reference: Path, killed: Path) -> None:
    """Run compare.py on the copies: TensorFlow without our library reads them, and finds no difference."""
    log = reference.with_suffix(".log")
    say("$ python compare.py COPY_OF_REFERENCE COPY_OF_KILLED")
    with python(["compare.py", str(reference), str(killed)], dict(os.environ), log) as process:
        for _ in lines(process):
            pass
    if process.returncode:
        raise DemoError(f"the checkpoints differ, or TensorFlow cannot read them.\n{tail(log)}")


@contextlib.contextmanager
def python(arguments: list[str], environment: Mapping[str, str], log: Path) -> Iterator[Process]:
    """A script of this folder, run by this Python; it has ended when the block has, however that is left."""
    command = [sys.executable, "-u", str(_HERE / arguments[0]), *arguments[1:]]
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def lines(process: Process) -> Iterator[str]:
    """What the process prints, shown and handed on line by line."""
    for line in process.stdout or ():
        say(f"    {line.rstrip()}")
        yield line


def client_environment(server: S3Server, folder: Path) -> dict[str, str]:
    """Ours, with nothing about S3 in it but how to reach `server`: what a user exports before training."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    return kept | {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "KERAS_BACKEND": "tensorflow",
        "TMPDIR": str(folder),  # so that what a killed process leaves there goes with the demo's own files
    }


def objects(client: Any, name: str) -> list[tuple[str, int]]:
    """Key and size of every object in a folder of the bucket."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{name}/")
    return [(found["Key"], found["Size"]) for page in pages for found in page.get("Contents", [])]


def show_objects(client: Any, name: str) -> None:
    """Print the folder as a table."""
    say(f"    {'bytes':>9}  object")
    for key, size in objects(client, name):
        say(f"    {size:9,}  s3://{BUCKET}/{key}")


def latest_step(client: Any, name: str) -> int:
    """The step of the checkpoint that the folder's `checkpoint` file calls the latest; 0 if it names none."""
    state = client.get_object(Bucket=BUCKET, Key=f"{name}/checkpoint")["Body"].read().decode()
    latest = re.search(r'^model_checkpoint_path: "ckpt-(\d+)"$', state, re.MULTILINE)
    return int(latest[1]) if latest else 0


def download(client: Any, name: str, folder: Path) -> Path:
    """Copy a folder of the bucket to disk as it is, and return where it lies."""
    for key, _ in objects(client, name):
        target = folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(BUCKET, key, str(target))
    return folder / name


def tail(log: Path) -> str:
    """The end of what a process wrote to standard error."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
