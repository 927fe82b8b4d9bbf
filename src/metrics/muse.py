"""The benchmark muse: texts that are to be forgotten word for word, in substance, without a trace.

Shi et al. 2024 (arXiv 2407.06460); ROUGE with stems, as open-unlearning has it
(2506.12618), or without, as they have it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle.dataset.names import family_of
from wagle.errors import ConfigError
from wagle.metrics.benchmark import ROUGE_OF_ANSWER, Answers, Benchmark, Metric, Numbers, Settings
from wagle.metrics.privacy import MIDDLE, PRIVACY, PRIVLEAK, privacy_numbers

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from wagle.config import UnlearnConfig
    from wagle.metrics.benchmark import Rows
    from wagle.metrics.resampling import Documents, Draws, Recount
    from wagle.model.evaluation_context import EvaluationContext

CONTINUED_TOKENS, ANSWER_TOKENS = 128, 32
_ANY_LENGTH = 1 << 30  # tokens
_SHOWN = 80  # characters of an attacked text that say which it is
ENDS = ("\n\n", "\nQuestion", "Question:")
"""Where an answer ends: the model goes on with questions of its own."""
RELEASED = {"MuseNews": 0.4772, "MuseBooks": 0.5393}
"""A of the retrained models that MUSE's authors have released."""
VERBATIM_ROWS, KNOWLEDGE_ROWS, ATTACKED_ROWS = "verbmem.json", "knowmem.json", "privleak.json"
FAMILIES = ("MuseNews", "MuseBooks", "DemoMuse")

VERBATIM = Metric(
    "verbmem forget",
    "How much of the wording of the text to forget its continuations have (ROUGE-L F1).",
    -1,
    group="forget",
    title="VerbMem",
    digits=1,
    largest=100,
)
STRENGTH = Metric(
    "verbmem Extraction Strength",
    "Share of a continuation of the text to forget that it completes word for word.",
    -1,
    group="forget",
    title="ES",
    largest=1,
)
KNOWLEDGE = {
    role: Metric(
        f"knowmem {role}",
        f"How well it answers questions about the text to {role} (ROUGE-L F1).",
        better,
        group=role,
        title="KnowMem",
        digits=1,
        largest=100,
    )
    for role, better in (("forget", -1), ("retain", 1))
}


def measure_verbatim(context: EvaluationContext) -> Numbers:
    """Continuations of the text to forget: ``verbmem.json``."""
    from wagle.dataset.encoding import IGNORED, Encoded, tokenize
    from wagle.metrics.likelihood import score_tokens
    from wagle.metrics.memorization import extraction_strength
    from wagle.metrics.text import rouge_l_f1

    tokenizer, rows = context.tokenizer, _rows(context, "verbmem")
    stems = context.config.evaluation.rouge_stems
    prompts = [tokenize(tokenizer, row["prompt"], _longest_prompt(context)) for row in rows]
    true = [continuation(tokenizer, row["prompt"], row["gt"])[:CONTINUED_TOKENS] for row in rows]
    texts = _generate(context, prompts, CONTINUED_TOKENS)
    scored = score_tokens(
        context.model,
        [
            Encoded([*prompt, *ids], [IGNORED] * len(prompt) + ids)
            for prompt, ids in zip(prompts, true, strict=True)
        ],
        batch_size=context.batch_size,
        pad_token_id=tokenizer.pad_token_id,
        description="scoring continuations",
    )
    documents = []
    for row, ids, text, tokens in zip(rows, true, texts, scored, strict=True):
        reference = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        documents.append(
            {
                "question": row["prompt"],
                "answer": reference,
                "generated": text,
                "rougeL_score": rouge_l_f1(reference, text, stems=stems),
                "extraction_strength": max(extraction_strength(tokens.is_greedy), 1 / len(tokens)),
            }
        )
    context.save(VERBATIM_ROWS, {"verbmem": {"rows": documents}})
    return {
        VERBATIM: 100 * _mean(documents, "rougeL_score"),
        STRENGTH: _mean(documents, "extraction_strength"),
    }


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """Token ids of a text as they follow its prompt, the space between them included."""
    from wagle.dataset.encoding import tokenize

    whole, start = (tokenize(tokenizer, t, _ANY_LENGTH) for t in (f"{prompt} {text}", prompt))
    return whole[len(start) :]


def measure_knowledge(context: EvaluationContext) -> Numbers:
    """Answers to questions behind a few examples: ``knowmem.json``."""
    from wagle.dataset.encoding import tokenize
    from wagle.metrics.text import rouge_l_f1

    documents: dict[str, Any] = {}
    stems = context.config.evaluation.rouge_stems
    for role in KNOWLEDGE:
        examples = "".join(
            f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
            for row in context.load_rows(_name(context.config, f"knowmem_{role}_qa_icl"))
        )
        rows = _rows(context, f"knowmem_{role}")
        prompts = [
            tokenize(
                context.tokenizer,
                f"{examples}Question: {row['question']}\nAnswer: ",
                _longest_prompt(context),
            )
            for row in rows
        ]
        texts = [cut_answer(text) for text in _generate(context, prompts, ANSWER_TOKENS)]
        documents[f"knowmem_{role}"] = {
            "rows": [
                {
                    "question": row["question"],
                    "answer": row["answer"],
                    "generated": text,
                    "rougeL_score": rouge_l_f1(row["answer"], text, stems=stems),
                }
                for row, text in zip(rows, texts, strict=True)
            ]
        }
    context.save(KNOWLEDGE_ROWS, documents)
    return {
        metric: 100 * _mean(documents[f"knowmem_{role}"]["rows"], "rougeL_score")
        for role, metric in KNOWLEDGE.items()
    }


def cut_answer(text: str) -> str:
    """An answer up to where the model asks itself another question."""
    for end in ENDS:
        text = text.partition(end)[0]
    return text.strip()


def measure_leakage(context: EvaluationContext) -> Numbers:
    """Whether the text to forget is told from text that nobody learned: ``privleak.json``.

    MUSE's A is 1 − AUC, so that its 100 · (A − A′) / A′ is the privleak of all benchmarks.
    """
    from wagle.dataset.encoding import encode_text
    from wagle.model.privacy_evaluation import Attacked, attack_holdout
    from wagle.terminal import say

    attacked = {
        role: [
            Attacked(
                row["text"],
                encode_text(context.tokenizer, row["text"], max_length=_longest(context)),
            )
            for row in _rows(context, f"privleak_{role}")
        ]
        for role in ("forget", "holdout")
    }
    aucs, scores = attack_holdout(context, attacked["forget"], attacked["holdout"])
    found = iter(scores)
    parts = {
        role: {"rows": [{"text": row.text[:_SHOWN], **next(found)} for row in rows]}
        for role, rows in attacked.items()
    }
    context.save(ATTACKED_ROWS, {"AUC": aucs, **parts})
    path, family = context.config.evaluation.retain_results, _family(context.config)
    if path is None and family in RELEASED:
        say(f"privleak: against MUSE's released retrained model, whose A is {RELEASED[family]}")
    asked = [row["question"] for row in _rows(context, "knowmem_forget")]
    return privacy_numbers(aucs, _retained(path, family, asked))


def _retained(path: str | None, family: str, asked: Sequence[str]) -> dict[str, float]:
    """AUCs of the retrained model: of the results that are given, else what is released.

    Args:
        asked: the questions about the text to forget.
    """
    from wagle.metrics.muse_files import retained_aucs

    if path is None:
        return {MIDDLE: 1 - RELEASED[family]} if family in RELEASED else {}
    return retained_aucs(Path(path), asked)


def _generate(
    context: EvaluationContext, prompts: Sequence[list[int]], new_tokens: int
) -> list[str]:
    from wagle.metrics.generation import end_tokens, generate_greedy

    generated = generate_greedy(
        context.model,
        prompts,
        eos_token_ids=end_tokens(context.model, context.tokenizer),
        pad_token_id=context.tokenizer.pad_token_id,
        max_total_length=max(map(len, prompts)) + new_tokens,
        batch_size=context.batch_size,
        description="continuing texts",
    )
    cut = [tokens[:new_tokens] for tokens in generated]
    return [text.strip() for text in context.tokenizer.batch_decode(cut, skip_special_tokens=True)]


def _longest(context: EvaluationContext) -> int:
    """Tokens of a text."""
    from wagle.model.reading import most_positions

    return min(MUSE.longest, most_positions(context.model))


def _longest_prompt(context: EvaluationContext) -> int:
    """So that there is room for what follows."""
    return _longest(context) - CONTINUED_TOKENS


def _rows(context: EvaluationContext, name: str) -> list[Mapping[str, str]]:
    return list(context.asked_rows()[name])[: context.limit]


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def _family(config: UnlearnConfig) -> str:
    family = family_of(config.dataset.forget_dataset_name)
    if family not in FAMILIES:
        raise ConfigError(
            f"unlearn.task_name muse asks about {', '.join(FAMILIES)}, but "
            f"dataset.forget_dataset_name is {config.dataset.forget_dataset_name}"
        )
    return family


def _name(config: UnlearnConfig, subset: str) -> str:
    return f"{_family(config)}_{subset}"


def _sets(config: UnlearnConfig) -> dict[str, str]:
    subsets = {"verbmem": "verbmem_forget"}
    subsets |= {f"knowmem_{role}": f"knowmem_{role}_qa" for role in KNOWLEDGE}
    subsets |= {f"privleak_{role}": f"privleak_{role}" for role in ("forget", "holdout")}
    return {name: _name(config, subset) for name, subset in subsets.items()}


def _check(config: UnlearnConfig, rows: Mapping[str, Rows]) -> None:
    asked = [row["question"] for row in rows["knowmem_forget"]][: config.evaluation.limit]
    _retained(config.evaluation.retain_results, _family(config), asked)


def _is_default(values: Settings) -> bool:
    return family_of(values["dataset.forget_dataset_name"] or "") in FAMILIES


def _recount(load: Documents, config: Settings) -> Recount:
    """Of all parts; of attacks where it is known what they were about, as it was not always kept.

    What compares with a retrained model is there as long as the file of its results is.
    """
    from wagle.metrics.resampling import Recount, asked_in, column_of

    documents, attacked = load(VERBATIM_ROWS) | load(KNOWLEDGE_ROWS), load(ATTACKED_ROWS)
    rows = {name: part["rows"] for name, part in documents.items()}
    rouge = {name: 100 * column_of(found, "rougeL_score") for name, found in rows.items()}
    strength = column_of(rows["verbmem"], "extraction_strength")
    columns = {VERBATIM: ("verbmem", rouge["verbmem"]), STRENGTH: ("verbmem", strength)}
    for role, metric in KNOWLEDGE.items():
        columns[metric] = f"knowmem_{role}", rouge[f"knowmem_{role}"]
    means = Recount.of_means({name: asked_in(found) for name, found in rows.items()}, columns)
    if not attacked:  # that part has failed
        return means
    texts = {f"privleak_{role}": attacked[role]["rows"] for role in ("holdout", "forget")}
    if not all("text" in row for found in texts.values() for row in found):
        return means
    attacks = {
        attack: [(name, column_of(found, attack)) for name, found in texts.items()]
        for attack in attacked["AUC"]
    }
    path = config.get("evaluation.retain_results")
    lost = path is not None and not Path(path).exists()
    family = family_of(config["dataset.forget_dataset_name"])
    retained = {} if lost else _retained(path, family, means.asked["knowmem_forget"])

    def numbers(draws: Draws) -> Mapping[Metric, np.ndarray]:
        aucs = {attack: draws.auc(*sets) for attack, sets in attacks.items()}
        return {**means.numbers(draws), **privacy_numbers(aucs, retained)}

    return Recount({**means.asked, **{n: asked_in(found) for n, found in texts.items()}}, numbers)


MUSE = Benchmark(
    "muse",
    "MUSE: memorisation, privacy and utility",
    metrics=(VERBATIM, *KNOWLEDGE.values(), STRENGTH, *PRIVACY),
    parts={
        "verbmem": measure_verbatim,
        "knowmem": measure_knowledge,
        "privleak": measure_leakage,
    },
    columns=(VERBATIM, STRENGTH, KNOWLEDGE["forget"], PRIVLEAK, KNOWLEDGE["retain"]),
    summary=(VERBATIM, KNOWLEDGE["forget"], PRIVLEAK, KNOWLEDGE["retain"]),
    sets=_sets,
    check=_check,
    longest=2048,
    is_default=_is_default,
    answers=Answers(
        {"verbmem": "Continued", "knowmem_forget": "Forget", "knowmem_retain": "Retain"},
        [ROUGE_OF_ANSWER],
        {
            "verbmem": VERBATIM_ROWS,
            "knowmem_forget": KNOWLEDGE_ROWS,
            "knowmem_retain": KNOWLEDGE_ROWS,
        },
    ),
    recount=_recount,
)
