"""What commands have in common on the command line."""

import argparse
from pathlib import Path
from typing import Any


def add_command(subparsers: Any, name: str, says: str, more: str = "") -> argparse.ArgumentParser:
    """A command, or an action of one, that says what it does in its own help too; `more` is only there."""
    description = f"{says[0].upper()}{says[1:]}.{more and ' ' + more}"
    command: argparse.ArgumentParser = subparsers.add_parser(name, help=says, description=description)
    return command


def add_env_file(command: argparse.ArgumentParser) -> None:
    """The option that names the agent's settings; for `load_settings`."""
    command.add_argument(
        "--env-file",
        type=Path,
        metavar="FILE",
        help="settings, in the syntax of systemd's EnvironmentFile; default: $EDGE_AGENT_ENV_FILE, else none",
    )
