"""The documents tell the truth: links lead somewhere, commands exist, and the README's Python runs."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import opentelemetry.metrics
import pytest
import tensorflow as tf
from support.servers import moto

import ckpt_remote
from ckpt_remote import progress

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PROGRESS = REPOSITORY / "docs" / "progress.md"
SEVERAL_WORKERS = REPOSITORY / "docs" / "several-workers.md"
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def first_column(document: Path, header: str) -> list[str]:
    """The names in the first column of the table with that heading."""
    table = document.read_text().split(f"| {header} |", 1)[1].split("\n\n", 1)[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def anchors(document: Path) -> set[str]:
    """The headings as GitHub's anchors."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {link}, and there is no {target}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {link}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(REPOSITORY)))
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make(?: PYTHON=\S+)? ([a-z][a-z-]*)", document.read_text(), re.MULTILINE)
    assert set(named) <= targets


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"^(?:exec )?(make .*)$", (REPOSITORY / ".ci" / "run").read_text(), re.MULTILINE)
    assert commands == ["make test"]
    assert any(line.startswith("make test ") for block in blocks(README, "sh") for line in block.splitlines())


@pytest.mark.slow
def test_the_python_of_the_readme_runs_against_an_s3_server_and_resumes(tmp_path: Path) -> None:
    [script] = [block for block in blocks(README, "python") if "import ckpt_remote" in block]
    with moto() as server:
        server.client().create_bucket(Bucket="my-bucket")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))},
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.key,
            "AWS_SECRET_ACCESS_KEY": server.secret,
            "AWS_DEFAULT_REGION": server.region,
            "TMPDIR": str(tmp_path),
        }
        printed = [
            subprocess.run(
                [sys.executable, "-c", script],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            for _ in range(2)
        ]
    assert printed[0].stdout.split() == [f"s3://my-bucket/run/ckpt-{step}" for step in range(20, 101, 20)]
    assert printed[1].stdout == ""  # it resumed from the last step, so nothing was left to do


def test_the_short_python_of_the_readme_is_part_of_the_long() -> None:
    short, long, _ = blocks(README, "python")
    assert short in long


def test_the_python_of_the_readme_for_several_workers_saves(tmp_path: Path) -> None:
    crew = blocks(README, "python")[2].replace("s3://my-bucket/run", str(tmp_path / "run"))
    checkpoint = tf.train.Checkpoint(value=tf.Variable(1.0))
    names = {"ckpt_remote": ckpt_remote, "checkpoint": checkpoint}
    exec(crew, names)  # noqa: S102 - the documents are ours

    assert names["path"] == f"{tmp_path}/run/ckpt-1"


def test_the_script_for_several_workers_is_the_one_that_a_test_runs_on_a_cluster() -> None:
    script = (REPOSITORY / "docs" / "demo" / "cluster_worker.py").read_text()
    docstring, shown = script.split("\n\nimport sys\n")

    assert "import sys\n" + shown == blocks(SEVERAL_WORKERS, "python")[0]
    assert docstring.count('"""') == 2


def test_workers_of_another_launcher_save_as_shown(tmp_path: Path) -> None:
    shown = blocks(SEVERAL_WORKERS, "python")[1].replace("s3://my-bucket/run", str(tmp_path / "run"))

    def begin(rank: int) -> ckpt_remote.CheckpointManager:
        environment = {"SLURM_PROCID": f"{rank}", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711"}
        checkpoint = tf.train.Checkpoint(**{f"value_{rank}": tf.Variable(1.0)})
        names = {"ckpt_remote": ckpt_remote, "checkpoint": checkpoint, "os": SimpleNamespace(environ=environment)}
        exec(shown, names)  # noqa: S102 - the documents are ours
        assert names["workers"] == ckpt_remote.Workers(rank, 2, timeout=60, job="4711")
        return names["manager"]

    managers = [begin(rank) for rank in range(2)]
    with ThreadPoolExecutor(len(managers)) as threads:
        paths = list(threads.map(lambda manager: manager.save(), managers))
    saved = dict(tf.train.list_variables(paths[0]))

    assert paths == [f"{tmp_path}/run/ckpt-1"] * 2
    assert {f"value_{rank}/.ATTRIBUTES/VARIABLE_VALUE" for rank in range(2)} <= saved.keys()


def test_the_patience_of_workers_that_tf_config_names_is_set_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}}))
    names = {"ckpt_remote": ckpt_remote, "dataclasses": dataclasses}
    exec(blocks(SEVERAL_WORKERS, "python")[2], names)  # noqa: S102 - the documents are ours

    assert names["workers"] == dataclasses.replace(ckpt_remote.Workers.from_environment(), timeout=60)
    assert (names["workers"].rank, names["workers"].size) == (1, 2)
    assert names["workers"].job


def test_the_evaluator_sees_every_checkpoint_and_writes_nothing(tmp_path: Path) -> None:
    trained, step = (tf.Variable(0, dtype=tf.int64) for _ in range(2))
    url = str(tmp_path / "run")
    writer = ckpt_remote.CheckpointManager(tf.train.Checkpoint(step=trained), url, max_to_keep=1)
    writer.save()
    evaluated: list[int] = []
    left = [contents(tmp_path)]  # by the writer

    def evaluate(_model: object) -> None:
        assert left[-1] == contents(tmp_path)
        evaluated.append(int(step))
        trained.assign_add(50)
        writer.save()
        left.append(contents(tmp_path))

    names = {
        "ckpt_remote": ckpt_remote,
        "checkpoint": tf.train.Checkpoint(step=step),
        "evaluate": evaluate,
        "model": None,
        "step": step,
        "time": time,
    }
    exec(blocks(SEVERAL_WORKERS, "python")[3].replace("s3://my-bucket/run", url), names)  # noqa: S102 - ours

    assert evaluated == [0, 50, 100]


def test_the_listeners_that_are_shown_hear_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    step = tf.Variable(5, dtype=tf.int64)
    manager = ckpt_remote.CheckpointManager(tf.train.Checkpoint(step=step), "memory://bucket/run", None)
    names = {"tf": tf, "opentelemetry": opentelemetry, "step": step, "manager": manager, "train": manager.save}
    for block in blocks(PROGRESS, "python"):
        exec(block, names)  # noqa: S102 - the documents are ours

    assert list((tmp_path / "logs").glob("events.*"))
    assert "Saved(url='memory://bucket/run/ckpt-3'" in capsys.readouterr().out
    manager.close()


def test_the_table_of_events_is_complete() -> None:
    assert set(first_column(PROGRESS, "Event")) == {event.__name__ for event in typing.get_args(progress.Event)}
    assert all(f"`{phase}`" in PROGRESS.read_text() for phase in typing.get_args(progress.Phase))
