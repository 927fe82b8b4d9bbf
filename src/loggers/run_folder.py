"""What a run folder holds, and whether it still holds what was written.

The manifest lists a checksum of every other document, and carries one of itself: a number that was
changed on a disk, or by hand, is found when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wagle.errors import WagleError
from wagle.loggers.files import bytes_fingerprint, json_checksum, read_json, write_json

CONFIG, MANIFEST, RESULTS, TRAINING_LOG = "config.json", "manifest.json", "results.json", "log.json"
PARTIAL_RESULTS = "results.partial.json"
"""What has been measured so far; its place is taken by ``results.json`` when all is there."""
EVALUATION = "evaluation"
"""How far what is being measured has come."""
CHECKPOINTS = "checkpoints"
TRAINING = "training"
"""Checkpoints of the training in progress; the trained model is in ``checkpoints``."""
REFERENCES = "references.json"
"""Numbers of models whose results a run was given, by the model's title and the number's key."""
ATTACK = "attack.json"
"""What attacks on a finished run have found; it may be written, and grow, after the manifest."""
DEPTH = "depth.json"
"""As :data:`ATTACK`, where mask, update and knowledge of a finished run sit."""
FINISHED = "finished"
"""The status of a run whose ``results.json`` is complete; others: running, failed, interrupted."""


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of the documents that the folder holds at this moment."""
    documents = {
        path.name: bytes_fingerprint(path)
        for path in sorted(folder.glob("*.json"))
        if path.name not in (MANIFEST, PARTIAL_RESULTS, ATTACK, DEPTH)
    }
    content = {**content, "documents": documents}
    write_json(folder / MANIFEST, {**content, "checksum": json_checksum(content)}, durable=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        WagleError: it is missing, damaged, or no manifest; the message names the file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise WagleError(f"{folder} is no run folder: it has no {MANIFEST}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "status" not in manifest:
        raise WagleError(f"{path} is no manifest of a run")
    checksum = manifest.pop("checksum", None)
    older = checksum is None and "documents" not in manifest
    if not older and checksum != json_checksum(manifest):
        raise WagleError(f"{path} is damaged: its checksum is wrong")
    return manifest


def read_document(folder: Path, name: str, manifest: Mapping[str, Any]) -> Any:
    """A document of a run, such as ``results.json``, if it is as the run left it.

    Raises:
        WagleError: it is missing, damaged or changed; the message names the file.
    """
    path = folder / name
    document = read_json(path)
    known = manifest.get("documents", {}).get(name)
    if known is not None and known != bytes_fingerprint(path):
        raise WagleError(f"{path} has been changed since the run wrote it: its checksum is wrong")
    return document


def read_result_file(path: Path) -> Any:
    """A JSON file of results; in a run folder that lists it, only as the run left it.

    Raises:
        WagleError: it is missing, damaged or changed; the message names it.
    """
    try:
        manifest = read_manifest(path.parent)
    except WagleError:  # it lies elsewhere, or comes from another program
        manifest = {}
    return read_document(path.parent, path.name, manifest)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    try:
        return (folder / RESULTS).is_file() and read_manifest(folder).get("status") == FINISHED
    except WagleError:
        return False


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested sections by dotted key."""
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
