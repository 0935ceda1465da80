"""The doctor: what is there, what is missing, and the start-up probe on a tiny model."""

import io
from importlib import metadata
from typing import Any

import pytest
from rich.console import Console

from made_progress import Telling
from skipalign import doctor
from skipalign.doctor import DTYPES, OPTIONAL, PROBED, examine, show


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    progress = Telling()
    found = examine(progress)
    assert [each.is_whole for each in progress.stages] == [True]
    return found


def printed(report: dict[str, Any]) -> str:
    file = io.StringIO()
    show(report, Console(file=file, width=100))
    return file.getvalue()


def test_this_machine_has_what_is_required(report: dict[str, Any]):
    assert report["ok"]
    assert not [each for each in report["missing"] if each["required"]]
    versions = {each["name"]: each["version"] for each in report["required"]}
    assert {"torch", "transformers", "accelerate", "click"} <= versions.keys()
    assert versions["torch"] == metadata.version("torch")
    assert "pytest" not in versions, "what an extra asks for is not required"


def test_the_probe_passes_for_both_implementations_with_and_without_a_bias(report: dict[str, Any]):
    probed = [(each["attn_implementation"], each["with_key_bias"]) for each in report["probes"]]
    assert probed == [(name, biased) for name in PROBED for biased in (False, True)]
    assert all(each["passed"] and each["problem"] is None for each in report["probes"])


def test_the_cpu_and_its_dtypes_are_named(report: dict[str, Any]):
    first = report["devices"][0]
    assert first["name"].startswith("cpu")
    assert first["memory_gib"] > 0
    assert "float32" in first["dtypes"]
    assert set(first["dtypes"]) <= set(DTYPES)


def test_every_attention_implementation_is_named(report: dict[str, Any]):
    found = {each["name"]: each["available"] for each in report["attention"]}
    assert list(found) == ["sdpa", "eager", "flex_attention", "flash_attention_2"]
    assert found["sdpa"]
    assert found["eager"]


def test_what_is_optional_and_missing_comes_with_its_cure(report: dict[str, Any]):
    missing = {each["name"]: each for each in report["missing"]}
    for name, (purpose, cure) in OPTIONAL.items():
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            assert missing[name]["cure"] == cure
            line = next(
                x for x in printed(report).splitlines() if x.startswith(f"optional: {name}")
            )
            assert purpose in line
        else:
            assert name not in missing


def test_a_required_package_that_is_absent_or_old_stops_all_else(monkeypatch: pytest.MonkeyPatch):
    true = metadata.version

    def version(name: str) -> str:
        if name == "accelerate":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else true(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "probes", lambda: pytest.fail("torch may not be there"))
    found = examine()
    assert not found["ok"]
    missing = {each["name"]: each for each in found["missing"] if each["required"]}
    assert missing["accelerate"]["purpose"] == "not installed"
    assert missing["accelerate"]["cure"].startswith("pip install 'accelerate")
    assert "1.0 is installed, torch" in missing["torch"]["purpose"]
    text = printed(found)
    assert " MISSING  accelerate" in text
    assert "required: torch" in text


def test_a_probe_that_fails_is_a_problem_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    def cut(model: Any, *, max_position: int, with_key_bias: bool) -> dict[str, Any]:
        implementation = model.config._attn_implementation
        check = {"name": "attention crosses the skip", "passed": implementation == "eager"}
        return {
            "passed": check["passed"],
            "attn_implementation": implementation,
            "with_key_bias": with_key_bias,
            "checks": [check],
        }

    monkeypatch.setattr("skipalign.probe.probe", cut)
    found = examine()
    assert not found["ok"]
    failed = [each for each in found["missing"] if each["required"]]
    assert [each["name"] for each in failed] == [
        "start-up probe, sdpa",
        "start-up probe, sdpa with a key bias",
    ]
    assert "attention is cut at the skip" in failed[0]["purpose"]
    assert "FAILED  start-up probe, sdpa" in printed(found)
