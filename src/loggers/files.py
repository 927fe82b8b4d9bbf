"""Writing files so that an interrupted run leaves nothing that looks finished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_FORMATS = ("png", "pdf")
DOTS_PER_INCH = 300  # of PNG pictures: what publishers ask for


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename: the file is complete or not there.

    Raises:
        ValueError: the content holds NaN or an infinity, which JSON cannot express.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file under a temporary name, then rename."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_figure(name: Path, figure: Figure) -> list[Path]:
    """Write a picture as ``{name}.png`` and ``{name}.pdf``, each complete or not there.

    A name that ends in .png or .pdf stands for both as well.
    PDF files carry their fonts as TrueType: publishers refuse matplotlib's default, Type 3.
    """
    import matplotlib

    name.parent.mkdir(parents=True, exist_ok=True)
    stem = name.stem if name.suffix[1:] in PICTURE_FORMATS else name.name
    paths = [name.with_name(f"{stem}.{form}") for form in PICTURE_FORMATS]
    for form, path in zip(PICTURE_FORMATS, paths, strict=True):
        partial = path.with_name(f"{path.name}.partial")
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(partial, format=form, dpi=DOTS_PER_INCH)
        os.replace(partial, path)
    return paths
