"""`edge-agent outbox status|list|export|purge`: inspects queued and quarantined messages."""

import argparse
import hashlib
import json
import os
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, Optional, Tuple

from edge_agent.commands.arguments import add_command, add_env_file
from edge_agent.errors import InputError

if TYPE_CHECKING:
    from edge_agent.core.protocol.messages import Stored
    from edge_agent.outbox.store import SqliteStore

PAGE = 200
SUFFIXES = {"image/jpeg": ".jpg", "application/json": ".json"}


def add_parser(subparsers: Any) -> None:
    """Declare the command and its four actions."""
    command = add_command(subparsers, "outbox", "inspect queued and quarantined messages")
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = add_command(actions, "status", "count queued and quarantined messages, with size and age")
    listing = add_command(actions, "list", "list queued messages, one per line, in the order of sending")
    for action in (status, listing):
        action.add_argument("--json", action="store_true", help="print JSON; for list, one object per line")
    export = add_command(actions, "export", "write every payload to a file, with an index.jsonl")
    export.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    purge = add_command(actions, "purge", "delete messages; refused while the agent runs")
    what = purge.add_mutually_exclusive_group(required=True)
    what.add_argument("--quarantine", action="store_true", help="delete the quarantined messages only")
    what.add_argument("--all", action="store_true", help="delete queued messages, too; gap messages announce it")
    purge.add_argument("--yes", action="store_true", help="confirm the deletion")
    for action in (status, listing, export, purge):
        add_env_file(action)


def run(args: argparse.Namespace) -> int:
    """Run one action.

    Raises:
        ConfigError: The settings are invalid.
        InputError: There is no outbox, it cannot be read, or (purge) a running agent uses it.
    """
    import sqlite3

    from edge_agent.app.factories import outbox_store
    from edge_agent.config.settings import load_settings
    from edge_agent.host.identity import state_dir
    from edge_agent.outbox.database import OUTBOX_NAME

    settings = load_settings(os.environ, args.env_file)
    path = state_dir(settings.state_dir, os.environ) / OUTBOX_NAME
    try:
        if args.action == "purge":
            _purge(path, args.all, args.yes)
            return 0
        with closing(outbox_store(path)) as store:
            if args.action == "status":
                _show_status(path, store, args.json)
            elif args.action == "list":
                _show_list(store, args.json)
            else:
                _export(store, args.folder)
    except sqlite3.Error as error:
        raise InputError(f"{path}: {error}", "the agent moves a damaged file aside at its next start") from None
    return 0


def _show_status(path: Path, store: "SqliteStore", as_json: bool) -> None:
    oldest = next(_queued(store), None)
    status = {
        "path": str(path),
        "boot": store.boot,
        "pending": store.count,
        **{f"pending_{kind}s": store.counts.get(kind, 0) for kind in ("event", "update", "crop", "gap")},
        "bytes": store.bytes,
        "file_bytes": _file_bytes(path),
        "oldest_at": oldest and oldest.queued_at,
        "oldest_s": oldest and _age_s(oldest),
        "open_appearances": store.open_visit_count(),
        "quarantined": store.quarantined,
    }
    if as_json:
        print(json.dumps(status))
        return
    for name, value in status.items():
        print(f"{name:<18}{'-' if value is None else value}")


def _file_bytes(path: Path) -> int:
    """Size on disk with the side files: the newest messages are in the write-ahead log."""
    from edge_agent.outbox.database import SIDE_FILES

    total = path.stat().st_size
    for suffix in SIDE_FILES:
        # SQLite deletes them when the last connection closes.
        with suppress(FileNotFoundError):
            total += path.with_name(path.name + suffix).stat().st_size
    return total


def _show_list(store: "SqliteStore", as_json: bool) -> None:
    if not as_json:
        print(f"{'KIND':<8}{'CAMERA':<16}{'BOOT/SEQ':<18}{'BYTES':>8}{'AGE_S':>10}{'TRIES':>6}  TOPIC")
    for stored in _queued(store):
        row = _row(stored)
        if as_json:
            print(json.dumps(row))
            continue
        number = f"{row['boot']}/{'-' if row['seq'] is None else row['seq']}"
        kind, camera = row["event_type"] or row["kind"], row["camera"] or "-"
        print(f"{kind:<8}{camera:<16}{number:<18}{row['bytes']:>8}{row['age_s']:>10}{row['tries']:>6}  {row['topic']}")


def _export(store: "SqliteStore", folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if next(folder.iterdir(), None) is not None:
            raise InputError(f"{folder}: is not empty", "name a new folder, so that nothing is overwritten")
        count = 0
        with (folder / "index.jsonl").open("w", encoding="utf-8") as index:
            for reason, stored in _all_messages(store):
                count += 1
                suffix = SUFFIXES.get(stored.message.content_type or "", ".bin")
                name = f"{count:06d}-{stored.message.kind}{suffix}"
                (folder / name).write_bytes(stored.message.payload)
                row = {"file": name, "sha256": hashlib.sha256(stored.message.payload).hexdigest(), **_row(stored)}
                index.write(json.dumps({**row, "quarantined": reason}) + "\n")
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", "name a folder that can be written") from None
    print(f"{count} messages written to {folder}")


def _purge(path: Path, everything: bool, confirmed: bool) -> None:
    from edge_agent.app.factories import outbox_lock, outbox_store

    with closing(outbox_store(path)) as store:
        what = f"{store.quarantined} quarantined messages" + (f" and {store.count} queued ones" if everything else "")
    if not confirmed:
        raise InputError(f"{path}: {what} would be deleted", "add --yes to delete; 'outbox export' keeps a copy")
    lock = outbox_lock(path.parent)
    try:
        lock.take()
        _delete(path, everything)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "run as its owner") from None
    finally:
        lock.release()
    print(f"deleted: {what}")


def _delete(path: Path, everything: bool) -> None:
    from edge_agent.app.factories import outbox_store, retention_of
    from edge_agent.outbox.params import OutboxParams
    from edge_agent.outbox.retention import DROP_ORDER

    with closing(outbox_store(path, writable=True)) as store:
        retention = retention_of(OutboxParams())
        with store.transaction():
            store.empty_quarantine()
            for kind in DROP_ORDER if everything else ():
                stored = store.oldest(kind)
                while stored is not None:
                    retention.drop(store, stored, "purged")
                    stored = store.oldest(kind)
        store.shrink(store.free_bytes())


def _queued(store: "SqliteStore") -> Iterator["Stored"]:
    page = store.after(0, PAGE)
    while page:
        yield from page
        page = store.after(page[-1].key, PAGE)


def _all_messages(store: "SqliteStore") -> Iterator[Tuple[Optional[str], "Stored"]]:
    for stored in _queued(store):
        yield None, stored
    yield from store.quarantined_messages()


def _row(stored: "Stored") -> Dict[str, Any]:
    message = stored.message
    return {
        "topic": message.topic,
        "kind": message.kind,
        "event_type": message.event_type,
        "camera": message.camera,
        "boot": message.boot,
        "seq": message.seq,
        "bytes": len(message.payload),
        "queued_at": stored.queued_at,
        "age_s": _age_s(stored),
        "tries": stored.tries,
    }


def _age_s(stored: "Stored") -> int:
    return max(0, round(time.monotonic() - stored.queued_t))
