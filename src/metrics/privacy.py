"""Privacy against held-out rows: do the rows to forget look like rows that nobody learned?

Attacks score each row, the larger the less it looks like training data. With the rows to forget as
class 0 and held-out rows as class 1, an AUC is 1 where every forgotten row is still recognised, 0.5
where none is, and near 0 where they stand out as *less* likely than rows that were never seen: the
orientation of open-unlearning (arXiv 2506.12618). For example, losses of 0.1 and 0.2 of the rows to
forget and 0.2 and 0.9 of held-out rows: of four pairs held-out is larger in three, equal in one,
and the AUC 0.875. Attacks against retained rows (``UE MIA``, ``MIA …``) have the other orientation.
"""

from __future__ import annotations

from collections.abc import Mapping

from wagle.metrics.averages import Number, within
from wagle.metrics.benchmark import Metric, Range

HOLDOUT_ATTACKS = ("loss", "zlib", "min_k++")
"""What runs against held-out rows beside Min-k%, asked for or not."""
MIN_K_PERCENT = (10, 20, 30, 40, 50, 60)


def min_k_name(percent: int) -> str:
    """The score of Min-k%, by its name in documents."""
    return f"Min_{percent:.1f}% Prob"


MIDDLE = min_k_name(40)
"""The attack that ``privleak`` is of."""
RECOGNITION = Range(
    0.05,
    0.95,
    below="unlearned too much: the rows stand out as unlikely, which gives away what was unlearned",
    above="not unlearned: nearly every row is still recognised",
)
STANDING_OUT = Range(0.05, 0.95, below=RECOGNITION.above, above=RECOGNITION.below)
"""The same of the other orientation."""
AGAINST_RETAINED = Range(
    0.05,
    0.95,
    below="nearly every row to forget looks more like training data than those to retain do",
    above=(
        "nearly every row stands out against those to retain, as it does to a model that never "
        "knew it, and to one that unlearned too much: a retain-only model's number tells which"
    ),
)
"""Of attacks against retained rows, which the model knows: 1 is where forgetting should lead."""

_TITLES = {
    "LOSS": ("loss", "the loss"),
    "zlib": ("zlib", "the loss by compressed length"),
    "Min_40.0% Prob": ("min_k", "Min-40 %"),
    "Min++_40.0% Prob": ("min_k_plus_plus", "Min-40 %++"),
    "reference": ("reference", "the loss beyond a reference model's"),
    "gradnorm": ("gradnorm", "the length of gradients"),
}
AUCS = {
    column: Metric(
        f"mia_{name}",
        f"Membership attack by {what}: how well the rows to forget are still recognised among rows "
        "that it never saw (area under the curve). 0.5 is not at all, 1 always.",
        0,
        group="privacy",
        title=f"mia_{name}",
        largest=1,
        usual=RECOGNITION,
    )
    for column, (name, what) in _TITLES.items()
}
"""By the attack's column."""
OTHER_AUC = Metric(
    "mia_{}",
    "Membership attack {0}: how well the rows to forget are still recognised among rows that it "
    "never saw (area under the curve). 0.5 is not at all, 1 always.",
    0,
    largest=1,
    usual=RECOGNITION,
)
SIMILARITIES = {
    column: Metric(
        f"sMIA {_TITLES[column][0]}",
        f"How close the attack by {_TITLES[column][1]} comes to what it finds of a model that "
        "never saw the rows to forget: 1 is equal.",
        group="privacy",
        title=f"sMIA {_TITLES[column][0]}",
        largest=1,
    )
    for column in ("LOSS", "zlib", "Min_40.0% Prob", "Min++_40.0% Prob")
}
PRIVLEAK = Metric(
    "privleak",
    "Leakage by Min-40 %, in per cent of a model that never saw the rows to forget: below 0 they "
    "are still recognised, above 0 they stand out, 0 is equal.",
    0,
    group="privacy",
    title="privleak",
    digits=1,
)
PRIVLEAK_OF_HALF = Metric(
    "privleak against 0.5",
    "As privleak, against an AUC of 0.5 instead of a retain-only model's, which was not given: not "
    "comparable with privleak of others.",
    0,
    group="privacy",
    title="privleak against 0.5",
    digits=1,
    largest=100,
)
PRIVACY = (*AUCS.values(), *SIMILARITIES.values(), PRIVLEAK, PRIVLEAK_OF_HALF, OTHER_AUC)
_EPSILON = 1e-10


def similarity(auc: Number, retained: float) -> Number:
    """sMIA: 1 − |AUC − AUC′| / AUC′, within 0 and 1, with AUC′ of the retain-only model.

    Where that model's AUC is 0, only the same AUC is similar.
    """
    if not retained:
        return 1.0 * (auc == 0)
    return within(1 - abs(auc - retained) / retained, 0.0, 1.0)


def privleak(auc: Number, retained: float) -> Number:
    """100 · ((1 − AUC) − (1 − AUC′)) / (1 − AUC′ + 1e-10), with AUC′ of the retain-only model.

    PrivLeak of Shi et al. 2024 (arXiv 2407.06460), whose A is 1 − AUC, as open-unlearning has it.
    """
    return 100 * (retained - auc) / (1 - retained + _EPSILON)


def privacy_numbers(
    aucs: Mapping[str, Number], retained: Mapping[str, float] | None = None
) -> dict[Metric, Number]:
    """AUCs, and how they compare with those of the retain-only model.

    Args:
        aucs: of the attacks against held-out rows, by column.
        retained: the same of the retain-only model, as far as they are known.
    """
    retained = retained or {}
    others = [column for column in aucs if column not in AUCS and not column.startswith("Min")]
    numbers = {metric: aucs[column] for column, metric in AUCS.items() if column in aucs}
    numbers |= {OTHER_AUC.of(column): aucs[column] for column in others}
    for column, metric in SIMILARITIES.items():
        if column in aucs and column in retained:
            numbers[metric] = similarity(aucs[column], retained[column])
    if MIDDLE in aucs:
        compared = PRIVLEAK if MIDDLE in retained else PRIVLEAK_OF_HALF
        numbers[compared] = privleak(aucs[MIDDLE], retained.get(MIDDLE, 0.5))
    return numbers
