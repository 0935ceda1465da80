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


# What a person without one kind of cone sees, in linear RGB.
# Source: Machado, Oliveira, Fernandes 2009, doi 10.1109/TVCG.2009.113, severity 1.
SEEN = {
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanopia": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
    "grey": ((0.2126, 0.7152, 0.0722),) * 3,
}


def seen(colour, kind):
    """A colour as 0 to 255, as it looks to that person, or printed without colour."""
    bytes_ = [part / 255 for part in bytes.fromhex(colour[1:])]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in bytes_]
    mixed = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in SEEN[kind]]
    clipped = [min(max(v, 0.0), 1.0) for v in mixed]
    return tuple(
        round(255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055))
        for v in clipped
    )


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_shades_keep_their_order_and_numbers_for_colour_blind_eyes_and_on_grey_paper(theme, kind):
    found = shades.shades(theme)
    backgrounds = [seen(background, kind) for _, background, _ in found]
    lightness = [shades.contrast(each, (0, 0, 0)) for each in backgrounds]
    assert lightness == sorted(lightness, reverse=theme == "light")
    for before, after in zip(backgrounds, backgrounds[5:], strict=False):
        assert shades.contrast(before, after) > 1.1, "a tenth more or less can be told"
    for background, (_, _, text) in zip(backgrounds, found, strict=True):
        assert shades.contrast(background, seen(text, kind)) >= 4
