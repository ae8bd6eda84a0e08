"""The documents tell the truth: links lead somewhere, commands exist, and the README's Python runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from support.servers import moto

import ckpt_remote

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


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
