"""Unlearning objectives: the loss of each method, a class each.

To add one: a dataclass that derives from :class:`Objective`, and a line in :mod:`wagle.catalogue`.
"""

from wagle.unlearn.objectives.base import Objective, ReferenceModel, no_reference, total

__all__ = ["Objective", "ReferenceModel", "no_reference", "total"]
