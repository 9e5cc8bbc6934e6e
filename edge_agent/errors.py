"""Errors, as a tree ordered by what the program does next.

    EdgeAgentError
    |-- Retry            wait and try the same thing again, counted
    |   |-- SourceError      a camera that cannot be opened or read now
    |   |   `-- EndOfStream      the source has truthfully ended; only a reopen can bring more
    |   `-- BrokerError      a broker that cannot be reached or refuses
    |-- Rebuild          drop the object and make a new one
    |   `-- EngineError      an engine that no longer answers, or answers wrongly
    `-- Exit             say it in one line and stop
        |-- ConfigError      exit 78: systemd does not restart
        |-- ModelError       a model file that is missing, damaged or of another contract
        |-- MissingPackage   an optional package that this choice needs
        `-- InputError       a file or folder given on the command line that cannot be used

Every error carries a hint: what was expected, and what to do.
"""

from typing import Sequence, Tuple

EXIT_CONFIG = 78


class EdgeAgentError(Exception):
    """What went wrong, with a hint that says what to do.

    Args:
        message: What was wrong, naming the thing (file, variable, device).
        hint: What was expected and what to do; one line, may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Retry(EdgeAgentError):
    """The same thing may work later."""


class SourceError(Retry):
    """A camera, stream or file cannot be opened or read now."""


class EndOfStream(SourceError):
    """The source has ended; there is nothing left to read."""


class BrokerError(Retry):
    """The broker cannot be reached, or refuses."""


class Rebuild(EdgeAgentError):
    """The object is broken; a new one may work."""


class EngineError(Rebuild):
    """The inference engine failed or answered wrongly."""


class Exit(EdgeAgentError):
    """Nothing will improve by waiting."""


class ConfigError(Exit):
    """One or more settings cannot be used.

    Args:
        faults: One line per fault, each naming the variable, the value's fault and the allowed range.
        hint: As for every error.
    """

    exit_code = EXIT_CONFIG

    def __init__(self, faults: Sequence[str], hint: str = "") -> None:
        super().__init__("; ".join(faults), hint)
        self.faults: Tuple[str, ...] = tuple(faults)


class ModelError(Exit):
    """A model file is missing, damaged, or not of the contract that was asked for."""


class MissingPackage(Exit):
    """An optional package is needed for what was chosen and is not installed."""


class InputError(Exit):
    """A file, folder or argument given on the command line cannot be used."""
