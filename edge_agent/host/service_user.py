"""Run as the service's user, with the unit's folders and credentials. For diagnosis only."""

import contextlib
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, MutableMapping, Optional

from edge_agent.host.identity import ENV_FOLDER
from edge_agent.host.systemd import account, unit_of, unit_properties

PROPERTIES = ("User", "StateDirectory", "CacheDirectory", "LoadCredential")
FOLDERS = {"STATE_DIRECTORY": ("StateDirectory", "/var/lib"), "CACHE_DIRECTORY": ("CacheDirectory", "/var/cache")}


@contextlib.contextmanager
def run_as_service_user(env_file: Optional[Path], credential: str, environ: MutableMapping[str, str]) -> Iterator[str]:
    """Change irrevocably from root to the user of the unit that reads `env_file`, and set its environment.

    The unit's sandbox and device list are not applied. Variables that `environ` has are kept.

    Args:
        env_file: Absolute path.
        credential: File name in `ENV_FOLDER` of the credential that the unit loads.
        environ: Receives the variables that systemd would set.

    Yields:
        The unit's name; empty without a change: this process is not root, or no unit reads the file.
    """
    unit = unit_of(env_file)
    found = unit_properties(unit, PROPERTIES) if env_file is not None and env_file.parent == ENV_FOLDER else {}
    user = _user(found.get("User", ""))
    if os.geteuid() != 0 or user is None:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="edge-agent-") as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)
        secret = ENV_FOLDER / credential
        # An older systemd does not know the property and passes no credential.
        if "LoadCredential" in found and secret.is_file():
            os.chown(shutil.copyfile(secret, Path(folder) / credential), user.pw_uid, user.pw_gid)
            environ.setdefault("CREDENTIALS_DIRECTORY", folder)
        for name, (key, base) in FOLDERS.items():
            if found.get(key) and name not in environ:
                environ[name] = str(_created(Path(base) / found[key].split()[0], user))
        os.umask(0o077)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        environ["HOME"] = user.pw_dir
        yield unit


def _user(name: str) -> Optional[pwd.struct_passwd]:
    """The user, or None when it does not exist or cannot read this program."""
    who = account(name) if name else None
    with contextlib.suppress(OSError):
        return pwd.getpwnam(name) if who is not None and who.may_read(Path(__file__)) else None
    return None


def _created(folder: Path, user: pwd.struct_passwd) -> Path:
    """Create the folder as systemd would. A failure is ignored here; the folder's user reports it."""
    with contextlib.suppress(OSError):
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            os.chown(folder, user.pw_uid, user.pw_gid)
    return folder
