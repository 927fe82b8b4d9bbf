"""The programs."""

import os
import sys

if sys.stderr is None or not sys.stderr.isatty():
    # Libraries draw their bars into log files otherwise; they read these when they are imported,
    # which is after this package.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
