"""Settings of the engine as words of the command line: what is said outranks the settings."""

import argparse
from dataclasses import fields, replace

from edge_agent.core.contract import CENTERFACE
from edge_agent.errors import InputError
from edge_agent.inference import EngineParams


def over(params: EngineParams, args: argparse.Namespace) -> EngineParams:
    """`params` with what `args` say by the same names.

    Raises:
        InputError: A word is out of its bounds.
    """
    said = {field.name: getattr(args, field.name, None) for field in fields(EngineParams)}
    long_side = said["long_side"]
    if long_side is not None and (long_side < 64 or long_side % CENTERFACE.multiple):
        raise InputError(f"--long-side {long_side}", "expected a multiple of 32, 64 or more")
    return replace(params, **{name: value for name, value in said.items() if value is not None})
