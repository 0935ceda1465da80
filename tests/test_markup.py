"""markup.py: one file, and a policy that lets nothing but our own script and style act."""

import base64
import hashlib
import re
from html import unescape

import pytest

from skipalign.markup import render


@pytest.fixture
def made(monkeypatch):
    """Render a template that is given as text."""
    from jinja2 import DictLoader

    from skipalign import markup

    def one(text, **values):
        environment = markup._environment()
        templates = DictLoader({"page": text, "style": "b{color:red}"})
        monkeypatch.setattr(environment, "loader", templates)
        return render("page", values, style="style", scripts=("sort.js", "walk.js"))

    return one


def test_text_is_escaped_and_what_steers_is_written_out(made):
    shown = made('<p title="{{ a }}">{{ a }}</p>{{ a ~ "!" }}', a='<b>"\x1b[31m\u202e\ud800\x00')
    text = r"&lt;b&gt;&#34;\x1b[31m\u202e\ud800\x00"
    assert shown == f'<p title="{text}">{text}</p>{text}!'
    assert made("{{ a }}", a="ä 漢\n\t🙂") == "ä 漢\n\t🙂"
    assert made("{% macro m() %}<i>{{ a }}</i>{% endmacro %}{{ m() }}", a="<") == "<i>&lt;</i>"


def test_the_policy_names_the_hash_of_what_stands_in_the_page(made):
    shown = made("{{ policy }}<style>{{ style }}</style><script>{{ script }}</script>")
    policy, _, rest = unescape(shown).partition("<style>")
    for kind, text in re.findall(r"(?s)<(style|script)>(.*?)</", "<style>" + rest):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_a_value_that_is_missing_is_an_error(made):
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="'b' is undefined"):
        made("{{ b }}", a=1)
