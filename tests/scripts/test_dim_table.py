"""The program that dims images: its sensor, and its tables."""

import numpy as np

from scripts.lib.dim_table import Sensor, ratio_table


def test_a_dimmed_image_has_its_share_of_light_and_the_sensors_noise() -> None:
    gray = np.full((200, 300), 160, np.uint8)
    sensor = Sensor(20.0, 1.0)
    assert sensor.dimmed(gray, 1) is gray
    for factor in (4, 8):
        dim = sensor.dimmed(gray, factor)
        assert abs(dim.mean() - 160 / factor) < 0.1
        assert abs(dim.var() - (160 / factor / 20 + 1 + 1 / 12)) < 0.2
        assert np.array_equal(dim, sensor.dimmed(gray, factor))
        assert not np.array_equal(dim, sensor.dimmed(gray, factor, 1))


def test_the_table_by_ratio() -> None:
    assert ratio_table({2: [1, 4, 7]})[-1] == "| 0.8 to 1 | 7 | 4 | 0.250 |"
