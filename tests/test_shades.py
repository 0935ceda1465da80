"""shades.py: colours that can be read, told apart and printed."""

import pytest

from skipalign import shades


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_shades_can_be_read_and_told_apart_by_lightness_alone(theme):
    found = shades.shades(theme)
    lightness = []
    for _, background, text in found:
        colours = [tuple(bytes.fromhex(each[1:])) for each in (background, text)]
        assert shades.contrast(*colours) >= 4.5
        lightness.append(shades.contrast(colours[0], (0, 0, 0)))
    assert lightness == sorted(lightness, reverse=theme == "light")
    assert len(set(lightness)) == len(lightness)


def test_contrast_of_black_and_white_is_21():
    assert shades.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


def test_shade_of_a_share():
    assert [shades.shade(value) for value in (-1, 0, 0.5, 1, 2)] == [0, 0, 25, 50, 50]
