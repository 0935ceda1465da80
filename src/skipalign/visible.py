"""Foreign text -> text that steers nothing where it is shown, terminal or page."""

import unicodedata

# Controls, marks that turn the direction of text, lone surrogates, other separators of lines.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str, encoding: str = "utf-8") -> str:
    r"""Return text that a terminal shows as it is: what would steer it is written out, as \x1b.

    Line ends and tabs stay. What `encoding` cannot hold is written out as well.
    """
    shown = "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in _ESCAPED
        else _written_out(character)
        for character in text
    )
    try:
        return shown.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return shown.encode("ascii", "backslashreplace").decode("ascii")


def _written_out(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
