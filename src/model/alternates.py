"""Other answers to forget questions, sampled from the model itself, for AltPO."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from wagle.dataset.encoding import tokenize
from wagle.dataset.templates import Template
from wagle.errors import ConfigError, WagleError
from wagle.loggers.files import locked, read_json, read_object, write_json
from wagle.metrics.generation import end_tokens
from wagle.model.reading import evaluating, learned_positions
from wagle.terminal import Progress, say

COUNT = 5  # alternates of a row, their most tokens and how they are drawn (arXiv 2409.13474)
NEW_TOKENS = 200
TEMPERATURE = 1.0
LONGEST_PROMPT = 1024  # tokens
ATTEMPTS = 20  # at an alternate that holds text

REQUEST = (
    "{question}\n\nThe usual answer is: {answer}\n\nWrite another answer to the same question: as "
    "plausible and of the same form, but with other facts. Write nothing but this answer."
)

Row = Mapping[str, str]


def write_alternates(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    rows: Sequence[Row],
    *,
    origin: Mapping[str, Any],
    seed: int,
    batch_size: int,
) -> None:
    """Sample five alternates of every row, and keep them in a file.

    Batches are drawn by themselves, from a seed and their number: a batch that is done stands as a
    line of ``PATH.unfinished`` at once, and after an interruption the rest gives the same file.

    Args:
        path: of a JSON document, ``{"origin": …, "rows": [{"question", "answer", "alternates"}]}``.
        model: the one to be unlearned.
        rows: with ``question`` and ``answer``.
        origin: everything else that the alternates depend on, as JSON.
        batch_size: the most texts that are sampled at once; the draws depend on it.

    Raises:
        ConfigError: the file is there and of another origin.
        WagleError: the model writes no alternate to a row.
    """
    at_once = max(1, batch_size // COUNT)
    drawing = {"seed": seed, "rows at once": at_once, "temperature": TEMPERATURE, "count": COUNT}
    whole = json.loads(json.dumps({**origin, **drawing}))
    with locked(path):
        if path.exists():
            if read_object(path).get("origin") != whole:
                raise ConfigError(
                    f"{path} holds alternates of another origin; remove it or name another"
                )
            say(f"{path} is finished")
            return
        unfinished = path.with_name(f"{path.name}.unfinished")
        done = _finished_batches(unfinished, whole)
        starts = range(0, len(rows), at_once)
        with (
            unfinished.open("a", encoding="utf-8") as file,
            Progress("alternates", len(rows)) as bar,
        ):
            if not done and file.tell() == 0:
                _append(file, whole)
            bar.update(min(len(rows), len(done) * at_once))
            for number, start in enumerate(starts):
                if number < len(done):
                    continue
                part = rows[start : start + at_once]
                done.append(_sample(model, tokenizer, template, part, f"{seed} {number}"))
                _append(file, done[-1])
                bar.update(len(part))
        texts = [own for batch in done for own in batch]
        content = [
            {"question": row["question"], "answer": row["answer"], "alternates": own}
            for row, own in zip(rows, texts, strict=True)
        ]
        write_json(path, {"origin": whole, "rows": content}, durable=True)
        unfinished.unlink()


def _append(file: Any, content: Any) -> None:
    file.write(json.dumps(content) + "\n")
    file.flush()


def _finished_batches(unfinished: Path, origin: Mapping[str, Any]) -> list[list[list[str]]]:
    """The batches that an interrupted attempt has left; a half-written line is cut off."""
    if not unfinished.exists():
        return []
    lines = unfinished.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    first, *batches = [json.loads(line) for line in whole] or [None]
    if first != origin:
        say(f"{unfinished} is of another origin: it is removed")
        unfinished.unlink()
        return []
    with unfinished.open("r+b") as file:
        file.truncate(sum(map(len, whole)))
    say(f"going on after {len(batches)} batches of alternates")
    return batches


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    rows: Sequence[Row],
    key: str,
) -> list[list[str]]:
    """The alternates of some rows, none of them blank."""
    prompts = [_prompt(tokenizer, template, row) for row in rows]
    found: list[list[str]] = [[] for _ in rows]
    for attempt in range(ATTEMPTS):
        lacking = [place for place, own in enumerate(found) if len(own) < COUNT]
        if not lacking:
            return found
        seed = random.Random(f"alternates {key} {attempt}").getrandbits(62)
        texts = _draw(model, tokenizer, [prompts[place] for place in lacking], seed)
        for place, own in zip(lacking, texts, strict=True):
            found[place] += [text for text in own if text][: COUNT - len(found[place])]
    empty = next(row for row, own in zip(rows, found, strict=True) if len(own) < COUNT)
    raise WagleError(f"the model writes no other answer to {empty['question'][:80]!r}")


def _prompt(tokenizer: PreTrainedTokenizerBase, template: Template, row: Row) -> list[int]:
    text = template.question(REQUEST.format(question=row["question"], answer=row["answer"]))
    return tokenize(tokenizer, (text + template.answer_start).rstrip(" "), LONGEST_PROMPT)


def _draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    seed: int,
) -> list[list[str]]:
    """Sampled continuations of each prompt, as many as there are alternates."""
    longest = max(map(len, prompts))
    positions = learned_positions(model, longest + NEW_TOKENS)
    room = NEW_TOKENS if positions is None else min(NEW_TOKENS, positions - longest)
    if room < 1:
        raise WagleError(f"a prompt of {longest} tokens leaves the model no room for an alternate")
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    settings = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=room,
        num_return_sequences=COUNT,
        eos_token_id=sorted(end_tokens(model, tokenizer)),
        pad_token_id=pad,
    )
    with evaluating(model), torch.random.fork_rng(devices=_generators(model)):
        torch.manual_seed(seed)
        generate: Any = model.generate  # typed as a tensor
        tokens = generate(
            input_ids=ids.to(model.device),
            attention_mask=attention.to(model.device),
            generation_config=settings,
        )
    texts = tokenizer.batch_decode(tokens[:, longest:], skip_special_tokens=True)
    texts = [text.strip() for text in texts]
    return [texts[start : start + COUNT] for start in range(0, len(texts), COUNT)]


def _generators(model: PreTrainedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []


def read_alternates(path: Path, rows: Sequence[Row], *, model: str) -> list[list[str]]:
    """The alternates of each row.

    Args:
        model: fingerprint of the model to be unlearned.

    Raises:
        ConfigError: there is no such file, it is about other rows, or another model has made it.
    """
    command = "wagle alternates, with the same configuration, makes it"
    if not path.is_file():
        raise ConfigError(f"there is no file of alternates {path}; {command}")
    content = read_json(path)
    try:
        known = {(row["question"], row["answer"]): row["alternates"] for row in content["rows"]}
        maker = content["origin"]["model"]
    except (KeyError, TypeError) as error:
        raise WagleError(f"{path} is no file of alternates; {command}") from error
    if maker != model:
        raise ConfigError(f"{path} is what another model has written; {command} under another name")
    missing = [row for row in rows if (row["question"], row["answer"]) not in known]
    if missing:
        raise ConfigError(
            f"{path} has no alternates to {len(missing)} of the {len(rows)} rows to be forgotten, "
            f"such as {missing[0]['question'][:80]!r}; {command} under another name"
        )
    return [known[row["question"], row["answer"]] for row in rows]
