"""TOFU (Maini et al. 2024, arXiv 2401.06121), evaluated as in the WAGLE paper."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import ks_2samp
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.catalogue import ATTACKS
from wagle.dataset.encoding import IGNORED, Encoded, encode_answer
from wagle.dataset.templates import Template
from wagle.errors import WagleError
from wagle.metrics.generation import answer_questions
from wagle.metrics.gradient_norms import gradient_norms
from wagle.metrics.likelihood import TokenScores, score_tokens
from wagle.metrics.membership import attack_aucs, attack_scores
from wagle.metrics.memorization import exact_memorization, extraction_strength
from wagle.metrics.sentence import closest_candidates
from wagle.metrics.text import rouge_l_recall
from wagle.metrics.tofu_results import (
    AUTHOR_SETS,
    Keep,
    PerAnswer,
    Sources,
    TofuResults,
    TofuRow,
    TofuSet,
    answers_of,
    keep_nothing,
    measure_in_stages,
)
from wagle.metrics.views import VIEWS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_TOTAL_LENGTH = 200  # tokens of prompt and greedy answer together
MAX_TEXT_LENGTH = 512


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


def evaluate_tofu(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    sets: Sources,
    *,
    encoder: SentenceTransformer,
    protocol: str,
    batch_size: int,
    word_tokenizer: str = "rouge_score",
    attacks: Collection[str] = (),
    reference_losses: Callable[[Sequence[str]], Sequence[float]] | None = None,
    keep: Keep = keep_nothing,
) -> TofuResults:
    """Evaluate on the sets ``forget``, ``retain``, ``real_author`` and ``world_fact``.

    The model reads the rows of all sets together: batches are full also where sets are small.

    Args:
        sets: rows with ``question``, ``answer``, ``perturbed_answer`` (a list) and, in the first
            two sets, ``paraphrased_question`` and ``paraphrased_answer``.
        encoder: judges which candidate a generated answer is closest to.
        protocol: ``corrected``: the prompt ends with the answer start and the whole generation
            counts; ``published``: the prompt is the question part alone, and the first generated
            token is lost.
        word_tokenizer: of ROUGE, as in :func:`wagle.metrics.text.rouge_l_recall`.
        attacks: membership inference beside Min-k%, as in
            :func:`wagle.metrics.membership.attack_scores`.
        reference_losses: token-mean losses of texts under the reference model, for that attack.
        keep: as of :func:`wagle.metrics.tofu_results.measure_in_stages`.
    """

    def score() -> list[TofuRow]:
        asked = [
            _ask(tokenizer, template, row, role) for role, group in sets.items() for row in group
        ]
        return _score(model, tokenizer, asked, batch_size, attacks, reference_losses)

    judged = measure_in_stages(
        sets,
        keep,
        score=score,
        answer=lambda rows: _answer(model, tokenizer, template, rows, batch_size, protocol),
        judge=lambda role, rows: _judge(rows, sets[role], role, encoder, word_tokenizer),
    )
    authors = [judged[role] for role in AUTHOR_SETS]
    truth_ratios = [rows.all(lambda row: row.truth_ratio) for rows in authors]
    return TofuResults(
        judged,
        protocol,
        word_tokenizer=word_tokenizer,
        forget_quality=float(ks_2samp(*truth_ratios).pvalue),
        mia=attack_aucs(*(rows.all(lambda row: row.attacks) for rows in authors)),
    )


@dataclass(frozen=True)
class _Asked:
    """What is read of one row of data.

    Attributes:
        sequences: the answers with their questions; of authors' true answers every token is
            labelled, since membership inference reads the whole text.
        answer_tokens: how many tokens of the true answer's sequence, the last ones, are its own.
        other_question: the question in other words; of facts, which have none, the question.
    """

    source: Mapping[str, Any]
    is_author: bool
    text: str
    sequences: PerAnswer[Encoded]
    answer_tokens: int
    other_question: str


def _ask(
    tokenizer: PreTrainedTokenizerBase, template: Template, source: Mapping[str, Any], role: str
) -> _Asked:
    encode = partial(encode_answer, tokenizer, template, max_length=MAX_TEXT_LENGTH, eos=False)
    question, is_author = source["question"], role in AUTHOR_SETS
    other_question = source["paraphrased_question"] if is_author else question
    answer = encode(question, source["answer"])
    answer_tokens = sum(label != IGNORED for label in answer.labels)
    if is_author:
        answer = Encoded(answer.input_ids, list(answer.input_ids))
    answers = answers_of(source, role)
    return _Asked(
        source,
        is_author,
        template.question(question) + template.answer_start + source["answer"],
        PerAnswer(
            answer,
            encode(other_question, answers.paraphrase),
            tuple(encode(other_question, text) for text in answers.perturbed),
        ),
        answer_tokens,
        other_question,
    )


def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[_Asked],
    batch_size: int,
    attacks: Collection[str],
    reference_losses: Callable[[Sequence[str]], Sequence[float]] | None,
) -> list[TofuRow]:
    """Rows with what the likelihoods of their answers tell."""
    reference: dict[str, float] = {}
    if reference_losses and any(ATTACKS[name].reference for name in attacks):
        texts = [row.text for row in asked if row.is_author]
        reference = dict(zip(texts, reference_losses(texts), strict=True))
    norms: dict[str, float] = {}
    if any(ATTACKS[name].gradients for name in attacks):
        authors = {row.text: row.sequences.answer for row in asked if row.is_author}
        found = gradient_norms(model, [*authors.values()], pad_token_id=tokenizer.pad_token_id)
        norms = dict(zip(authors, found, strict=True))
    scored = score_answers(
        model,
        tokenizer,
        [row.sequences for row in asked],
        batch_size=batch_size,
        standardize=any(ATTACKS[name].standardized for name in attacks),
    )
    return [
        _scored_row(row, scores, attacks, reference.get(row.text), norms.get(row.text))
        for row, scores in zip(asked, scored, strict=True)
    ]


def _scored_row(
    asked: _Asked,
    scores: PerAnswer[TokenScores],
    attacks: Collection[str],
    reference_loss: float | None,
    gradient_norm: float | None,
) -> TofuRow:
    whole, answer = scores.answer, scores.answer.last(asked.answer_tokens)
    scores = replace(scores, answer=answer)
    loss = scores.map(attrgetter("loss"))
    row = TofuRow(
        question=asked.source["question"],
        answer=asked.source["answer"],
        truth_ratio=truth_ratio(loss) if loss.perturbed else None,
        exact_memorization=exact_memorization(answer.is_greedy),
        extraction_strength=extraction_strength(answer.is_greedy),
        loss=loss,
        tokens=scores.map(len),
    )
    if not asked.is_author:
        return row
    found = attack_scores(asked.text, whole, attacks, reference_loss, gradient_norm=gradient_norm)
    return replace(row, paraphrased_question=asked.other_question, attacks=found)


def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[PerAnswer[Encoded]],
    *,
    batch_size: int,
    standardize: bool = False,
) -> list[PerAnswer[TokenScores]]:
    """How likely the labelled tokens of each row's answers are."""
    scored = iter(
        score_tokens(
            model,
            [s for row in sequences for s in (row.answer, row.paraphrase, *row.perturbed)],
            batch_size=batch_size,
            pad_token_id=tokenizer.pad_token_id,
            description="scoring answers",
            standardize=standardize,
        )
    )
    return [row.map(lambda _: next(scored)) for row in sequences]


def truth_ratio(loss: PerAnswer[float]) -> float:
    """The paper's: mean probability of the wrong answers over that of the paraphrased true one."""
    paraphrase = float(np.exp(-loss.paraphrase))
    return float(np.mean(np.exp(-np.array(loss.perturbed))) / (paraphrase + 1e-12))


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    rows: TofuSet,
    batch_size: int,
    protocol: str,
) -> list[TofuRow]:
    """The rows with greedy answers, of authors also to the question in other words."""
    questions = rows.all(lambda row: row.question)
    texts = answer_questions(
        model,
        tokenizer,
        template,
        [*questions, *rows.known(lambda row: row.paraphrased_question)],
        max_total_length=MAX_TOTAL_LENGTH,
        batch_size=batch_size,
        description="answering questions",
        published=protocol == "published",
    )
    to_others = iter(texts[len(questions) :])
    return [
        replace(
            row,
            generated=text,
            generated_paraphrase=None if row.paraphrased_question is None else next(to_others),
        )
        for row, text in zip(rows.rows, texts, strict=False)
    ]


def _judge(
    rows: TofuSet,
    sources: Sequence[Mapping[str, Any]],
    role: str,
    encoder: SentenceTransformer,
    word_tokenizer: str,
) -> TofuSet:
    """The set with whether its answers are right, and their ROUGE.

    Right is an answer that is closest to the true one, or (facts) names it. Of questions that are
    asked otherwise that is left open.
    """
    true, generated = rows.all(lambda row: row.answer), rows.all(lambda row: row.generated)
    if role in AUTHOR_SETS:
        answers = [answers_of(source, role) for source in sources]
        closest = closest_candidates(
            encoder,
            rows.all(lambda row: row.generated_paraphrase),
            [[of.paraphrase, *of.perturbed] for of in answers],
        )
        right = [index == 0 for index in closest]
    else:
        right = [
            answer.lower() in text.lower() for answer, text in zip(true, generated, strict=True)
        ]
    judged = role not in VIEWS
    return TofuSet(
        tuple(
            replace(
                row,
                rouge=rouge_l_recall(answer, text, word_tokenizer),
                acc=float(is_right) if judged else None,
            )
            for row, answer, text, is_right in zip(rows.rows, true, generated, right, strict=True)
        )
    )
