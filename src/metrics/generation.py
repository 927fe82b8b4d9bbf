"""Greedy answers, batched; every row leaves the batch at its own end."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence

import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from src.metrics.likelihood import evaluating


def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    max_total_length: int,
    batch_size: int,
    description: str,
) -> list[list[int]]:
    """Continue each prompt with the most likely token until EOS or the length limit.

    The model's own generation settings (sampling, repetition penalties) play no part. Prompts are
    run sorted by length, padded on the left; a row that has ended leaves the batch and the cache.

    Args:
        prompts: token ids, at least one each.
        max_total_length: of prompt and continuation together.

    Returns:
        The new tokens of each prompt, without the EOS, in the order given.
    """
    results: list[list[int]] = [[] for _ in prompts]
    order = [i for i in range(len(prompts)) if len(prompts[i]) < max_total_length]
    order.sort(key=lambda i: len(prompts[i]))
    with (
        evaluating(model),
        tqdm(total=len(order), desc=description, unit="row", disable=None) as bar,
    ):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            stop = set(eos_token_ids)
            _continue(model, prompts, rows, results, stop, pad_token_id, max_total_length, bar)
    return results


def _continue(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows: list[int],
    results: list[list[int]],
    stop: set[int],
    pad_token_id: int,
    max_total_length: int,
    bar: tqdm,
) -> None:
    """Decode one batch, appending to ``results``."""
    longest = max(len(prompts[i]) for i in rows)
    padded = [[pad_token_id] * (longest - len(prompts[i])) + list(prompts[i]) for i in rows]
    tokens = torch.tensor(padded, device=model.device)
    lengths = torch.tensor([len(prompts[i]) for i in rows], device=model.device)
    columns = torch.arange(longest, device=model.device)
    attention = (columns >= longest - lengths[:, None]).long()
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    accepted = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    while rows:
        if "position_ids" in accepted:
            options["position_ids"] = positions
        logits = model(
            input_ids=tokens,
            attention_mask=attention,
            past_key_values=cache,
            use_cache=True,
            **options,
        ).logits[:, -1]
        chosen = logits.argmax(dim=-1)
        going = []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if token in stop:
                continue
            results[row].append(token)
            if len(prompts[row]) + len(results[row]) < max_total_length:
                going.append(place)
        if len(going) < len(rows):
            bar.update(len(rows) - len(going))
            if not going:
                return
            keep = torch.tensor(going, device=model.device)
            cache.batch_select_indices(keep)
            rows = [rows[place] for place in going]
            attention, positions, chosen = attention[keep], positions[keep], chosen[keep]
        tokens = chosen[:, None]
        positions = positions[:, -1:] + 1
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
