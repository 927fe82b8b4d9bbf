"""Configuration: every key once, and strict parsing.

The command line beats configuration files, which beat defaults. Sections, parameters and checks are
those of fastargs; its gaps are closed here: unknown keys are errors that name the nearest known
one, everything that is wrong is reported at once, environment variables play no part, and booleans
mean what they say. Nothing heavy is imported, so that mistakes show at once.

``keys`` declares, ``values`` checks a value, ``reading`` reads files and the command line,
``checking`` and ``rules`` find what is wrong, ``resolved`` holds the outcome, ``help`` shows it.
"""

from wagle.config.declare import REQUIRED, Key
from wagle.config.keys import DataSection
from wagle.config.mask_names import mask_ratio, plain_number
from wagle.config.resolved import (
    FINE_TUNE_KEYS,
    UNLEARN_KEYS,
    AttackConfig,
    CompareConfig,
    Config,
    DepthConfig,
    FineTuneConfig,
    PlantConfig,
    UnlearnConfig,
    load_config,
)
from wagle.config.values import read_date

__all__ = [
    "FINE_TUNE_KEYS",
    "REQUIRED",
    "UNLEARN_KEYS",
    "AttackConfig",
    "CompareConfig",
    "Config",
    "DataSection",
    "DepthConfig",
    "FineTuneConfig",
    "Key",
    "PlantConfig",
    "UnlearnConfig",
    "load_config",
    "mask_ratio",
    "plain_number",
    "read_date",
]
