"""Templates and values -> one HTML file that needs no network and runs nothing but our script.

Foreign text meets three walls: what would turn the page's direction is written out, all of it is
escaped, and the file's policy names the hash of the one script and the one style that may act.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from skipalign import __version__
from skipalign.shades import NUM_STEPS, RAMPS, shades
from skipalign.visible import visible


def render(template: str, values: Mapping[str, Any], *, style: str, scripts: Sequence[str]) -> str:
    """Return the page that a template makes of values.

    Args:
        template: its name in templates/.
        values: what it shows; every text of them is taken for foreign.
        style: a template of CSS, which gets the shades of the heat maps and nothing foreign.
        scripts: files of JavaScript, taken as they are, in this order.
    """
    environment = _environment()
    shown = {theme: shades(theme) for theme in RAMPS}
    css = environment.get_template(style).render(shades=shown)
    code = "".join(_file(name) for name in scripts)
    policy = (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(code)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        values,
        policy=policy,
        version=__version__,
        num_steps=NUM_STEPS,
        style=Markup(css),  # noqa: S704 - our own files; the policy names their hashes # nosec B704
        script=Markup(code),  # noqa: S704 # nosec B704
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("skipalign"),
        autoescape=True,
        finalize=_written_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _file(name: str) -> str:
    return files("skipalign").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _written_out(value: Any) -> Any:
    """Write out what steers in a text; Jinja escapes it afterwards. Markup is our own."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return visible(value)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
