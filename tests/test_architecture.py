"""The library is built in layers: a module imports only those above it, and few know TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_remote

PACKAGE = Path(ckpt_remote.__file__).parent
# Top to bottom; a folder is one layer.
LAYERS = [
    "errors", "progress", "buffers", "parallel", "locks", "bundle", "store", "textproto", "staging", "single_flight",
    "spool", "origin", "boxes", "plan", "workers", "state", "retention", "succession", "flow", "upload", "commit",
    "probe", "garbage", "ownership", "collector", "directory", "layout", "ballot", "attendance", "verdicts", "member",
    "patience", "rendezvous", "roll_call", "share", "tally", "leader", "follower", "copy", "reader", "pull", "tap",
    "checkpoint", "crew", "numbering", "background", "saving", "recovery", "display", "dashboards", "manager",
    "__init__",
]  # fmt: skip
TENSORFLOW = {"pull", "tap", "checkpoint", "numbering", "saving", "dashboards", "manager"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_the_layers_above(path):
    own = LAYERS.index(layer_of(path))
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "ckpt_remote" and len(parts) > 1 and parts[1] in LAYERS:
            layer = LAYERS.index(parts[1])
            assert layer < own or (layer == own and (PACKAGE / LAYERS[own]).is_dir()), f"{path.name} imports {name}"
        if parts[0] in ("tensorflow", "keras"):
            assert layer_of(path) in TENSORFLOW, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_says_what_it_is_what_it_offers_and_stays_small(path):
    tree = ast.parse(path.read_text())
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    assert ast.get_docstring(tree)
    assert "__all__" in names
    assert len(path.read_text().splitlines()) <= 600
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or node.end_lineno - body[0].lineno < 40, f"{node.name} is too long"


def test_no_private_member_of_tensorflow_is_used():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("tf", "keras")
            ):
                assert not node.attr.startswith("_"), f"{path.name} uses {node.value.id}.{node.attr}"
        assert "tensorflow.python" not in path.read_text()


def test_all_names_exist_and_are_the_public_ones():
    assert sorted(ckpt_remote.__all__) == ckpt_remote.__all__
    assert all(getattr(ckpt_remote, name) is not None for name in ckpt_remote.__all__)
    assert set(ckpt_remote.__all__) <= set(dir(ckpt_remote))


def test_importing_the_package_imports_no_tensorflow_and_takes_under_three_tenths_of_a_second():
    code = (
        "import sys, time; start = time.perf_counter(); import ckpt_remote; print(time.perf_counter() - start);"
        "sys.exit('tensorflow' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]

    assert min(float(run.stdout) for run in runs) < 0.3


def test_the_store_and_the_bundle_work_without_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import ckpt_remote.bundle, ckpt_remote.store, ckpt_remote.reader, ckpt_remote.commit\n"
        "ckpt_remote.store.open_store('memory://x/y').put('k', [b'v'], 'create')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
