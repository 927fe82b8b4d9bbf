"""WAGLE: unlearning by updating only the weights that matter."""

import importlib.util
import sys

_NEEDED = ("fastargs", "yaml", "torch", "transformers")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    sys.exit(
        f"error: {sys.executable} has no package {', '.join(_missing)}. "
        "Run make venv once, then use .venv/bin/python in place of python"
    )
