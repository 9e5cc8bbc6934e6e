"""Boot counters and event ids never repeat, even when the counter's file is damaged or missing."""

import uuid

import pytest

from edge_agent.host.identity import CLOCK_WAS_SET, LARGEST_BOOT, NUMBERS_PER_START, new_epoch, next_boot, uuid7


def test_each_start_increments_the_counter(tmp_path):
    first = next_boot(tmp_path / "new")
    assert CLOCK_WAS_SET < first < LARGEST_BOOT
    assert [next_boot(tmp_path / "new") for _ in range(2)] == [first + n * NUMBERS_PER_START for n in (1, 2)]
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["boot"]


def test_a_counter_known_from_another_store_is_not_repeated(tmp_path):
    later = new_epoch() + 1000
    assert next_boot(tmp_path, known=later) == later + NUMBERS_PER_START
    assert next_boot(tmp_path, known=7) == later + 2 * NUMBERS_PER_START


@pytest.mark.parametrize("damage", [b"", b"x", b"-5", b"\xff", b"9" * 25, b"9" * 5000, str(LARGEST_BOOT).encode()])
def test_a_damaged_counter_starts_a_new_epoch(tmp_path, damage):
    (tmp_path / "boot").write_bytes(damage)
    assert CLOCK_WAS_SET < next_boot(tmp_path) < LARGEST_BOOT


def test_a_failed_write_leaves_no_file(tmp_path):
    (tmp_path / "boot" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        next_boot(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["boot"]


def test_event_ids_are_uuids_of_version_7_in_the_order_of_time():
    ids = [uuid.UUID(uuid7()) for _ in range(3)]
    assert len(set(ids)) == 3 and all(each.version == 7 and each.variant == uuid.RFC_4122 for each in ids)
    assert [each.int >> 80 for each in ids] == sorted(each.int >> 80 for each in ids)
