"""Being to this machine what a unit is: its user, its folders, its password. For diagnosis only."""

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
    """Root gives up its rights, for good, for those of the unit that reads `env_file`. What `environ` has stays.

    Its sandbox and its list of devices are not put on.

    Args:
        env_file: Absolute.
        credential: Name of the file in `ENV_FOLDER` that the unit loads.
        environ: Gets what systemd would set.

    Yields:
        The unit's name; empty where this process stays what it is: not root, or no unit reads such a file.
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
        # An older systemd does not know the property, and hands over nothing.
        if "LoadCredential" in found and secret.is_file():
            os.chown(shutil.copyfile(secret, Path(folder) / credential), user.pw_uid, user.pw_gid)
            environ.setdefault("CREDENTIALS_DIRECTORY", folder)
        for name, (key, base) in FOLDERS.items():
            if found.get(key) and name not in environ:
                environ[name] = str(_made(Path(base) / found[key].split()[0], user))
        os.umask(0o077)
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        environ["HOME"] = user.pw_dir
        yield unit


def _user(name: str) -> Optional[pwd.struct_passwd]:
    """None also where that user could not even read this program."""
    who = account(name) if name else None
    with contextlib.suppress(OSError):
        return pwd.getpwnam(name) if who is not None and who.may_read(Path(__file__)) else None
    return None


def _made(folder: Path, user: pwd.struct_passwd) -> Path:
    """As systemd makes it before the first start. What cannot be made is told by whoever needs it."""
    with contextlib.suppress(OSError):
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            os.chown(folder, user.pw_uid, user.pw_gid)
    return folder
