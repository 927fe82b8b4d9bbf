"""Makes ``import wagle`` mean the tree in which this file lies, whatever else is installed.

Processes that a script starts import the script, and so this file, again.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parent
_NEEDED = ("fastargs", "yaml", "torch", "transformers")


def run(command: str) -> None:
    """Run a command of :mod:`wagle.cli` on this process's command line, and exit."""
    from wagle.cli import run

    run(command, sys.argv[1:])


def _bind(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "wagle", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None  # the file is there
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["wagle"] = package
    spec.loader.exec_module(package)


if _missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    sys.exit(
        f"error: {sys.executable} has no package {', '.join(_missing)}. "
        "Run make venv once, then use .venv/bin/python in place of python"
    )
if Path(sys.path[0]).resolve() == _SCRIPTS:
    sys.path.append(sys.path.pop(0))  # the scripts' names hide nobody else's modules
_bind(_SCRIPTS.parent)
