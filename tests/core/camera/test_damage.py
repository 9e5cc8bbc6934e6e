"""When decoded frames stop being evidence, and when they are again."""

from edge_agent.core.camera.damage import CLEAN_S, DAMAGED_AFTER_S, RECOVERY_S, DamageMonitor, PredictionDamage

FRAME_S = 1 / 15


def test_damage_lasts_until_the_next_clean_keyframe() -> None:
    damage = PredictionDamage(intra=False)
    assert not damage.observe(False, True, 0.0)
    assert damage.observe(True, False, 0.1)
    assert damage.observe(False, False, 0.2), "predicted from the damaged frame"
    assert damage.observe(True, True, 0.3), "a damaged keyframe ends nothing"
    assert damage.observe(False, False, 0.4)
    assert not damage.observe(False, True, 0.5)
    assert not damage.observe(False, False, 0.6)


def test_without_keyframes_it_ends_some_time_after_the_last_flag() -> None:
    damage = PredictionDamage(intra=False)
    assert damage.observe(True, False, 0.0)
    assert damage.observe(False, False, RECOVERY_S - 0.1)
    assert not damage.observe(False, False, RECOVERY_S)


def test_an_intra_codec_damages_one_frame_only() -> None:
    damage = PredictionDamage(intra=True)
    assert damage.observe(True, False, 0.0)
    assert not damage.observe(False, False, 0.1)


def test_a_short_burst_changes_nothing() -> None:
    monitor = DamageMonitor()
    for index in range(150):
        monitor.observe(50 <= index < 54, index * FRAME_S)
        assert not monitor.blind and monitor.share == 0.0


def test_lasting_damage_blinds_within_two_seconds_and_ends_after_a_clean_one() -> None:
    monitor = DamageMonitor()
    for index in range(30):
        monitor.observe(True, index * FRAME_S)
        assert monitor.blind == (index * FRAME_S >= DAMAGED_AFTER_S)
    assert monitor.blind and monitor.share == 1.0
    start = 30 * FRAME_S
    for index in range(30):
        monitor.observe(False, start + index * FRAME_S)
        assert monitor.blind == (index * FRAME_S < CLEAN_S)
    assert 0.4 < monitor.share < 0.6


def test_single_clean_frames_do_not_end_blindness() -> None:
    monitor = DamageMonitor()
    for index in range(100):
        monitor.observe(index % 5 != 0 or index < 40, index * FRAME_S)
    assert monitor.blind
