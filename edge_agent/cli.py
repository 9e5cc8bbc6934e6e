"""The command line: parses the arguments, runs one command, and prints every expected error as one line."""

import argparse
import importlib
import os
import signal
import sys
from typing import List, Optional, Sequence

from edge_agent import __version__
from edge_agent.errors import ConfigError, EdgeAgentError

COMMANDS = ("run", "demo", "watch", "check", "config", "model", "evaluate", "replay", "outbox", "bench")


def parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """An argument parser with these commands. Importing a command's module loads no heavy package; running it does."""
    top = argparse.ArgumentParser(
        prog="edge-agent",
        description="Face-presence agent for infrared cameras: yes, no, or cannot see, published over MQTT.",
    )
    top.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        importlib.import_module(f"edge_agent.commands.{name}").add_parser(subparsers)
    return top


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 for bad arguments, 78 for invalid settings, 130 after Ctrl-C, else 1 or the command's own code.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        if not words:
            parser().print_help(sys.stderr)
            return 2
        # Only the named command is imported: all ten would take a sixth of the daemon's start-up time.
        args = parser(words[:1] if words[0] in COMMANDS else COMMANDS).parse_args(words)
        command = importlib.import_module(f"edge_agent.commands.{args.command}")
        code: int = command.run(args)
        sys.stdout.flush()
    except ConfigError as error:
        for fault in error.faults:
            print(f"edge-agent: {fault}", file=sys.stderr)
        if error.hint:
            print(f"edge-agent: {error.hint}", file=sys.stderr)
        return error.exit_code
    except EdgeAgentError as error:
        print(f"edge-agent: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of a pipe has closed it (`edge-agent ... | head`); else Python would report it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(
            f"edge-agent: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr
        )
        return 1
    return code
