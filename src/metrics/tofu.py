"""TOFU (Maini et al. 2024, arXiv 2401.06121), evaluated as in the WAGLE paper."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import ks_2samp
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.dataset.encoding import IGNORED, Encoded, encode_answer, tokenize
from src.dataset.templates import Template
from src.errors import ConfigError
from src.metrics.generation import generate_greedy
from src.metrics.likelihood import token_log_probs
from src.metrics.membership import attack_aucs, min_k_scores
from src.metrics.sentence import closest_candidates
from src.metrics.text import rouge_l_recall

MAX_TOTAL_LENGTH = 200  # tokens of prompt and greedy answer together
MAX_TEXT_LENGTH = 512
AUTHOR_SETS = ("forget", "retain")
FACT_SETS = ("real_author", "world_fact")


def tofu_subsets(forget_dataset_name: str) -> dict[str, str]:
    """Names of the data sets that are asked, by role.

    ``Tofu_full`` and ``Tofu_retain90`` are asked about forget10, as published (100 − 90).

    Raises:
        ConfigError: the name is no TOFU-like forget set.
    """
    family, _, subset = forget_dataset_name.partition("_")
    subset = subset.removesuffix("_perturbed")
    if subset == "full":
        subset = "forget10"
    elif subset.startswith("retain") and subset.removeprefix("retain").isdigit():
        subset = f"forget{100 - int(subset.removeprefix('retain')):02d}"
    if family not in ("Tofu", "Demo") or not subset.startswith("forget"):
        raise ConfigError(
            f"unlearn.task_name tofu asks about a forget set of TOFU's form, but "
            f"dataset.forget_dataset_name is {forget_dataset_name}; give one like Tofu_forget10"
        )
    return {
        "forget": f"{family}_{subset}_perturbed",
        "retain": f"{family}_retain_perturbed",
        "real_author": f"{family}_real_authors_perturbed",
        "world_fact": f"{family}_world_facts_perturbed",
    }


@dataclass
class _Row:
    """One question and what the model says to it.

    ``answer``, ``paraphrase`` and ``perturbed`` are log-probabilities of answer tokens; ``text``
    (authors only) those of all tokens of the question with its answer.
    """

    source: Mapping[str, Any]
    is_author: bool
    answer_tokens: int = 0
    text: np.ndarray = field(default_factory=lambda: np.empty(0))
    answer: np.ndarray = field(default_factory=lambda: np.empty(0))
    paraphrase: np.ndarray = field(default_factory=lambda: np.empty(0))
    perturbed: list[np.ndarray] = field(default_factory=list)
    generated: str = ""
    generated_paraphrase: str | None = None

    @property
    def perturbed_question(self) -> str:
        return self.source["paraphrased_question" if self.is_author else "question"]


def evaluate_tofu(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    sets: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    encoder: SentenceTransformer,
    protocol: str,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate on the sets ``forget``, ``retain``, ``real_author`` and ``world_fact``.

    Args:
        sets: rows with ``question``, ``answer``, ``perturbed_answer`` (a list) and, in the first
            two sets, ``paraphrased_question`` and ``paraphrased_answer``.
        encoder: judges which candidate a generated answer is closest to.
        protocol: ``corrected``: the prompt ends with the answer start and the whole generation
            counts; ``published``: the prompt is the question part alone, and the first generated
            token is lost.
        limit: the first rows of each set only.

    Returns:
        The content of ``tofu.json``: per set the means of truth_ratio, truth_prob, rougeL_score and
        acc, and per row these values with the generated answers, and the token-mean losses and
        membership scores that they come from; "Forget Quality"; "MIA".
    """
    rows = {
        name: [_Row(source, name in AUTHOR_SETS) for source in list(sets[name])[:limit]]
        for name in (*AUTHOR_SETS, *FACT_SETS)
    }
    everything = [row for group in rows.values() for row in group]
    _score(model, tokenizer, template, everything, batch_size)
    _generate(model, tokenizer, template, everything, protocol, batch_size)
    result: dict[str, Any] = {"protocol": protocol}
    for name, group in rows.items():
        result[name] = _summarize_set(group, encoder)
    result["Forget Quality"] = float(
        ks_2samp(*(_column(result, name, "truth_ratio") for name in AUTHOR_SETS)).pvalue
    )
    result["MIA"] = attack_aucs(*(_column(result, name, "MIA") for name in AUTHOR_SETS))
    return result


def _column(result: Mapping[str, Any], name: str, key: str) -> list[Any]:
    return [row[key] for row in result[name]["rows"]]


def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    rows: Sequence[_Row],
    batch_size: int,
) -> None:
    """Fill in the log-probabilities."""

    def encode(question: str, answer: str) -> Encoded:
        return encode_answer(
            tokenizer, template, question, answer, max_length=MAX_TEXT_LENGTH, eos=False
        )

    sequences: list[Encoded] = []
    for row in rows:
        source = row.source
        answer = encode(source["question"], source["answer"])
        if row.is_author:
            # Membership inference reads every token of the text; the answer's are the last of them.
            row.answer_tokens = sum(label != IGNORED for label in answer.labels)
            sequences.append(Encoded(answer.input_ids, list(answer.input_ids)))
            sequences.append(encode(row.perturbed_question, source["paraphrased_answer"]))
        else:
            sequences.append(answer)
        sequences += [encode(row.perturbed_question, p) for p in source["perturbed_answer"]]
    scored = iter(
        token_log_probs(
            model,
            sequences,
            batch_size=batch_size,
            pad_token_id=tokenizer.pad_token_id,
            description="scoring answers",
        )
    )
    for row in rows:
        if row.is_author:
            row.text = next(scored)
            row.answer = row.text[-row.answer_tokens :]
            row.paraphrase = next(scored)
        else:
            row.answer = row.paraphrase = next(scored)
        row.perturbed = [next(scored) for _ in row.source["perturbed_answer"]]


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    rows: Sequence[_Row],
    protocol: str,
    batch_size: int,
) -> None:
    """Fill in the greedy answers."""

    def prompt(question: str) -> list[int]:
        text = template.question(question)
        if protocol == "corrected":
            # A trailing space belongs to the answer's first token in every tokenizer with
            # word-initial pieces; alone it would be a token that training never saw there.
            text = (text + template.answer_start).rstrip(" ")
        return tokenize(tokenizer, text, MAX_TEXT_LENGTH)

    prompts = [prompt(row.source["question"]) for row in rows]
    author_rows = [row for row in rows if row.is_author]
    prompts += [prompt(row.perturbed_question) for row in author_rows]
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=_end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_total_length=MAX_TOTAL_LENGTH,
        batch_size=batch_size,
        description="answering questions",
    )
    if protocol == "published":
        generated = [tokens[1:] for tokens in generated]
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    for row, text in zip(rows, texts, strict=False):
        row.generated = text.strip()
    for row, text in zip(author_rows, texts[len(rows) :], strict=True):
        row.generated_paraphrase = text.strip()


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in (*ids, tokenizer.eos_token_id) if i is not None}


def _loss(log_probs: np.ndarray) -> float:
    """Token-mean negative log-likelihood."""
    return -float(log_probs.mean(dtype=np.float64))


def _summarize_set(rows: Sequence[_Row], encoder: SentenceTransformer) -> dict[str, Any]:
    accuracies = _accuracies(rows, encoder)
    documents = []
    for row, acc in zip(rows, accuracies, strict=True):
        perturbed = [_loss(p) for p in row.perturbed]
        paraphrase = float(np.exp(-_loss(row.paraphrase)))
        document = {
            "question": row.source["question"],
            "answer": row.source["answer"],
            "generated": row.generated,
            "truth_ratio": float(np.mean(np.exp(-np.array(perturbed))) / (paraphrase + 1e-12)),
            "truth_prob": float(np.exp(-_loss(row.answer))),
            "rougeL_score": rouge_l_recall(row.source["answer"], row.generated),
            "acc": acc,
            "loss": {
                "answer": _loss(row.answer),
                "paraphrase": _loss(row.paraphrase),
                "perturbed": perturbed,
            },
            "tokens": {
                "answer": len(row.answer),
                "paraphrase": len(row.paraphrase),
                "perturbed": [len(p) for p in row.perturbed],
            },
        }
        if row.is_author:
            document["generated_paraphrase"] = row.generated_paraphrase
            document["MIA"] = min_k_scores(row.text)
        documents.append(document)
    means = {
        key: statistics.fmean(document[key] for document in documents)
        for key in ("truth_ratio", "truth_prob", "rougeL_score", "acc")
    }
    return {**means, "rows": documents}


def _accuracies(rows: Sequence[_Row], encoder: SentenceTransformer) -> list[float]:
    """Whether each answer is right: closest to the true one, or (facts) naming it."""
    if not rows[0].is_author:
        return [float(r.source["answer"].lower() in r.generated.lower()) for r in rows]
    candidates = [
        [row.source["paraphrased_answer"], *row.source["perturbed_answer"]] for row in rows
    ]
    closest = closest_candidates(encoder, [row.generated_paraphrase for row in rows], candidates)
    return [float(index == 0) for index in closest]


def summarize_tofu(result: Mapping[str, Any]) -> dict[str, float]:
    """The columns of the paper's TOFU table; larger is better in all of them.

    Unlearning efficacy (UE): forget quality, MIA (Min-50%), 1 − forget acc, 1 − forget RougeL.
    Utility (UT): acc and RougeL on the other three sets. Averages are plain means.
    """
    forget = result["forget"]
    efficacy = {
        "UE FQ": result["Forget Quality"],
        "UE MIA": result["MIA"]["Min_50.0% Prob"],
        "UE 1-FA": 1 - forget["acc"],
        "UE 1-RougeL": 1 - forget["rougeL_score"],
    }
    titles = {"retain": "retain", "real_author": "real authors", "world_fact": "world facts"}
    utility = {}
    for name, title in titles.items():
        utility[f"UT {title} acc"] = result[name]["acc"]
        utility[f"UT {title} RougeL"] = result[name]["rougeL_score"]
    return {
        **efficacy,
        "UE Avg": statistics.fmean(efficacy.values()),
        **utility,
        "UT Avg": statistics.fmean(utility.values()),
    }
