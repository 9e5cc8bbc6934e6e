"""`edge-agent config show|check|example`: prints the settings in force, validates them, or prints an example file."""

import argparse
import json
import os
from typing import TYPE_CHECKING, Any, Dict

from edge_agent.commands.arguments import add_command, add_env_file

if TYPE_CHECKING:
    from edge_agent.config.settings import Loaded


def add_parser(subparsers: Any) -> None:
    """Declare the command and its three actions."""
    command = add_command(subparsers, "config", "show, check or explain the settings")
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = add_command(actions, "show", "show every setting in force and its source; secrets are hidden")
    show.add_argument("--json", action="store_true", help="print JSON")
    check = add_command(actions, "check", "validate the settings; exit code 0, or 78 with one line per fault")
    for action in (show, check):
        add_env_file(action)
    add_command(actions, "example", "print an env file with every setting, its meaning, bounds and default")


def run(args: argparse.Namespace) -> int:
    """Run one action.

    Raises:
        ConfigError: The settings are invalid.
    """
    from edge_agent.app.factories import require_known_model, sources_of
    from edge_agent.config import docs as config_docs
    from edge_agent.config import settings as config

    if args.action == "example":
        print(config_docs.example(), end="")
        return 0
    loaded = config.load(os.environ, args.env_file)
    if args.action == "show":
        print(_as_json(loaded) if args.json else _as_lines(loaded))
        return 0
    config.require_cameras(loaded.settings)
    require_known_model(loaded.settings)
    sources_of(loaded.settings)
    print(f"ok: {len(loaded.origins)} settings given, cameras: {', '.join(sorted(loaded.settings.cameras))}")
    return 0


def _as_lines(loaded: "Loaded") -> str:
    from edge_agent.config.env_file import quote

    lines = [f"{name}={quote(row['value'])}  # {row['source']}" for name, row in _rows(loaded).items()]
    return "\n".join(lines)


def _as_json(loaded: "Loaded") -> str:
    from edge_agent.config import settings as config

    return json.dumps(
        {"fingerprint": config.fingerprint(loaded.settings), "settings": _rows(loaded, as_text=False)}, indent=2
    )


def _rows(loaded: "Loaded", as_text: bool = True) -> Dict[str, Dict[str, Any]]:
    """By variable name: value (secrets and credentials replaced by ***), source, reload."""
    from edge_agent.config import settings as config
    from edge_agent.config.variables import name_of, shown

    rows: Dict[str, Dict[str, Any]] = {}
    for path, (variable, value) in config.values(loaded.settings).items():
        sources = [origin for given, origin in loaded.origins.items() if given[: len(path)] == path]
        if variable.secret:
            value = "***" if value else ""
        elif as_text or isinstance(value, str):
            value = shown(value)
        rows[name_of(path)] = {"value": value, "source": ", ".join(sources) or "default", "reload": variable.reload}
    return rows
