"""Unlearning objectives by name.

To add one: a dataclass that derives from :class:`Objective`, and a line here.
"""

from src.unlearn.objectives.base import Objective, ReferenceModel
from src.unlearn.objectives.published import (
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
}

__all__ = ["OBJECTIVES", "Objective", "ReferenceModel"]
