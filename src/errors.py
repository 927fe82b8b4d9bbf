"""Failures that the user can act on."""


class WagleError(Exception):
    """A failure whose message is all the user needs: printed without a traceback, exit status 1."""


class ConfigError(WagleError):
    """The configuration is wrong: exit status 2, nothing has run."""
