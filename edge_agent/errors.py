"""Errors, as a tree ordered by how the program reacts.

    EdgeAgentError
    |-- Retry            wait and try the same operation again; retries are counted
    |   |-- SourceError      a camera cannot be opened or read now
    |   |   `-- EndOfStream      the source has ended; only reopening it can deliver more frames
    |   `-- BrokerError      the broker cannot be reached, or refuses
    |-- Rebuild          discard the object and create a new one
    |   `-- EngineError      the inference engine fails or returns wrong outputs
    `-- Exit             log one line and stop
        |-- ConfigError      exit code 78: systemd does not restart the service
        |-- ModelError       a model file is missing, damaged or breaks its contract
        |-- MissingPackage   the selected feature needs an optional package
        `-- InputError       a file or folder from the command line cannot be used

Every error has a hint: what was expected, and what to do.
"""

from typing import Sequence, Tuple

EXIT_CONFIG = 78


class EdgeAgentError(Exception):
    """An error with a hint for the user.

    Args:
        message: The fault, with the file, variable or device that has it.
        hint: What was expected and what to do, in one line; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Retry(EdgeAgentError):
    """The same operation may succeed later."""


class SourceError(Retry):
    """A camera, stream or file cannot be opened or read now."""


class EndOfStream(SourceError):
    """The source has ended."""


class BrokerError(Retry):
    """The broker cannot be reached, or refuses."""


class Rebuild(EdgeAgentError):
    """The object is unusable; a new one may work."""


class EngineError(Rebuild):
    """The inference engine failed or returned wrong outputs."""


class Exit(EdgeAgentError):
    """Waiting does not help; the program stops."""


class ConfigError(Exit):
    """One or more settings cannot be used.

    Args:
        faults: One line per fault: the variable, what is wrong with its value, the allowed range.
        hint: As in `EdgeAgentError`.
    """

    exit_code = EXIT_CONFIG

    def __init__(self, faults: Sequence[str], hint: str = "") -> None:
        super().__init__("; ".join(faults), hint)
        self.faults: Tuple[str, ...] = tuple(faults)


class ModelError(Exit):
    """A model file is missing, damaged, or breaks the expected contract."""


class MissingPackage(Exit):
    """The selected feature needs an optional package that is not installed."""


class InputError(Exit):
    """A file, folder or argument given on the command line cannot be used."""
