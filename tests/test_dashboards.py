"""Dashboards get every figure of every save: TensorFlow reads its own files, OpenTelemetry's SDK its own metrics."""

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.places import Place

from ckpt_remote.dashboards import metrics, scalars
from ckpt_remote.progress import Collected, Entered, Failed, Repeated, Restored, Saved, listen

URL = "s3://bucket/run/ckpt-1"
SAVED = Saved(url=URL, size=3_000_000, seconds=0.5, stall=0.25)
RESTORED = Restored(url=URL, size=2_000_000, seconds=0.75)
FAILED = Failed(url=URL, action="save", error="because")
REPEATED = Repeated(error="busy", failures=1, pause=0.2)


def written(folder):
    """The scalars in TensorFlow's event files, by step."""
    found = defaultdict(dict)
    for file in folder.glob("events.*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[event.step][value.tag] = pytest.approx(float(tf.make_ndarray(value.tensor)))
    return dict(found)


def test_tensorboard_gets_the_figures_of_each_save_at_its_step(tmp_path):
    step, writer = tf.Variable(10), tf.summary.create_file_writer(str(tmp_path))
    tell = scalars(writer, step)
    for event in (Entered(url=URL, phase="take"), REPEATED, REPEATED, SAVED):
        tell(event)
    step.assign(20)
    tell(RESTORED)
    scalars(writer, lambda: 30)(FAILED)
    writer.close()

    saved = {
        "checkpoint/save_seconds": 0.5,
        "checkpoint/save_megabytes": 3.0,
        "checkpoint/stall_seconds": 0.25,
        "checkpoint/repeated_requests": 2.0,
    }
    restored = {
        "checkpoint/restore_seconds": 0.75,
        "checkpoint/restore_megabytes": 2.0,
        "checkpoint/repeated_requests": 0.0,
    }
    failed = {"checkpoint/failed_saves": 1.0, "checkpoint/repeated_requests": 0.0}
    assert {10: saved, 20: restored, 30: failed} == written(tmp_path)


def measured(*events):
    """What OpenTelemetry has after these events: by name, unit and attributes, the count and the sum."""
    reader = InMemoryMetricReader()
    tell = metrics(MeterProvider([reader]).get_meter("ckpt_remote"))
    for event in events:
        tell(event)
    [resource] = reader.get_metrics_data().resource_metrics
    [scope] = resource.scope_metrics
    return {
        (metric.name, metric.unit, *point.attributes.values()): (
            (point.count, point.sum) if hasattr(point, "count") else point.value
        )
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_opentelemetry_gets_durations_bytes_stalls_repetitions_and_failures():
    found = measured(SAVED, SAVED, RESTORED, FAILED, REPEATED, Collected(keys=("a",)))

    assert {
        ("ckpt_remote.duration", "s", "save"): (2, 1.0),
        ("ckpt_remote.duration", "s", "restore"): (1, 0.75),
        ("ckpt_remote.stall", "s"): (2, 0.5),
        ("ckpt_remote.io", "By", "save"): 6_000_000,
        ("ckpt_remote.io", "By", "restore"): 2_000_000,
        ("ckpt_remote.failures", "{failure}", "save"): 1,
        ("ckpt_remote.repeated_requests", "{request}"): 1,
    } == found


def test_opentelemetry_gets_how_long_each_phase_took(monkeypatch):
    times = iter([0.0, 1.0, 1.0, 4.0, 4.0, 4.5])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    found = measured(
        Entered(url=URL, phase="take"),
        Entered(url=URL, phase="write", size=9),
        Entered(url=URL, phase="publish"),
        SAVED,
        FAILED,
    )

    assert {("take",): (1, 1.0), ("write",): (1, 3.0), ("publish",): (1, 0.5)} == {
        key[2:]: value for key, value in found.items() if key[0] == "ckpt_remote.phase.duration"
    }


def test_a_real_save_and_restore_reach_the_dashboards(tmp_path):
    reader, writer = InMemoryMetricReader(), tf.summary.create_file_writer(str(tmp_path))
    manager = Place.in_memory().manager(tf.train.Checkpoint(v=tf.Variable([1.0] * 1000)))
    with listen(scalars(writer, lambda: 5)), listen(metrics(MeterProvider([reader]).get_meter("ckpt_remote"))):
        manager.save()
        manager.restore()
    writer.close()

    assert {5} == set(written(tmp_path))
    assert written(tmp_path)[5]["checkpoint/save_megabytes"] == pytest.approx(0.004, rel=0.5)
    assert b"ckpt_remote.phase.duration" in reader.get_metrics_data().to_json().encode()


def test_the_names_are_those_that_the_document_lists(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    for number, event in enumerate([SAVED, RESTORED, FAILED, replace(FAILED, action="restore")]):
        scalars(writer, lambda number=number: number)(event)
    writer.close()
    shown = (Path(__file__).parents[1] / "docs" / "progress.md").read_text()
    listed = set(re.findall(r"`(checkpoint/\w+|ckpt_remote\.(?!action|phase`)[\w.]+)`", shown))
    metered = measured(Entered(url=URL, phase="take"), SAVED, FAILED, REPEATED)

    assert {tag for tags in written(tmp_path).values() for tag in tags} | {name for name, *_ in metered} == (
        listed - {"ckpt_remote.dashboards", "ckpt_remote.progress"}
    )
