"""A task asked of a model by its name, and what its results say of the model."""

from pathlib import Path

from skipalign import evaluating, tiny
from skipalign.evaluation.needle import NeedleSettings
from skipalign.files import read_json
from skipalign.model import weights_digest


def test_an_embedded_base_is_evaluated_by_its_name(tmp_path: Path):
    settings = NeedleSettings(lengths=(96,), depths=(0.5,), trials=1, max_new_tokens=2)
    found = evaluating.evaluate_model("tiny", settings, tmp_path)
    assert read_json(tmp_path / "environment.json")["seeds"] == [settings.seed]
    assert found["model_digest"] == weights_digest(str(tiny.BASE))
    assert [cell["n"] for cell in found["cells"]] == [1]
    generator, _ = evaluating.load_generator("tiny")
    assert generator.identity == evaluating.load_generator(tiny.BASE)[0].identity
