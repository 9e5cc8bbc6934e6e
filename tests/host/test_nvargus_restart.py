"""Requests to the root helper: the file that its path unit waits for."""

from pathlib import Path

from edge_agent.host.systemd import REQUESTS_FOLDER, NvargusRestart

UNITS = Path(__file__).parents[2] / "systemd"


def test_the_file_is_the_one_that_the_helper_waits_for(tmp_path):
    assert NvargusRestart(tmp_path).restart_nvargus() and NvargusRestart(tmp_path).restart_nvargus()
    (made,) = tmp_path.iterdir()
    assert (
        f"PathExists={REQUESTS_FOLDER / made.name}"
        in (UNITS / "edge-agent-nvargus.path").read_text("utf-8").splitlines()
    )
    assert made.read_bytes() == b""
    assert f"ReadWritePaths={REQUESTS_FOLDER}" in (UNITS / "drop-ins" / "csi.conf").read_text("utf-8").splitlines()


def test_a_failed_request_is_logged_once(tmp_path, caplog):
    requests = NvargusRestart(tmp_path / "nothing")
    assert not requests.restart_nvargus() and not requests.restart_nvargus()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "edge-agent-nvargus.path" in caplog.text


def test_a_symbolic_link_is_not_followed(tmp_path):
    target = tmp_path / "target"
    folder = tmp_path / "requests"
    folder.mkdir()
    (folder / "restart-nvargus").symlink_to(target)
    assert not NvargusRestart(folder).restart_nvargus() and not target.exists()
