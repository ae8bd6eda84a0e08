"""The benchmarks run, so that they cannot rot; and what they measure of memory and disk stays within the promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *arguments, tmp_path):
    result = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--json", str(result)]
    subprocess.run(command, check=True, timeout=240)
    return json.loads(result.read_text())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the figures are read from /proc")
def test_a_save_takes_little_memory_and_no_disk(tmp_path):
    figures = run("save_throughput.py", "--gigabytes", "0.6", "--rounds", "2", tmp_path=tmp_path)

    assert 5e8 < figures["bytes"]
    for row in figures["rows"]:
        assert 0.0 < row["ratio"]
        assert row["memory MB"] < 100.0
        assert row["disk MB"] < 2.0


@pytest.mark.slow
def test_an_index_of_a_hundred_thousand_entries_takes_seconds(tmp_path):
    figures = run("index_growth.py", tmp_path=tmp_path)
    rows = figures["rows"]

    assert max(row["entries"] for row in rows) == 100_000
    assert max(row["encode_seconds"] + row["decode_seconds"] for row in rows) < 20.0


@pytest.mark.slow
def test_training_waits_less_for_saves_behind_it(tmp_path):
    figures = run("stall.py", "--megabytes", "24", "--link", "20", "--saves", "1", tmp_path=tmp_path)
    waits = {kind: min(row["stalls"]) for kind, row in figures["rows"].items() if row["stalls"]}

    assert waits["asynchronous"] < 0.3 * waits["synchronous"]


@pytest.mark.slow
def test_a_restore_is_measured_phase_by_phase(tmp_path):
    figures = run("restore_throughput.py", "--gigabytes", "0.1", "--rounds", "1", tmp_path=tmp_path)
    [row] = figures["rows"]

    assert 5e7 < figures["bytes"]
    assert 0.0 < row["raw"]
    assert row["fetch"] + row["assign"] < row["restore"] < row["fetch"] + row["assign"] + 5.0
