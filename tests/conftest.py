"""What holds for every test; tiny models and other fixtures are in ``tiny``."""

from __future__ import annotations

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub must fail at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait without sleeping make a busy machine ten times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background, and nohup, have these ignored; programs that the
# tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config):
    """The process that only hands out tests need not import torch, which takes five seconds."""
    if config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("tests.tiny")


def pytest_collection_modifyitems(items):
    """Slow tests come first: at the end one process would wait for the other to finish one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session):
    """Garbage is looked for seldom, and not in what has been imported: each takes a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
