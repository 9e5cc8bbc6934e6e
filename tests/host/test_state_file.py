"""Small JSON files: saved durably, or their loss is logged."""

import pytest

from edge_agent.host.state_file import StateFile


def test_a_saved_value_is_loaded(tmp_path):
    path = tmp_path / "new" / "x.json"
    StateFile(path).save({"a": [1, 2]})
    assert StateFile(path).load(lambda value: value["a"], []) == [1, 2]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_missing_file_is_empty_without_a_warning(tmp_path, caplog):
    assert StateFile(tmp_path / "x.json").load(dict, {}) == {} and not caplog.records


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_logged_and_replaced(tmp_path, caplog, damage):
    path = tmp_path / "x.json"
    path.write_bytes(damage)
    state = StateFile(path)
    assert state.load(dict, {"a": 1}) == {"a": 1}
    assert "damaged" in caplog.text
    state.save({"b": 2})
    assert state.load(dict, {}) == {"b": 2}


def test_an_unwritable_folder_and_its_recovery_are_logged_once(tmp_path, caplog):
    caplog.set_level("INFO")
    blocker = tmp_path / "folder"
    blocker.write_text("a file where a folder should be")
    state = StateFile(blocker / "x.json")
    state.save({})
    state.save({})
    assert caplog.text.count("cannot be written") == 1
    blocker.unlink()
    state.save({"a": 1})
    assert caplog.text.count("can be written again") == 1 and state.load(dict, {}) == {"a": 1}


def test_a_failed_write_leaves_no_temporary_file(tmp_path):
    (tmp_path / "x.json" / "in the way").mkdir(parents=True)
    assert not StateFile(tmp_path / "x.json").save({})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
