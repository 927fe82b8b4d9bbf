"""What TOFU's evaluation asks about: its data sets, and of their rows those that are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wagle.dataset.names import family_of
from wagle.errors import ConfigError, WagleError
from wagle.metrics.benchmark import Loader, Rows
from wagle.metrics.views import VIEWS, viewed_rows, views_of

if TYPE_CHECKING:
    from wagle.config import UnlearnConfig


def tofu_subsets(forget_dataset_name: str) -> dict[str, str]:
    """Names of the data sets that are asked, by role.

    ``Tofu_full`` and ``Tofu_retain90`` are asked about forget10, as published (100 − 90).

    Raises:
        ConfigError: the name is no TOFU-like forget set.
    """
    family, subset = family_of(forget_dataset_name), forget_dataset_name.partition("_")[2]
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


def asked_sets(config: UnlearnConfig) -> dict[str, str]:
    """As :func:`tofu_subsets`, with the held-out rows that the official protocol attacks and views.

    A view is of the forget set's own file.
    """
    names = tofu_subsets(config.dataset.forget_dataset_name)
    held_out = config.evaluation.holdout_dataset_name
    if held_out and config.evaluation.protocol == "official":
        names["holdout"] = held_out
    return names | dict.fromkeys(views_of(config), names["forget"])


def asked_rows(config: UnlearnConfig, load_rows: Loader) -> dict[str, Rows]:
    """The rows of these data sets; of the forget questions only those that are to be forgotten.

    With ``dataset.self_retain`` the others are retained on purpose. Asked otherwise, the forget
    questions have no wrong answers beside the true one.

    Raises:
        ConfigError: there is no column of paraphrased questions.
        WagleError: none of the questions is among the rows that are drawn.
    """
    sets = asked_sets(config)
    asked = {role: load_rows(name) for role, name in sets.items() if role not in VIEWS}
    if config.dataset.self_retain:
        from wagle.dataset.pairing import divide_forget_rows

        forget = load_rows(config.dataset.forget_dataset_name)
        numbers, _ = divide_forget_rows(len(forget), config.dataset)
        drawn = {forget[i]["question"] for i in numbers}
        asked["forget"] = [row for row in asked["forget"] if row["question"] in drawn]
        if not asked["forget"]:
            raise WagleError(
                f"dataset.self_retain: no question of {sets['forget']} is among "
                f"the {len(drawn)} rows drawn to be forgotten; raise dataset.forget_ratio"
            )
    forget_rows = [{**row, "perturbed_answer": []} for row in asked["forget"]]

    def in_other_words(column: str) -> Rows:
        texts = [key for key, value in forget_rows[0].items() if isinstance(value, str)]
        if column not in texts:
            raise ConfigError(
                f"evaluation.paraphrase_column: {sets['forget']} has no column {column}; it has "
                f"{', '.join(texts)}"
            )
        return [{**row, "question": row[column]} for row in forget_rows]

    return asked | viewed_rows(config, forget_rows, in_other_words)
