"""What every benchmark says of itself: on what it ran, and its figures as JSON.

    arguments = parser(__doc__).parse_args()
    print(headline())
    keep(arguments, rows=rows)

It measures nothing.
"""

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["environment", "headline", "keep", "parser"]

PACKAGES = ("ckpt_remote", "tensorflow", "tensorflow-cpu", "keras", "obstore", "boto3", "s3fs", "crc32c", "numpy")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that knows `--json`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    return made


def environment() -> dict[str, str]:
    """The machine, and the versions of what is installed and matters."""
    found = {"cores": str(os.cpu_count()), "system": platform.platform(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def headline() -> str:
    """The environment in a line."""
    return ", ".join(f"{name} {value}" for name, value in environment().items())


def keep(arguments: argparse.Namespace, **figures: object) -> None:
    """Writes the figures, if they are wanted."""
    if arguments.json:
        given = {name: value for name, value in vars(arguments).items() if name != "json"}
        text = json.dumps({"environment": environment(), "arguments": given, **figures}, indent=2)
        arguments.json.write_text(text + "\n")
