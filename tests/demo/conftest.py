"""The demo's scripts as modules: they are run, not installed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).resolve().parents[2] / "docs" / "demo"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run() -> ModuleType:
    return _load("run")


@pytest.fixture(scope="session")
def compare() -> ModuleType:
    return _load("compare")
