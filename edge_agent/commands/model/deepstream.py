"""`edge-agent model import-deepstream` and `export-deepstream`: convert between nvinfer configurations and settings."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

from edge_agent.commands.arguments import add_command, add_env_file
from edge_agent.errors import InputError

if TYPE_CHECKING:
    from edge_agent.config.nvinfer.file import Report

ACTIONS = ("import-deepstream", "export-deepstream")


def add_parsers(actions: Any) -> None:
    """Declare both actions of `model`."""
    importing = add_command(actions, "import-deepstream", "make settings from an nvinfer configuration")
    importing.add_argument("config", type=Path, metavar="CONFIG", help="such as config_infer_primary_facedetectir.txt")
    importing.add_argument("--output", type=Path, metavar="FILE", help="env file to write; default: print it")
    importing.add_argument("--class-name", metavar="CLASS", help="name or number of the class that is a face")

    exporting = add_command(actions, "export-deepstream", "make an nvinfer configuration from the settings in force")
    exporting.add_argument("config", type=Path, metavar="CONFIG", help="file to write, with a label file beside it")
    add_env_file(exporting)
    for parser in (importing, exporting):
        parser.add_argument("--models-dir", metavar="DIR", help="folder of models; default: the agent's")
        parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, directory: Path) -> int:
    """Run one action; returns 1 when an imported configuration contradicts its model or this agent, else 0."""
    return _import(args, directory) if args.action == "import-deepstream" else _export(args, directory)


def _import(args: argparse.Namespace, directory: Path) -> int:
    from edge_agent.config.nvinfer.importer import import_nvinfer
    from edge_agent.config.settings import load_settings
    from edge_agent.config.variables import name_of

    report = import_nvinfer(args.config, directory, args.class_name)
    load_settings({}, None, {".".join(path): value for path, value in report.settings.items()})
    text = report.env_text(str(args.config))
    if args.output is not None:
        _write_new(args.output, text)
    if args.json:
        settings = {name_of(key): value for key, value in report.settings.items()}
        remarks = {"taken": report.taken, "ignored": report.ignored, "differs": report.differs}
        print(json.dumps({"settings": settings, **remarks}, indent=2))
    elif args.output is None:
        print(text, end="")
    if not args.json:
        for line in _lines(report, args.output):
            # Not among the settings, which go to stdout when there is no file.
            print(line, file=sys.stderr if args.output is None else sys.stdout)
    return 1 if report.differs else 0


def _lines(report: "Report", output: Optional[Path]) -> Iterator[str]:
    for title, sentences in (
        ("taken", report.taken),
        ("ignored", report.ignored),
        ("DIFFERS: this agent behaves differently, or the model contradicts", report.differs),
    ):
        if sentences:
            yield f"{title}:"
            yield from (f"  {sentence}" for sentence in sentences)
    if output is not None:
        yield f"wrote {output}"


def _export(args: argparse.Namespace, directory: Path) -> int:
    from edge_agent.config.nvinfer.exporter import export_nvinfer
    from edge_agent.config.settings import load_settings
    from edge_agent.models.registry import models_dir

    settings = load_settings(os.environ, args.env_file)
    if args.models_dir is None and settings.model.models_dir is not None:
        directory = models_dir(settings.model.models_dir, os.environ)
    if args.config.suffix.lower() in (".yml", ".yaml"):
        raise InputError(f"{args.config}: a key file is written, not YAML", "expected a name that ends in .txt")
    labels = args.config.with_name(f"{args.config.stem}_labels.txt")
    export = export_nvinfer(settings, directory, labels)
    written = [args.config]
    if export.labels is not None:
        _write_new(labels, export.labels)
        written.append(labels)
    _write_new(args.config, export.text)
    if args.json:
        print(json.dumps({"written": [str(path) for path in written], "notes": export.notes}, indent=2))
        return 0
    for line in (*(f"wrote {path}" for path in written), *export.notes):
        print(line)
    return 0


def _write_new(path: Path, text: str) -> None:
    """Write a new file, readable by owner and group only: it may hold the key of a model."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{path}: already exists", "choose another name, or remove it first") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "choose another folder") from error
