"""The agent as its users run it: its own process, settings by environment, seen through a broker."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, List, Mapping, Optional

DEADLINE_S = 30.0


def environment(settings: Mapping[str, Any], state_dir: Optional[Path] = None) -> Mapping[str, str]:
    """A clean environment with only these settings; names without the prefix."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_AGENT_")}
    environ.update({f"EDGE_AGENT_{name}": str(value) for name, value in settings.items()})
    if state_dir is not None:
        environ["EDGE_AGENT_STATE_DIR"] = str(state_dir)
    return environ


def edge_agent(*arguments: Any, settings: Mapping[str, Any] = {}, state_dir: Optional[Path] = None) -> Any:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *map(str, arguments)],
        env=environment(settings, state_dir),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S * 2,
    )


class AgentProcess:
    """`edge-agent run`, for the length of a block; its log is kept.

    Args:
        settings: Names without the prefix, e.g. {"CAMERAS__A__URI": "test://one"}.
        scripted: Use the scripted engine, which sees bright markers.
        version: Of MQTT.
        environ: More of the environment, such as systemd's variables.
        python: Of another virtual environment.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        state_dir: Optional[Path] = None,
        scripted: bool = True,
        version: str = "5",
        environ: Mapping[str, str] = {},
        python: str = sys.executable,
    ) -> None:
        base = {
            "NODE": "n",
            "LOG_LEVEL": "info",
            "MQTT__PROTOCOL": version,
            "MQTT__RETRY_MIN_S": 0.2,
            "MQTT__HOST": "127.0.0.1",
        }
        if scripted:
            base.update({"MODEL__BACKEND": "scripted", "MODEL__MODEL": "scripted"})
        self._own = None if state_dir else tempfile.TemporaryDirectory()
        self._state_dir = state_dir or Path(self._own.name)
        self._settings = {**base, **settings}
        self._environ, self._python = environ, python
        self._log: List[str] = []
        self.process: Optional[subprocess.Popen[str]] = None

    def start(self) -> "AgentProcess":
        """Begin; returns at once."""
        self.process = subprocess.Popen(
            [self._python, "-m", "edge_agent", "run"],
            env={**environment(self._settings, self._state_dir), **self._environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        return self

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self.process.pid

    @property
    def log(self) -> str:
        """Its output on stderr."""
        return "".join(self._log)

    def stop(self, deadline_s: float = DEADLINE_S) -> float:
        """Send SIGTERM and wait; returns the seconds until the exit."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.wait(deadline_s)
        return time.monotonic() - started

    def kill(self) -> None:
        """SIGKILL: no clean disconnect."""
        self.process.kill()
        self.wait()

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Its exit code."""
        code = self.process.wait(deadline_s)
        self._reader.join(5)
        return code

    def _read(self, stream: Any) -> None:
        for line in stream:
            self._log.append(line)
        stream.close()

    def __enter__(self) -> "AgentProcess":
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        if self._own:
            self._own.cleanup()
        if kind is not None:
            print(self.log)
