"""Whatever answers prompts -> TASK.json: a task asked of a folder's model, or of a backend."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from skipalign import tiny
from skipalign.encoding import DEFAULT_TEMPLATE
from skipalign.evaluation.tasks import task_of
from skipalign.files import alone_in, write_json
from skipalign.generation import Generator
from skipalign.model import load_model, load_tokenizer, weights_digest
from skipalign.origin import environment
from skipalign.progress import Progress, Silent
from skipalign.resolved import Training
from skipalign.tiny import make
from skipalign.transformers_engine import TransformersGenerator

_SILENT = Silent()


def check_tasks(trainings: Iterable[Training]) -> None:
    """Refuse tasks that no prompt can be made of, before anything is trained for them.

    Each is tried once with the tokenizer of each base.

    Raises:
        SkipalignError: a prompt without room for what it must hold, or a text too short.
    """
    tokenizers: dict[tuple[str, str | None], Any] = {}
    tried: set[tuple[str, str | None, str]] = set()
    for training in trainings:
        base = tiny.tokenizer_of(training.base.path), training.base.revision
        for settings in training.tasks.values():
            if (*base, repr(settings)) in tried:
                continue
            tried.add((*base, repr(settings)))
            if base not in tokenizers:
                tokenizers[base] = load_tokenizer(base[0], revision=base[1])
                if tokenizers[base].chat_template is None:
                    tokenizers[base].chat_template = DEFAULT_TEMPLATE
            task_of(settings).check(tokenizers[base], settings)


def load_generator(
    model_dir: str | Path, progress: Progress = _SILENT
) -> tuple[TransformersGenerator, Any]:
    """Load a finished model, or an embedded base by its name: natural positions, no key bias."""
    place = make.base(str(model_dir), progress)
    tokenizer = load_tokenizer(place)
    model: Any = load_model(place, progress=progress)
    if torch.cuda.is_available():
        model = model.to("cuda")
    return TransformersGenerator(model, tokenizer), tokenizer


def evaluate_model(
    model_dir: str | Path, settings: Any, out: Path, progress: Progress = _SILENT
) -> dict[str, Any]:
    """Evaluate the model in a folder (or of a hub id) in the task that `settings` belong to."""
    backend = {"name": "transformers", "model": str(model_dir)}
    loaded = load_generator(model_dir, progress)
    digest = weights_digest(tiny.found(str(model_dir)), progress)
    return evaluate_generator(
        *loaded, settings, out, progress, backend=backend, model_digest=digest
    )


def evaluate_generator(
    generator: Generator,
    tokenizer: Any,
    settings: Any,
    out: Path,
    progress: Progress = _SILENT,
    *,
    backend: Mapping[str, Any],
    model_digest: str | None = None,
) -> dict[str, Any]:
    """Evaluate what answers prompts in the task that `settings` belong to.

    environment.json beside TASK.json says what the figures come from, as in a run folder.

    Args:
        backend: what it is, for TASK.json.
        model_digest: of its weights, where they are known.
    """
    task = task_of(settings)
    with alone_in(out):
        document = task.evaluate(generator, tokenizer, settings, out, progress)
        document |= {"backend": dict(backend)}
        document |= {"model_digest": model_digest} if model_digest else {}
        write_json(out / f"{task.name}.json", document)
        drawn = {"seeds": [settings.seed]} if hasattr(settings, "seed") else {}
        write_json(out / "environment.json", {**environment(), **drawn})
    return document
