"""Checks of the machine for `edge-agent check`: GPU, permissions, state folder, disk, clock, systemd unit."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, List, Optional

from edge_agent.commands.check.probes import FAIL, NOTE, OK, CheckResult
from edge_agent.errors import EngineError, MissingPackage
from edge_agent.inference.trt.find import JETPACK_4

if TYPE_CHECKING:
    from edge_agent.config.settings import Settings
    from edge_agent.host.systemd import Account, UnitState

FREE_MB = 500
LOCAL_CAMERAS = ("v4l2:", "/dev/video", "csi:", "jetson:csi:", "jetson:/dev/")
CAMERA_NODES = ("dev/video*", "dev/media*")
GPU_NODES = ("dev/nvidia0", "dev/nvidiactl", "dev/nvhost-gpu", "dev/nvhost-ctrl-gpu", "dev/nvmap", "dev/nvgpu/*/*",
             "dev/dri/renderD*")  # fmt: skip


def gpu(settings: "Settings", jetpack_4: Path = JETPACK_4) -> Iterator[CheckResult]:
    """Whether TensorRT runs on a GPU, in this process or in JetPack 4's worker."""
    from edge_agent.app.factories import tensorrt_of

    params = settings.model
    needed = params.backend == "tensorrt"
    try:
        backend = tensorrt_of(params, os.environ, jetpack_4)
    except (MissingPackage, EngineError) as error:
        text = error.message if needed else f"the CPU is used, because {error.message}"
        yield CheckResult("gpu", FAIL if needed else NOTE, text, error.hint)
        return
    worker = "" if backend.worker is None else f", in a worker of {backend.worker}"
    found = (
        f"{backend.gpu} (sm_{backend.sm}), driver for CUDA {backend.cuda_version}, TensorRT {backend.version}{worker}"
    )
    backend.close()
    yield CheckResult("gpu", OK, found)


def storage(settings: "Settings") -> Iterator[CheckResult]:
    """Whether the state folder is writable and its disk has room."""
    from edge_agent.host.identity import state_dir

    folder = state_dir(settings.state_dir, os.environ)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        yield CheckResult("state folder", OK, str(folder))
        free_mb = shutil.disk_usage(folder).free // 1_000_000
        enough = free_mb >= FREE_MB
        remedy = "" if enough else f"free some space on the disk of {folder}, or set EDGE_AGENT_STATE_DIR"
        yield CheckResult("disk", OK if enough else FAIL, f"{free_mb} MB free", remedy)
    except OSError as error:
        remedy = "make it writable, or set EDGE_AGENT_STATE_DIR"
        yield CheckResult("state folder", FAIL, f"{folder}: {error.strerror}", remedy)


def clock(settings: "Settings") -> Iterator[CheckResult]:
    """Whether the system clock is synchronised."""
    from edge_agent.app.factories import system_clock

    if system_clock()().synced:
        yield CheckResult("clock", OK, "synchronised")
    else:
        remedy = "timedatectl set-ntp true, or install chrony; see 'timedatectl timesync-status'"
        yield CheckResult("clock", NOTE, "not synchronised; events are marked so", remedy)


def permissions(settings: "Settings", root: Path = Path("/"), who: "Optional[Account]" = None) -> Iterator[CheckResult]:
    """Whether the agent's user may open the devices: the service's user where it exists, else the current one."""
    from edge_agent.host.systemd import SERVICE_USER, account

    user = who or account(SERVICE_USER) or account()
    if user is None:
        return
    local = any(params.uri.lower().startswith(LOCAL_CAMERAS) for params in settings.cameras.values())
    needs = {"camera devices": local, "gpu devices": settings.model.backend == "tensorrt"}
    for name, patterns in (("camera devices", CAMERA_NODES), ("gpu devices", GPU_NODES)):
        nodes = [node for pattern in patterns for node in sorted(root.glob(pattern))]
        if nodes:
            yield _devices(name, nodes, user, needs[name])


def _devices(name: str, nodes: List[Path], user: "Account", needed: bool) -> CheckResult:
    from edge_agent.host.systemd import group_name

    denied: List[Path] = []
    for node in nodes:
        try:
            if not user.may_read(node):
                denied.append(node)
        except OSError:
            continue
    if not denied:
        return CheckResult(name, OK, f"{len(nodes)}, which {user.name} may open")
    groups = ",".join(sorted({group_name(node.stat().st_gid) for node in denied}))
    found = f"{user.name} may not open {', '.join(map(str, denied[:3]))}{' and more' if len(denied) > 3 else ''}"
    return CheckResult(
        name, FAIL if needed else NOTE, found, f"sudo usermod -aG {groups} {user.name}, and start it again"
    )


def checked_as(env_file: Optional[Path], unit: str, state: "Optional[UnitState]") -> Iterator[CheckResult]:
    """The user of the following checks; `unit` is the systemd unit that this process runs as, or empty."""
    from edge_agent.host.identity import ENV_FOLDER
    from edge_agent.host.systemd import account, unit_of

    user = account()
    name = "?" if user is None else user.name
    if unit:
        yield CheckResult("checked as", OK, f"{name}, with the folders and the password of {unit}")
    elif (env_file is None or env_file.parent == ENV_FOLDER) and state is not None and state.load == "loaded":
        found = f"{name}; {unit_of(env_file)} has its own settings, rights, folders and password"
        named = env_file or ENV_FOLDER / "edge-agent.env"
        yield CheckResult("checked as", NOTE, found, f"sudo edge-agent check --env-file {named}")


def service(env_file: Optional[Path], state: "Optional[UnitState]") -> Iterator[CheckResult]:
    """The unit's state, and whether the service's user may read the settings."""
    from edge_agent.host.systemd import SERVICE_USER, account, unit_of

    user = account(SERVICE_USER)
    if env_file is not None and user is not None:
        yield readable(env_file, user)
    unit = unit_of(env_file)
    if state is None:
        yield CheckResult("unit", NOTE, "systemd does not run here", "whatever starts the agent must also restart it")
    elif state.load == "not-found":
        yield CheckResult("unit", NOTE, f"{unit} is not installed", "install the package, or see systemd/README.md")
    elif state.load != "loaded":
        yield CheckResult(
            "unit", FAIL, f"{unit} is {state.load}", f"sudo systemctl unmask {unit}; systemctl cat {unit}"
        )
    elif state.active == "failed":
        remedy = f"journalctl -u {unit} -n 50; then sudo systemctl restart {unit}"
        yield CheckResult("unit", FAIL, f"{unit} has failed: {state.result}", remedy)
    elif state.active != "active" or state.enabled not in ("enabled", "enabled-runtime"):
        found = f"{unit} is {state.active} and {state.enabled or 'not enabled'}"
        yield CheckResult("unit", NOTE, found, f"sudo systemctl enable --now {unit}")
    else:
        yield CheckResult("unit", OK, f"{unit} is active and enabled")


def readable(env_file: Path, user: "Account") -> CheckResult:
    """Whether `user` may read the env file."""
    try:
        may = user.may_read(env_file)
    except OSError as error:
        return CheckResult(
            "env file", FAIL, f"{env_file}: {error.strerror}", "make the file and all folders above it readable"
        )
    if may:
        return CheckResult("env file", OK, f"{env_file}, which {user.name} may read")
    remedy = f"sudo chgrp {user.name} {env_file} && sudo chmod 640 {env_file}; the folders above it need x"
    return CheckResult("env file", FAIL, f"{env_file}: {user.name} may not read it", remedy)
