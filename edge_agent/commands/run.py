"""`edge-agent run`: runs the daemon."""

import argparse
import os
from functools import partial
from typing import Any

from edge_agent.commands.arguments import add_command, add_env_file


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "run",
        "watch the cameras and publish until stopped",
        "Ctrl-C or SIGTERM stops it, SIGHUP reloads the settings. Exit code 78: the settings are invalid.",
    )
    add_env_file(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGINT or SIGTERM, or until every source has ended."""
    from edge_agent.host.process import Signals, exempt_from_gc

    # Handlers first: a signal during the slow imports below must not be lost.
    signals = Signals()
    with exempt_from_gc():  # garbage collection would take a fifth of the imports' time
        from edge_agent.app.agent import run_agent
        from edge_agent.config.settings import load_settings, require_cameras
        from edge_agent.host import journal

        read = partial(load_settings, os.environ, args.env_file)
        settings = read()
    journal.configure(settings.log_level, os.environ)
    require_cameras(settings)
    return run_agent(settings, os.environ, read, signals)
