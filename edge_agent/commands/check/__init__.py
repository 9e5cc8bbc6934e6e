"""`edge-agent check`: checks this machine against the settings and suggests fixes."""

import argparse
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Mapping, Optional

from edge_agent.commands.arguments import add_command, add_env_file
from edge_agent.commands.check.probes import FAIL, OK, CheckResult
from edge_agent.errors import ConfigError, EdgeAgentError

if TYPE_CHECKING:
    from edge_agent.config.settings import Settings

MARKS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(subparsers, "check", "check this machine and suggest fixes")
    add_env_file(parser)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Print one result per check; returns 1 when something that the settings need has failed, else 0."""
    # The results include every fault, so the log lines of the same faults are suppressed.
    logging.getLogger("edge_agent").addHandler(logging.NullHandler())
    results: List[CheckResult] = []
    for result in _results(args):
        results.append(result)
        if not args.json:
            print(_line(result), flush=True)
    failed = [result for result in results if result.state == FAIL]
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [vars(result) for result in results]}, indent=2))
    else:
        print(
            f"{len(failed)} of {len(results)} checks failed"
            if failed
            else f"nothing that the settings need has failed ({len(results)} checks)"
        )
    return 1 if failed else 0


def _line(result: CheckResult) -> str:
    text = f"{MARKS[result.state]}  {result.name}: {result.found}"
    return f"{text}\n      -> {result.remedy}" if result.remedy and result.state != OK else text


def _results(args: argparse.Namespace) -> Iterator[CheckResult]:
    from edge_agent.commands.check import host_probes, probes
    from edge_agent.host.service_user import run_as_service_user
    from edge_agent.host.systemd import unit_of, unit_properties, unit_state
    from edge_agent.mqtt.tls import CREDENTIAL

    yield from probes.software()
    try:
        settings = _settings(args)
    except ConfigError as error:
        for fault in error.faults:
            yield CheckResult("settings", FAIL, fault, error.hint or "see config/README.md")
        return
    yield CheckResult("settings", OK, f"node {settings.node}, cameras {', '.join(settings.cameras) or 'none yet'}")
    env_file = args.env_file or _named(os.environ)
    env_file = env_file and env_file.absolute()
    # Before dropping root: without D-Bus, systemd answers only root.
    state = unit_state(unit_of(env_file))
    service_pid = unit_properties(unit_of(env_file), ["MainPID"]).get("MainPID", "")
    with run_as_service_user(env_file, CREDENTIAL, os.environ) as unit:
        yield from host_probes.checked_as(env_file, unit, state)
        checks: Mapping[str, Callable[[Settings], Iterator[CheckResult]]] = {
            "storage": host_probes.storage,
            "clock": host_probes.clock,
            "permissions": host_probes.permissions,
            "gpu": host_probes.gpu,
            "engine": probes.engine,
            "cameras": partial(probes.cameras, service_pid=service_pid),
            "broker": probes.broker,
        }
        for name, check in checks.items():
            try:
                yield from check(settings)
            except EdgeAgentError as error:
                yield CheckResult(name, FAIL, error.message, error.hint)
        yield from host_probes.service(env_file, state)


def _named(environ: Mapping[str, str]) -> Optional[Path]:
    """The env file named by the environment, or None."""
    from edge_agent.config.settings import ENV_FILE

    return Path(environ[ENV_FILE]) if environ.get(ENV_FILE) else None


def _settings(args: argparse.Namespace) -> "Settings":
    from edge_agent.config.settings import load_settings

    return load_settings(os.environ, args.env_file)
