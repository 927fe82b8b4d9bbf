"""TOFU (Maini et al. 2024, arXiv 2401.06121), evaluated as in the WAGLE paper."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import ks_2samp
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.catalogue import ATTACKS
from wagle.dataset.encoding import IGNORED, Encoded, encode_answer
from wagle.dataset.templates import Template
from wagle.errors import WagleError
from wagle.metrics.generation import answer_questions
from wagle.metrics.likelihood import TokenScores, score_tokens
from wagle.metrics.membership import attack_aucs, attack_scores
from wagle.metrics.memorization import exact_memorization, extraction_strength
from wagle.metrics.sentence import closest_candidates
from wagle.metrics.text import rouge_l_recall

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_TOTAL_LENGTH = 200  # tokens of prompt and greedy answer together
MAX_TEXT_LENGTH = 512
AUTHOR_SETS = ("forget", "retain")
FACT_SETS = ("real_author", "world_fact")
MEANS = (
    *("truth_ratio", "truth_prob", "rougeL_score", "acc"),
    *("exact_memorization", "extraction_strength"),
)


def check_rows(rows: Sequence[Mapping[str, Any]], data_set: str) -> None:
    """Whether every row has answers that can be scored.

    Raises:
        WagleError: a text is blank or there is no wrong answer; the message names the row.
    """
    for number, row in enumerate(rows, start=1):
        texts = {key: row[key] for key in _TEXTS if key in row}
        texts |= {f"perturbed_answer {i}": t for i, t in enumerate(row["perturbed_answer"], 1)}
        blank = [key for key, text in texts.items() if not text.strip()]
        if not row["perturbed_answer"]:
            blank.append("perturbed_answer")
        if blank:
            raise WagleError(
                f"{data_set}, row {number}: {', '.join(blank)} is empty, and cannot be scored; "
                "give it a text, or leave the row out"
            )


_TEXTS = ("question", "answer", "paraphrased_question", "paraphrased_answer")


@dataclass
class _Row:
    """One question and what the model says to it.

    ``answer``, ``paraphrase`` and ``perturbed`` are scores of answer tokens; ``whole`` are those of
    all tokens of ``text``, the question with its answer (of facts, the answer's alone).
    """

    source: Mapping[str, Any]
    is_author: bool
    text: str
    answer: TokenScores | None = None
    whole: TokenScores | None = None
    paraphrase: TokenScores | None = None
    perturbed: list[TokenScores] = field(default_factory=list)
    reference_loss: float | None = None
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
    word_tokenizer: str = "rouge_score",
    limit: int | None = None,
    attacks: Collection[str] = (),
    reference_losses: Callable[[Sequence[str]], Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Evaluate on the sets ``forget``, ``retain``, ``real_author`` and ``world_fact``.

    Args:
        sets: rows with ``question``, ``answer``, ``perturbed_answer`` (a list) and, in the first
            two sets, ``paraphrased_question`` and ``paraphrased_answer``.
        encoder: judges which candidate a generated answer is closest to.
        protocol: ``corrected``: the prompt ends with the answer start and the whole generation
            counts; ``published``: the prompt is the question part alone, and the first generated
            token is lost.
        word_tokenizer: of ROUGE, as in :func:`wagle.metrics.text.rouge_l_recall`.
        limit: the first rows of each set only.
        attacks: membership inference beside Min-k%, as in
            :func:`wagle.metrics.membership.attack_scores`.
        reference_losses: token-mean losses of texts under the reference model, for that attack.

    Returns:
        The content of ``tofu.json``: per set the means of ``MEANS``, and per row these values with
        the generated answers, and the token-mean losses and membership scores that they come from;
        "Forget Quality"; "MIA".
    """

    def text(source: Mapping[str, Any]) -> str:
        return template.question(source["question"]) + template.answer_start + source["answer"]

    rows = {
        name: [_Row(s, name in AUTHOR_SETS, text(s)) for s in list(sets[name])[:limit]]
        for name in (*AUTHOR_SETS, *FACT_SETS)
    }
    everything = [row for group in rows.values() for row in group]
    authors = [row for row in everything if row.is_author]
    standardize = any(ATTACKS[name].standardized for name in attacks)
    _score(model, tokenizer, template, everything, batch_size, standardize)
    if any(ATTACKS[name].reference for name in attacks):
        losses = reference_losses([row.text for row in authors])
        for row, loss in zip(authors, losses, strict=True):
            row.reference_loss = loss
    _generate(model, tokenizer, template, everything, protocol, batch_size)
    result: dict[str, Any] = {"protocol": protocol}
    for name, group in rows.items():
        result[name] = _summarize_set(group, encoder, attacks, word_tokenizer)
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
    standardize: bool,
) -> None:
    """Fill in the scores of tokens."""

    def encode(question: str, answer: str) -> Encoded:
        return encode_answer(
            tokenizer, template, question, answer, max_length=MAX_TEXT_LENGTH, eos=False
        )

    sequences: list[Encoded] = []
    answer_lengths = []
    for row in rows:
        source = row.source
        answer = encode(source["question"], source["answer"])
        answer_lengths.append(sum(label != IGNORED for label in answer.labels))
        if row.is_author:
            # Membership inference reads every token of the text; the answer's are the last of them.
            sequences.append(Encoded(answer.input_ids, list(answer.input_ids)))
            sequences.append(encode(row.perturbed_question, source["paraphrased_answer"]))
        else:
            sequences.append(answer)
        sequences += [encode(row.perturbed_question, p) for p in source["perturbed_answer"]]
    scored = iter(
        score_tokens(
            model,
            sequences,
            batch_size=batch_size,
            pad_token_id=tokenizer.pad_token_id,
            description="scoring answers",
            standardize=standardize,
        )
    )
    for row, answer_length in zip(rows, answer_lengths, strict=True):
        row.whole = next(scored)
        row.answer = row.whole.last(answer_length)
        row.paraphrase = next(scored) if row.is_author else row.answer
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
    authors = [row for row in rows if row.is_author]
    texts = answer_questions(
        model,
        tokenizer,
        template,
        [row.source["question"] for row in rows] + [row.perturbed_question for row in authors],
        max_total_length=MAX_TOTAL_LENGTH,
        batch_size=batch_size,
        description="answering questions",
        published=protocol == "published",
    )
    for row, text in zip(rows, texts, strict=False):
        row.generated = text
    for row, text in zip(authors, texts[len(rows) :], strict=True):
        row.generated_paraphrase = text


def mean_loss(tokens: TokenScores) -> float:
    """Token-mean negative log-likelihood."""
    return -float(tokens.log_probs.mean(dtype=np.float64))


def _summarize_set(
    rows: Sequence[_Row],
    encoder: SentenceTransformer,
    attacks: Collection[str],
    word_tokenizer: str,
) -> dict[str, Any]:
    accuracies = _accuracies(rows, encoder)
    documents = []
    for row, acc in zip(rows, accuracies, strict=True):
        perturbed = [mean_loss(p) for p in row.perturbed]
        paraphrase = float(np.exp(-mean_loss(row.paraphrase)))
        document = {
            "question": row.source["question"],
            "answer": row.source["answer"],
            "generated": row.generated,
            "truth_ratio": float(np.mean(np.exp(-np.array(perturbed))) / (paraphrase + 1e-12)),
            "truth_prob": float(np.exp(-mean_loss(row.answer))),
            "rougeL_score": rouge_l_recall(row.source["answer"], row.generated, word_tokenizer),
            "acc": acc,
            "exact_memorization": exact_memorization(row.answer.is_greedy),
            "extraction_strength": extraction_strength(row.answer.is_greedy),
            "loss": {
                "answer": mean_loss(row.answer),
                "paraphrase": mean_loss(row.paraphrase),
                "perturbed": perturbed,
            },
            "tokens": {
                "answer": len(row.answer.log_probs),
                "paraphrase": len(row.paraphrase.log_probs),
                "perturbed": [len(p.log_probs) for p in row.perturbed],
            },
        }
        if row.is_author:
            document["paraphrased_question"] = row.perturbed_question
            document["generated_paraphrase"] = row.generated_paraphrase
            document["MIA"] = attack_scores(row.text, row.whole, attacks, row.reference_loss)
        documents.append(document)
    means = {key: statistics.fmean(document[key] for document in documents) for key in MEANS}
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
