"""doctor: how it ends."""

import json
from typing import Any

import pytest


def test_doctor_ends_with_1_where_something_is_missing(run: Any, monkeypatch: pytest.MonkeyPatch):
    from skipalign import doctor

    monkeypatch.setattr(doctor, "examine", lambda *_: {"ok": False})
    monkeypatch.setattr(doctor, "show", lambda *_: None)
    found = run("doctor")
    assert found.code == 1
    assert "required" in found.err
    monkeypatch.setattr(doctor, "examine", lambda *_: {"ok": True})
    assert run("doctor").last == "all that is required is here; next: skipalign run tiny"
    assert json.loads(run("doctor", "--json").out) == {"ok": True}
