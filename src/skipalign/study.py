"""Trainings -> a run folder: prepare, train, evaluate, report, each stage skipped where it is done.

runs/NAME/recipe.yaml, environment.json, report.html
runs/NAME/METHOD/seed-N/    one training (runs/NAME itself where there is one only)
    data/ rejected.jsonl accounting.json          prepare
    probe.json loss.jsonl checkpoints/ model/     train
    settings.json coverage.json training.json
    evaluation/TASK/                              evaluate
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skipalign import coverage, report, tiny, workers
from skipalign import prepare as prepare_room
from skipalign.arguments import training_arguments
from skipalign.card import license_of, write_card
from skipalign.claim import claim, finished, folder_of, require_same_settings, trained_on
from skipalign.digests import digests_of, require_same_files
from skipalign.distribution import is_first, on_first
from skipalign.encoding import DEFAULT_TEMPLATE
from skipalign.errors import RunError
from skipalign.evaluating import check_tasks, load_generator
from skipalign.evaluation.tasks import TASKS
from skipalign.example_file import ExampleFile
from skipalign.files import alone_in, defaults, read_json, write_json, write_text
from skipalign.model import load_model, load_tokenizer, save_model, weights_digest
from skipalign.origin import environment
from skipalign.progress import Labelled, Progress, Silent
from skipalign.resolved import Training
from skipalign.results import of_other_weights
from skipalign.tiny import make
from skipalign.training import train as fine_tune
from skipalign.visits import VisitSampler
from skipalign.watching import Watching

SHARED_DATA = ("rejected.jsonl", "accounting.json")
_SILENT = Silent()


def run(
    trainings: Sequence[Training],
    run_dir: Path,
    progress: Progress = _SILENT,
    *,
    recipe_text: str,
    only: Collection[str] | None = None,
    jobs: int = 1,
) -> Path:
    """Do all that is not done yet; return the path of report.html.

    Args:
        trainings: all of the recipe: they decide the order in tables and the range of coverage.
        run_dir: the run folder.
        progress: where to report.
        recipe_text: kept in the run folder.
        only: the methods to work on; the others' folders stay as they are. None is all.
        jobs: trainings at once, each a process with its share of the threads and one of the GPUs.
            Figures are those of as many threads: to the bit they repeat with the same `jobs`.

    Raises:
        SkipalignError: the first stage that cannot be done; what is done stays.
    """
    with workers.shared_threads(jobs):
        todo = [each for each in trainings if only is None or each.method in only]
        check_tasks(todo)
        begin(run_dir, recipe_text, todo, seeds=[training.seed for training in trainings])
        prepare(todo, run_dir, progress)
        max_position = max(training.max_position for training in trainings)
        methods = list(dict.fromkeys(training.method for training in trainings))
        given = [(each, run_dir, methods.index(each.method), max_position) for each in todo]
        if jobs > 1:
            bases = dict.fromkeys(each.base.path for each in todo)
            _at_once(make.base, [(base,) for base in bases], "bases", jobs, progress)
            _at_once(complete, given, "trainings", jobs, progress)
        else:
            for training, folder, order, reach in given:
                label = Labelled(progress, f"{training.method}, seed {training.seed}:")
                complete(training, folder, order, reach, label)
    with progress.bar("report", 2) as bar:
        page = report.write_report([run_dir])
        bar.advance()
        models = [folder_of(training, run_dir) / "model" for training in todo]
        report.add_results_to_cards([model for model in models if model.exists()], run_dir)
        bar.advance()
    return page


def complete(
    training: Training,
    run_dir: Path,
    order: int,
    coverage_range: int,
    progress: Progress = _SILENT,
) -> None:
    """Train and evaluate a training whose data is prepared, as far as that is not done."""
    train(training, run_dir, progress, order=order, coverage_range=coverage_range)
    evaluate(training, run_dir, progress)


def _at_once(
    work: Callable[..., Any],
    inputs: Sequence[tuple[Any, ...]],
    what: str,
    jobs: int,
    progress: Progress,
) -> None:
    with progress.bar(f"{what}, {jobs} at once", total=len(inputs)) as bar:
        for _ in workers.finished(work, inputs, jobs):
            bar.advance()


def begin(
    run_dir: Path, recipe_text: str, trainings: Sequence[Training], *, seeds: Sequence[int]
) -> None:
    """Write the resolved recipe, and what its figures come from, into the run folder.

    Raises:
        RunError: it holds one of the trainings with other settings; nothing is written.
    """
    for training in trainings:
        require_same_settings(training, folder_of(training, run_dir))
    write_text(run_dir / "recipe.yaml", recipe_text)
    write_json(run_dir / "environment.json", {**environment(), "seeds": sorted(set(seeds))})


def prepare(
    trainings: Sequence[Training], run_dir: Path, progress: Progress = _SILENT
) -> dict[str, Any]:
    """Prepare the data of every training; equal data is made once and linked.

    Returns:
        the accounting of the last data that were made.
    """
    made: dict[str, Path] = {}
    accounting: dict[str, Any] = {}
    for training in trainings:
        if not training.train:
            continue
        out = folder_of(training, run_dir)
        tokenizer_path = tiny.tokenizer_of(training.base.path)
        asked = training.settings()
        kept = [tokenizer_path, training.base.revision, asked["sources"], asked["template_kwargs"]]
        key = json.dumps(kept, default=str)
        with alone_in(out):
            if key in made:
                _link_data(made[key], out)
                continue
            started = time.monotonic()
            tokenizer = load_tokenizer(tokenizer_path, revision=training.base.revision)
            paths = [make.conversations(each.path, progress) for each in training.sources]
            pairs = zip(training.sources, paths, strict=True)
            accounting = prepare_room.prepare(
                [replace(each, path=path) for each, path in pairs],
                tokenizer,
                out,
                template_kwargs=training.template_kwargs,
                trained_on=trained_on(out),
                progress=progress,
            )
            made[key] = out
            _note_seconds(out, "prepare", time.monotonic() - started)
    return accounting


def _link_data(made: Path, out: Path) -> None:
    """Put the data of one training into another's folder, without a second copy on disk."""
    theirs, ours = made / "data/manifest.json", out / "data/manifest.json"
    if ours.exists() and ours.read_bytes() == theirs.read_bytes():
        return
    require_same_files(digests_of(made / "data"), trained_on(out), out)
    shutil.rmtree(out / "data", ignore_errors=True)
    (out / "data").mkdir(parents=True)
    files = [path for path in (made / "data").iterdir() if path.name != "manifest.json"]
    for path in (*files, *(made / name for name in SHARED_DATA), theirs):
        target = out / path.relative_to(made)
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


def train(
    training: Training,
    run_dir: Path,
    progress: Progress = _SILENT,
    *,
    order: int = 0,
    coverage_range: int | None = None,
) -> dict[str, Any]:
    """Train one training whose data is prepared; return its training.json.

    Args:
        training: what to train.
        run_dir: the run folder.
        progress: where to report.
        order: its method's place in tables.
        coverage_range: distances that its coverage is measured over; its own range by default.

    Raises:
        RunError: the folder holds a training of other settings or from other weights.
    """
    out = folder_of(training, run_dir)
    with ExitStack() as held:
        on_first(lambda: held.enter_context(alone_in(out)))
        return _train_alone(training, out, progress, order, coverage_range)


def _train_alone(
    training: Training, out: Path, progress: Progress, order: int, coverage_range: int | None
) -> dict[str, Any]:
    if (done := on_first(partial(finished, training, out, progress))) is not None:
        return done
    base, base_digest = on_first(partial(_begun, training, out, progress))
    max_position = training.max_position or None
    model = load_model(
        base,
        revision=training.base.revision,
        rope=training.rope,
        max_position=max_position,
        skips=training.max_position > 0,
        dtype=training.base.dtype,
        attn_implementation=training.base.attn_implementation,
        adapter=training.adapter if training.train else None,
        seed=training.seed,
        progress=progress,
    )
    tokenizer = load_tokenizer(base, revision=training.base.revision)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    document = {**training.settings(), "base_digest": base_digest, "order": order}
    document["base_license"] = license_of(base)
    if training.train:
        document["data_sha256"] = _data_sha256(training, out)
        document |= _fit(training, model, tokenizer, out, progress)
    if is_first():
        if training.train:
            reach = coverage_range or training.max_position
            _write_coverage(training, out, reach, progress)
        else:
            save_model(model, tokenizer, out / "model")
        document["model_digest"] = weights_digest(str(out / "model"), progress)
        write_json(out / "training.json", document)
        write_card(out / "model", document, accounting=_accounting(out))
    return on_first(partial(read_json, out / "training.json"))


def join(training: Training, run_dir: Path) -> None:
    """Meet the other processes of `accelerate launch`, if there are some; begin nothing."""
    out = folder_of(training, run_dir) / "checkpoints"
    _ = training_arguments(training.trainer, output_dir=out, seed=training.seed).device


def _begun(training: Training, out: Path, progress: Progress) -> tuple[str, str | None]:
    """Return the base and the digest of its weights; write what the folder is for."""
    base = make.base(training.base.path, progress)
    return base, claim(training, out, base, progress)


def _fit(
    training: Training, model: Any, tokenizer: Any, out: Path, progress: Progress
) -> dict[str, Any]:
    """Fine-tune; return the outcome for training.json."""
    watcher = partial(
        Watching, tokenizer=tokenizer, tasks=training.tasks, every=training.watch, out=out
    )
    outcome = fine_tune(
        model,
        tokenizer,
        ExampleFile(out / "data"),
        out,
        strategies=training.strategies,
        key_bias=training.key_bias,
        packing=training.packing,
        logit_scale=training.logit_scale,
        chunked_loss=training.chunked_loss,
        weights={source.name: source.weight for source in training.sources},
        trainer=training.trainer,
        watchers=[watcher] if training.watch else (),
        seed=training.seed,
        progress=progress,
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    if is_first():
        _note_seconds(out, "train", outcome.seconds)
    return asdict(outcome)


def _write_coverage(training: Training, out: Path, reach: int, progress: Progress) -> None:
    """Measure what training teaches, each source with its strategy and its share of an epoch."""
    examples = ExampleFile(out / "data")
    sampler = VisitSampler(
        examples.lengths,
        [examples.source_names[source] for source in examples.sources],
        {source.name: source.weight for source in training.sources},
        batch_size=None,
        seed=training.seed,
    )
    rng = np.random.default_rng(training.seed)
    rows = sampler.sample(coverage.MAX_SAMPLES, rng)
    measured = coverage.measure(
        training.strategies,
        [examples[int(row)] for row in rows],
        max_position=max(reach, int(examples.lengths.max())),
        seed=training.seed,
        rng=rng,
        max_samples=len(rows),
        progress=progress,
    )
    write_json(out / "coverage.json", {**measured, "num_examples": len(examples)})


def _data_sha256(training: Training, out: Path) -> dict[str, dict[str, str]]:
    """Return the sha256 of each file of each source, as it was when its rows were read."""
    lone = {source.name: Path(source.path).name for source in training.sources}
    return {
        name: {file if len(files) > 1 else lone[name]: digest for file, digest in files}
        for name, files in digests_of(out / "data").items()
    }


def _accounting(out: Path) -> dict[str, Any] | None:
    path = out / "accounting.json"
    return read_json(path) if path.exists() else None


def evaluate(training: Training, run_dir: Path, progress: Progress = _SILENT) -> None:
    """Evaluate one trained model in the tasks that its recipe asks for and that are not done."""
    out = folder_of(training, run_dir)
    todo = {
        name: settings
        for name, settings in training.tasks.items()
        if not _answered(out, name, settings)
    }
    if not todo:
        return
    with alone_in(out):
        generator, tokenizer = load_generator(out / "model", progress)
        made = weights_digest(str(out / "model"), progress)
        for name, settings in todo.items():
            started = time.monotonic()
            path = out / TASKS[name].document
            with alone_in(path.parent):
                found = TASKS[name].evaluate(generator, tokenizer, settings, path.parent, progress)
                write_json(path, {**found, "model_digest": made})
            _note_seconds(out, name, time.monotonic() - started)


def _answered(out: Path, task: str, settings: Any) -> bool:
    """Whether the folder of a training holds a task's results, by the model that lies there now."""
    path, training = out / TASKS[task].document, out / "training.json"
    if not path.exists():
        return False
    document = read_json(path)
    if training.exists() and of_other_weights(document, read_json(training)):
        raise RunError(
            f"{path}: holds answers of an older model than that in {out / 'model'}; delete "
            f"{path.parent} and start again: the model that is there is then evaluated"
        )
    asked = json.loads(json.dumps(asdict(settings)))
    found = defaults(settings) | document["settings"]
    return all(found.get(key) == value for key, value in asked.items())


def _note_seconds(out: Path, stage: str, seconds: float) -> None:
    """Keep how long each stage took, for the report and the end of `run`."""
    path = out / "seconds.json"
    found = read_json(path) if path.exists() else {}
    found.pop("schema_version", None)
    write_json(path, {**found, stage: round(seconds, 2)})


def seconds_by_stage(trainings: Sequence[Training], run_dir: Path) -> dict[str, float]:
    """Return the summed seconds of every stage of a run."""
    total: dict[str, float] = {}
    for training in trainings:
        path = folder_of(training, run_dir) / "seconds.json"
        for stage, seconds in (read_json(path) if path.exists() else {}).items():
            if stage != "schema_version":
                total[stage] = total.get(stage, 0.0) + seconds
    return total
