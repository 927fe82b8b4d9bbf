"""Failures that the user can act on, and requests to end."""

import signal


class WagleError(Exception):
    """A failure whose message is all the user needs: printed without a traceback, exit status 1."""


class ConfigError(WagleError):
    """The configuration is wrong: exit status 2, nothing has run."""


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C's has asked the program to end.

    Args:
        kind: the signal.
    """

    def __init__(self, kind: signal.Signals) -> None:
        super().__init__(kind)  # what another process is told of it by
        self.kind = kind

    def __str__(self) -> str:
        return self.kind.name
