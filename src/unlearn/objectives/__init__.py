"""Unlearning objectives by name.

To add one: a dataclass that derives from :class:`Objective`, and a line here.
"""

from wagle.unlearn.objectives.base import Objective, ReferenceModel, total
from wagle.unlearn.objectives.dpo import DirectPreference
from wagle.unlearn.objectives.published import (
    Divergence,
    FineTuning,
    GradientAscent,
    GradientAscentKL,
    GradientDifference,
    L1Sparse,
    NegativePreference,
    PreferenceOptimization,
    RandomLabel,
    Refusal,
    RefusalKL,
)
from wagle.unlearn.objectives.rmu import Misdirection
from wagle.unlearn.objectives.simnpo import SimpleNegativePreference

OBJECTIVES: dict[str, type[Objective]] = {
    "FT": FineTuning,
    "l1_sparse": L1Sparse,
    "GA": GradientAscent,
    "GA+FT": GradientDifference,
    "GA+KL": GradientAscentKL,
    "NPO+FT": NegativePreference,
    "CL": Refusal,
    "CL+FT": PreferenceOptimization,
    "CL+KL": RefusalKL,
    "RL": RandomLabel,
    "KL": Divergence,
    "SimNPO+FT": SimpleNegativePreference,
    "DPO+FT": DirectPreference,
    "RMU": Misdirection,
}

__all__ = ["OBJECTIVES", "Objective", "ReferenceModel", "total"]
