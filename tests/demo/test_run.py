"""The demo does what it says, fails when it must, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "docs/demo/run.py"]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder)}


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_bit_for_bit_as_one_that_was_never_killed(tmp_path: Path) -> None:
    demo = subprocess.run(
        DEMO,
        cwd=REPOSITORY,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    result = demo.stdout.partition("\nResult\n")[2]
    resumed_from = re.search(r"resumed from step +(\d+)", result)
    assert resumed_from is not None
    assert 0 < int(resumed_from[1]) < 1000
    for proof in ("final weights", "next batch"):
        never_killed, resumed = re.findall(rf"  {proof}, .+ ([0-9a-f]{{64}})\n", result)
        assert never_killed == resumed
    assert re.search(r"^ +\d\d entries compared bit for bit, 0 different$", demo.stdout, re.MULTILINE)
    assert "The killed run ended bit for bit as the run that was never killed." in result
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_demo_that_is_told_to_stop_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with subprocess.Popen(
        DEMO,
        cwd=REPOSITORY,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        assert any("starting from step 0" in line for line in demo.stdout)
        demo.terminate()
        demo.stdout.read()
    assert demo.returncode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)  # nobody of its process group is left: no server, no training process
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def expected(run: ModuleType) -> Any:
    return run.Run(first_step=0, weights="a" * 64, next_batch="b" * 64)


def test_equal_ends_after_a_real_resume_pass(run: ModuleType, expected: Any) -> None:
    run.check(400, expected, replace(expected, first_step=400))


@pytest.mark.parametrize("weights", ["c" * 64, None])
def test_other_final_weights_fail_the_demo(run: ModuleType, expected: Any, weights: str | None) -> None:
    with pytest.raises(run.DemoError, match="final weights differ"):
        run.check(400, expected, replace(expected, first_step=400, weights=weights))


@pytest.mark.parametrize("next_batch", ["c" * 64, None])
def test_another_next_batch_fails_the_demo(run: ModuleType, expected: Any, next_batch: str | None) -> None:
    with pytest.raises(run.DemoError, match="next batch differs"):
        run.check(400, expected, replace(expected, first_step=400, next_batch=next_batch))


@pytest.mark.parametrize(("saved", "first"), [(400, 0), (400, 300), (0, 0)])
def test_a_run_that_did_not_resume_from_what_was_saved_fails_the_demo(
    run: ModuleType, expected: Any, saved: int, first: int
) -> None:
    with pytest.raises(run.DemoError, match=f"step {saved} was saved, but training went on from step {first}"):
        run.check(saved, expected, replace(expected, first_step=first))
