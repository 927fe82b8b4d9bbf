"""Where the files that come with the program lie: configurations, data, lm-eval tasks."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
"""The checkout that the program runs from; ``None`` where it was installed as a package."""


def shipped(path: str) -> Path:
    """A file or folder that comes with the program.

    Args:
        path: from the checkout's root, like ``configs/demo``, ``files/data`` or
            ``lm-evaluation-harness``. In an installed package they lie below the package, whose
            names take underscores for hyphens.
    """
    return CHECKOUT / path if CHECKOUT else _PACKAGE / path.replace("-", "_")


def here_or_shipped(path: str | Path) -> Path:
    """A path from the working directory; where there is none of that name, one that is shipped."""
    here = Path(path)
    return here if here.exists() or not shipped(str(path)).exists() else shipped(str(path))
