"""A study or a sweep on one GPU in steps of some minutes: bases, then one method at a time.

Every step is a command of its own that can be stopped and goes on where it was; what is done is not
done again. Nothing is asked of a network.

    python benchmarks/study_gpu.py --list                     # the steps, and which are done
    python benchmarks/study_gpu.py                            # all that are left, then the report
    python benchmarks/study_gpu.py --step pose                # one step, ten minutes at most
    python benchmarks/study_gpu.py --recipe recipes/sweep-gpu.yaml
    python benchmarks/study_gpu.py --recipe recipes/sweep-gpu.yaml --smallest
    python benchmarks/study_gpu.py --recipe recipes/study-gpu.yaml base.path=/models/qwen3-0.6b

A step that is not done when its minutes are over is stopped as by Ctrl-C, which keeps its state;
the same command goes on (exit status 3 says so), and without --step the next round of it begins.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skipalign.evaluation.metrics import wilson_interval
from skipalign.evaluation.tasks import TASKS
from skipalign.recipe import Recipe, load
from skipalign.results import pooled, read_run
from skipalign.tiny import larger

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = ("conversations.jsonl.gz", "prose.jsonl.gz")  # beside a base that is made here
NOT_DONE = 3
MOST_ROUNDS = 40  # of one step
GRACE_SECONDS = 60  # to save after it is told to stop


@dataclass(frozen=True)
class Step:
    """One command, and the files that are there when it is done."""

    name: str
    command: tuple[str, ...]
    leaves: tuple[Path, ...]

    @property
    def done(self) -> bool:
        return bool(self.leaves) and all(path.exists() for path in self.leaves)


def shrunken(recipe: Recipe, folder: Path) -> list[str]:
    """Return what makes a recipe small enough for a test: the same methods, three steps each."""
    window = larger.SHRUNKEN.window
    reach = 64 * window
    changed = [f"name={recipe.name}-shrunken", f"base.path={folder}/base-shrunken-0"]
    for place, file in enumerate(FILES):
        changed += [f"data.{place}.path={folder / file}", f"data.{place}.max_tokens={window}"]
    changed += ["trainer.max_steps=3", "trainer.per_device_train_batch_size=2"]
    changed += ["trainer.bf16=false", "trainer.use_cpu=true", "trainer.warmup_steps=0"]
    if recipe.grid:
        changed += ["grid={trainer.learning_rate: [1.0e-4], trainer.max_steps: [2, 3]}"]
    listed = dict.fromkeys(recipe.origins.get(method, method) for method in recipe.methods)
    for name in listed:
        settings = next(s for m, s in recipe.methods.items() if recipe.origins.get(m, m) == name)
        if any(hasattr(each, "max_position") for each in settings.strategies.values()):
            changed.append(f"methods.{name}.strategy.max_position={reach}")
    changed += [f"evaluation.needle.lengths=[{window}, {2 * window}]"]
    changed += ["evaluation.needle.depths=[0.5]", "evaluation.needle.trials=1"]
    changed += [f"evaluation.perplexity.lengths=[{window}]"]
    return [*changed, "evaluation.perplexity.documents=2", "evaluation.perplexity.stride=16"]


def steps(source: str, overrides: Sequence[str], *, size: str, folder: Path) -> list[Step]:
    """Return the steps of a recipe in their order.

    Args:
        source: the recipe.
        overrides: of the recipe, as the command line takes them.
        size: of bases that are made here, one of `larger.SIZES`.
        folder: where they are made.
    """
    recipe = load(source, overrides)
    python = (sys.executable, "-m")
    found: list[Step] = []
    trainings = recipe.trainings()
    for seed in recipe.seeds:
        place = folder / f"base-{size}-{seed}"
        if any(Path(each.base.path) == place for each in trainings):
            asked = ("--size", size, "--seed", str(seed), "--out", str(folder))
            command = (*python, "skipalign.tiny.larger", *asked)
            found.append(Step(f"base-{seed}", command, (place,)))
    run = Path("runs", recipe.name)
    for method in recipe.methods:
        leaves: list[Path] = []
        for each in trainings:
            if each.method == method:
                documents = [TASKS[name].document for name in each.tasks]
                leaves += [run / each.directory / name for name in ("training.json", *documents)]
        command = (*python, "skipalign", "run", source, *overrides, "--only", method)
        found.append(Step(method, command, tuple(leaves)))
    report = (*python, "skipalign", "report", str(run))
    return [*found, Step("report", report, ())]


@dataclass(frozen=True)
class Tried:
    """One training of a sweep: the method that the grid was over, its keys, what it found."""

    method: str
    learning_rate: float
    steps: int
    correct: int
    n: int

    @property
    def change(self) -> float:
        """Learning rate x steps: Adam moves no weight by much more."""
        return self.learning_rate * self.steps

    @property
    def accuracy(self) -> float:
        return self.correct / self.n


def smallest(tried: Sequence[Tried]) -> dict[str, Tried]:
    """Return, of each method, the smallest change that is not told apart from its best.

    It is the first one whose accuracy is not below the 95% interval of the best.
    """
    found: dict[str, Tried] = {}
    for method in dict.fromkeys(each.method for each in tried):
        own = sorted((each for each in tried if each.method == method), key=lambda e: e.change)
        best = max(own, key=lambda each: each.accuracy)
        low, _ = wilson_interval(best.correct, best.n)
        found[method] = next(each for each in own if each.accuracy >= low)
    return found


def tried_in(recipe: Recipe) -> list[Tried]:
    """Return what a sweep's run folder holds: needles in texts longer than the training rows."""
    found: list[Tried] = []
    for each in read_run(Path("runs", recipe.name)).trainings:
        cells = each.cells.get("needle")
        settings = recipe.methods.get(each.method)
        if not cells or settings is None or not settings.train:
            continue
        window = max(source.max_tokens for source in settings.sources)
        beyond = pooled(
            [cell for tokens, row in cells.items() if tokens > window for cell in row.values()]
        )
        listed, trainer = recipe.origins.get(each.method, each.method), settings.trainer
        rate, steps = float(trainer["learning_rate"]), int(trainer["max_steps"])
        found.append(Tried(listed, rate, steps, beyond.correct, beyond.n))
    return found


def taken(step: Step, minutes: float) -> bool:
    """Run a step for some minutes at most; tell whether it is done.

    Raises:
        SystemExit: it failed.
    """
    command = list(step.command)
    if "skipalign.tiny.larger" in command:
        command += ["--minutes", str(minutes)]
    print(f"step {step.name}: {' '.join(command)}", file=sys.stderr, flush=True)
    process = subprocess.Popen(command, env={"CUDA_VISIBLE_DEVICES": "0", **os.environ})
    try:
        status = process.wait(60 * minutes + (GRACE_SECONDS if "--minutes" in command else 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
        process.send_signal(signal.SIGINT)
        process.wait(GRACE_SECONDS)
        if isinstance(stop, KeyboardInterrupt):
            raise
        return False
    if status not in (0, NOT_DONE):
        raise SystemExit(f"step {step.name} ended with {status}; what it said stands above")
    return status == 0


def main() -> None:
    """List the steps, take one, or take all that are left."""
    given = _arguments()
    overrides = list(given.overrides)
    size = "shrunken" if given.shrink else given.size
    if given.shrink:
        overrides += shrunken(load(given.recipe, overrides), given.bases)
    elif (given.size, given.bases) != ("60m", larger.FOLDER):
        overrides.append(f"base.path={given.bases}/base-{given.size}-{{seed}}")
        overrides.append(f"architecture={RECIPES}/architectures/made/stories-{given.size}.json")
        overrides += [f"data.{place}.path={given.bases / file}" for place, file in enumerate(FILES)]
    if given.smallest:
        for name, each in smallest(tried_in(load(given.recipe, overrides))).items():
            print(
                f"{name:16s} learning rate {each.learning_rate:g}, {each.steps} steps: "
                f"{each.accuracy:.2f} of {each.n} needles beyond the window"
            )
        return
    listed = steps(given.recipe, overrides, size=size, folder=given.bases)
    if given.list:
        for step in listed:
            print(f"{'done' if step.done else 'left':5s} {step.name:44s} {' '.join(step.command)}")
        return
    if given.step is None:
        left = [step for step in listed if not step.done]
        for step in left:
            if not any(taken(step, given.minutes) for _ in range(MOST_ROUNDS)):
                raise SystemExit(f"step {step.name}: not done after {MOST_ROUNDS} rounds of it")
        return
    chosen = [step for step in listed if step.name == given.step]
    if not chosen:
        raise SystemExit(f"no step {given.step!r}; --list names them")
    if not chosen[0].done and not taken(chosen[0], given.minutes):
        print("not done yet; the same command goes on", file=sys.stderr)
        raise SystemExit(NOT_DONE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="a.b=value, of the recipe")
    parser.add_argument("--recipe", default=str(RECIPES / "study-1k.yaml"))
    parser.add_argument("--list", action="store_true", help="the steps, and which are done")
    parser.add_argument("--smallest", action="store_true", help="of a sweep: what keeps the gain")
    parser.add_argument("--step", help="this one alone")
    parser.add_argument("--minutes", type=float, default=9, help="of one step without a stop")
    parser.add_argument("--size", choices=larger.SIZES, default="60m", help="of the base")
    parser.add_argument("--bases", type=Path, default=larger.FOLDER, help="where they are made")
    parser.add_argument("--shrink", action="store_true", help="the same steps, in seconds each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
