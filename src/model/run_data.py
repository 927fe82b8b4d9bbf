"""The rows of an unlearning run: forgotten, retained, asked about; and what is refused of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wagle.catalogue import SCORES
from wagle.config import UnlearnConfig
from wagle.dataset.checking import NamedRows, Rows, check_questions, check_rows
from wagle.dataset.names import is_own
from wagle.dataset.pairing import REFUSAL, Encoder, UnlearnDataset, count_shared, divide_forget_rows
from wagle.dataset.reading import ColumnNames
from wagle.dataset.refusals import load_refusals
from wagle.dataset.sources import (
    cut_into_pieces,
    find_source,
    load_rows,
    refusal_encoder,
    row_encoder,
)
from wagle.dataset.templates import Template
from wagle.model.environment import rows_fingerprint
from wagle.model.evaluation_context import asked_sets
from wagle.model.reading import learned_positions
from wagle.terminal import say

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RunData:
    """The rows that a configuration names.

    Attributes:
        fingerprints: of the rows to be forgotten and to be retained, after :meth:`pairs`.
        evaluated_so_far: what :meth:`evaluated` has found, where it has been called.
    """

    def __init__(self, config: UnlearnConfig) -> None:
        self.config = config
        self.fingerprints: dict[str, str] = {}
        self.evaluated_so_far: dict[str, str] = {}
        self._read: dict[
            tuple[str, str, str | None], Dataset
        ] = {}  # checks, training and evaluation ask anew

    def rows(
        self, name: str, role: Literal["forget", "retain"] = "forget", question: str | None = None
    ) -> Dataset:
        """The rows of a data set by name, read once in a run.

        Args:
            question: column of the questions, in place of ``dataset.question_column``.

        Raises:
            WagleError: they cannot be had, or are not as they must be.
        """
        if (name, role, question) not in self._read:
            columns = ColumnNames.of(self.config.dataset)
            data_dir = self.config.dataset.data_dir
            self._read[name, role, question] = load_rows(
                name,
                data_dir=Path(data_dir) if data_dir else None,
                cache_dir=Path(self.config.overall.cache_dir),
                role=role,
                columns=replace(columns, question=question) if question else columns,
            )
        return self._read[name, role, question]

    def forget_rows(self) -> Dataset:
        """The rows of the forget set that are drawn."""
        rows = self.rows(self.config.dataset.forget_dataset_name)
        drawn, _ = divide_forget_rows(len(rows), self.config.dataset)
        return rows.select(drawn)

    def evaluated(self) -> dict[str, str]:
        """Fingerprints of the data sets that the evaluation asks about, by name."""
        if not self.evaluated_so_far:
            sets = asked_sets(self.config)
            self.evaluated_so_far = {n: rows_fingerprint(self.rows(n)) for n in sets.values()}
            name = sets.get("paraphrased")
            if name is not None and is_own(name):  # others have all their columns in one table
                column = self.config.evaluation.paraphrase_column
                rows = self.rows(name, question=column)
                self.evaluated_so_far[f"{name}, {column}"] = rows_fingerprint(rows)
        return self.evaluated_so_far

    def pairs(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        views: Sequence[str],
    ) -> UnlearnDataset:
        """Draw the forget examples and pair them with retain examples.

        Args:
            model: whose learned positions bound a row's length.
            views: those that the objective reads.

        Raises:
            ConfigError, WagleError: nothing is left to be retained, or a row cannot be trained on.
        """
        forget_name = self.config.dataset.forget_dataset_name
        retain_name = self.config.dataset.retain_dataset_name
        all_forget = cut_into_pieces(forget_name, self.rows(forget_name), tokenizer)
        drawn, left = divide_forget_rows(len(all_forget), self.config.dataset)
        whole = self.config.dataset.self_retain
        if whole:
            retain_name = forget_name
            retain = all_forget.select(left)
        else:
            retain = cut_into_pieces(retain_name, self.rows(retain_name, "retain"), tokenizer)
        forget = all_forget.select(drawn)
        if shared := count_shared(forget, retain):
            say(
                f"warning: {shared} of the {len(forget)} rows to be forgotten are to be retained "
                "as well; give sets without common rows, such as Tofu_forget10 and Tofu_retain90"
            )
        encode_forget = row_encoder(forget_name, tokenizer, template)
        encode_retain = row_encoder(retain_name, tokenizer, template)
        self._check_views(views, (forget_name, forget), (retain_name, retain))
        _check_rows(model, forget_name, all_forget, encode_forget, None if whole else drawn)
        if not whole:
            _check_rows(model, retain_name, retain, encode_retain)
        self.fingerprints["forget"] = rows_fingerprint(forget)
        self.fingerprints["retain"] = rows_fingerprint(retain)
        return UnlearnDataset(
            forget,
            retain,
            encode_forget=encode_forget,
            encode_retain=encode_retain,
            encode_refusal=refusal_encoder(forget_name, tokenizer, template),
            refusals=load_refusals(forget_name),
            views=views,
            seed=self.config.overall.seed,
        )

    def _check_views(self, views: Sequence[str], forget: NamedRows, retain: NamedRows) -> None:
        """Refuse running text where the method, or the mask to be made, needs questions."""
        check_questions(self.config.unlearn.unlearn_method, views, forget, retain)
        path, score_type = self.config.unlearn.mask_path, self.config.unlearn.score_type
        makes_mask = path and not Path(path).exists()
        if makes_mask and "refusal" in SCORES[score_type].gradients:
            check_questions(score_type, (REFUSAL,), forget, retain)


def _check_rows(
    model: PreTrainedModel,
    name: str,
    rows: Rows,
    encode: Encoder,
    numbers: Sequence[int] | None = None,
) -> None:
    positions = learned_positions(model, find_source(name).max_length)
    check_rows(name, rows, encode, numbers, positions)
