"""Small JSON files that survive, or are honestly lost."""

import pytest

from edge_agent.host.state_file import StateFile


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "new" / "x.json"
    StateFile(path).save({"a": [1, 2]})
    assert StateFile(path).load(lambda value: value["a"], []) == [1, 2]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_there_is_empty_and_no_fault(tmp_path, caplog):
    assert StateFile(tmp_path / "x.json").load(dict, {}) == {} and not caplog.records


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[" * 100_000])
def test_damage_is_told_and_the_agent_goes_on(tmp_path, caplog, damage):
    path = tmp_path / "x.json"
    path.write_bytes(damage)
    memory = StateFile(path)
    assert memory.load(dict, {"a": 1}) == {"a": 1}
    assert "damaged" in caplog.text
    memory.save({"b": 2})
    assert memory.load(dict, {}) == {"b": 2}


def test_a_folder_that_cannot_be_written_is_told_once_and_so_is_recovery(tmp_path, caplog):
    caplog.set_level("INFO")
    blocker = tmp_path / "folder"
    blocker.write_text("a file where a folder should be")
    memory = StateFile(blocker / "x.json")
    memory.save({})
    memory.save({})
    assert caplog.text.count("cannot be written") == 1
    blocker.unlink()
    memory.save({"a": 1})
    assert caplog.text.count("can be written again") == 1 and memory.load(dict, {}) == {"a": 1}


def test_what_cannot_be_written_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "x.json" / "in the way").mkdir(parents=True)
    assert not StateFile(tmp_path / "x.json").save({})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
