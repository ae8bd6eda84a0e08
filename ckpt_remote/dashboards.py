"""Hands what happens to dashboards: TensorBoard's scalars, OpenTelemetry's metrics.

    with listen(scalars(tf.summary.create_file_writer("logs"), step)):
        train()

    with listen(metrics(opentelemetry.metrics.get_meter("ckpt_remote"))):
        train()

Promises: only events are looked at, so nothing here makes a save slower than writing down a few numbers; OpenTelemetry
is not imported. Names and units are those of the tables in docs/progress.md.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from ckpt_remote.progress import Entered, Event, Failed, Listener, Repeated, Restored, Saved

__all__ = ["Meter", "metrics", "scalars"]


# What `tf.summary.scalar` writes, which needs TensorBoard (its plugins/scalar/metadata.py and summary/v2.py).
_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class=1,  # DATA_CLASS_SCALAR in core/framework/summary.proto
)


class Meter(Protocol):
    """What is used of an `opentelemetry.metrics.Meter`."""

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
        """Makes what can be added to."""

    def create_histogram(self, name: str, unit: str = "", description: str = "") -> Any:
        """Makes what records values."""


def scalars(writer: tf.summary.SummaryWriter, step: Callable[[], int] | tf.Variable) -> Listener:
    """A listener that writes a scalar for each figure of each save and restore.

    Args:
        writer: TensorFlow's, as from `tf.summary.create_file_writer`. Not closed.
        step: The step that they belong to: a variable, or what returns a number. Saves behind training are written
            with the step at which they end.

    Returns:
        What to give to `ckpt_remote.progress.listen`.
    """
    repeated = 0

    def write(event: Event) -> None:
        nonlocal repeated
        if isinstance(event, Repeated):
            repeated += 1
            return
        figures = _figures(event)
        if figures:
            figures["checkpoint/repeated_requests"], repeated = float(repeated), 0
            with writer.as_default(step=_value(step)):
                for name, value in figures.items():
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=_SCALAR)

    return write


def metrics(meter: Meter) -> Listener:
    """A listener that records every figure as an OpenTelemetry metric.

    Args:
        meter: As from `opentelemetry.metrics.get_meter("ckpt_remote")`.

    Returns:
        What to give to `ckpt_remote.progress.listen`.
    """
    durations = meter.create_histogram("ckpt_remote.duration", "s", "How long a save or a restore took")
    stalls = meter.create_histogram("ckpt_remote.stall", "s", "How long training waited for a save")
    phases = meter.create_histogram("ckpt_remote.phase.duration", "s", "How long one thing that a save does took")
    moved = meter.create_counter("ckpt_remote.io", "By", "Bytes of data of checkpoints that were saved or restored")
    repeated = meter.create_counter("ckpt_remote.repeated_requests", "{request}", "Requests that had to be sent again")
    failures = meter.create_counter("ckpt_remote.failures", "{failure}", "Saves and restores that have failed")
    under_way: dict[str, tuple[str, float]] = {}

    def end_phase(url: str) -> None:
        phase, begun = under_way.pop(url, ("", 0.0))
        if phase:
            phases.record(time.monotonic() - begun, {"ckpt_remote.phase": phase})

    def record(event: Event) -> None:
        if isinstance(event, Repeated):
            repeated.add(1)
        elif isinstance(event, Entered):
            end_phase(event.url)
            under_way[event.url] = event.phase, time.monotonic()
        elif isinstance(event, Failed):
            end_phase(event.url)
            failures.add(1, {"ckpt_remote.action": event.action})
        elif isinstance(event, Saved | Restored):
            end_phase(event.url)
            action = {"ckpt_remote.action": "save" if isinstance(event, Saved) else "restore"}
            durations.record(event.seconds, action)
            moved.add(event.size, action)
            if isinstance(event, Saved):
                stalls.record(event.stall)

    return record


def _figures(event: Event) -> dict[str, float]:
    if isinstance(event, Saved):
        return {
            "checkpoint/save_seconds": event.seconds,
            "checkpoint/save_megabytes": event.size / 1e6,
            "checkpoint/stall_seconds": event.stall,
        }
    if isinstance(event, Restored):
        return {"checkpoint/restore_seconds": event.seconds, "checkpoint/restore_megabytes": event.size / 1e6}
    if isinstance(event, Failed):
        return {f"checkpoint/failed_{event.action}s": 1.0}
    return {}


def _value(step: Callable[[], int] | tf.Variable) -> int:
    return int(step.numpy()) if isinstance(step, tf.Variable) else step()
