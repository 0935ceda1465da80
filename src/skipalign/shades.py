"""Shares in [0, 1] -> colours of a heat map that anyone can tell apart and read numbers on."""

from collections.abc import Sequence

NUM_STEPS = 50  # shades of the heat map
# From paper to ink: one hue, lightness alone carries the value, so it survives colour blindness
# and a black-and-white print. (0, 1/2, 1) of each theme, as sRGB.
RAMPS = {
    "light": ((247, 243, 234), (120, 170, 190), (9, 58, 84)),
    "dark": ((30, 33, 36), (46, 106, 128), (166, 219, 236)),
}


def shade(value: float) -> int:
    """Return which of the shades 0 to NUM_STEPS a share in [0, 1] has."""
    return round(min(max(value, 0.0), 1.0) * NUM_STEPS)


def shades(theme: str) -> list[tuple[int, str, str]]:
    """Return (step, background, text colour) of every shade; the text keeps a contrast of 4.5."""
    found: list[tuple[int, str, str]] = []
    for step in range(NUM_STEPS + 1):
        colour = _mixed(RAMPS[theme], step / NUM_STEPS)
        dark, light = (0, 0, 0), (255, 255, 255)
        text = dark if contrast(colour, dark) >= contrast(colour, light) else light
        found.append((step, _hexed(colour), _hexed(text)))
    return found


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast ratio of two colours, 1 to 21. Source: WCAG 2.2."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: tuple[int, int, int]) -> float:
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (channel / 255 for channel in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mixed(ramp: Sequence[tuple[int, int, int]], share: float) -> tuple[int, int, int]:
    first, second = (ramp[0], ramp[1]) if share < 0.5 else (ramp[1], ramp[2])
    part = share * 2 if share < 0.5 else share * 2 - 1
    red, green, blue = (
        round(start + (stop - start) * part) for start, stop in zip(first, second, strict=True)
    )
    return red, green, blue


def _hexed(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
