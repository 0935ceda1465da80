"""Tasks asked of a model while it trains: how a score moves, before the run has ended."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from skipalign.engine import SkipTrainer
from skipalign.errors import RecipeError
from skipalign.evaluation.tasks import TASKS
from skipalign.files import append_json_line, keep_json_lines
from skipalign.transformers_engine import TransformersGenerator

LINES = "watch.jsonl"
FOLDERS = "watch"


class Watching(TrainerCallback):
    """Evaluate tasks every so many steps, in OUT/watch; keep a line of scores in OUT/watch.jsonl.

    Positions are natural and there is no key bias, as in every evaluation. The random state of the
    training is left as it was, so that a run ends with the same weights, watched or not.

    Args:
        engine: what trains; it reports the scores to whatever `trainer.report_to` names.
        tokenizer: of the model.
        tasks: settings of each task, by its name.
        every: steps between two evaluations of a task, by its name.
        out: folder of the training.

    Raises:
        RecipeError: the weights are in shards, which no task can be asked of.
    """

    def __init__(
        self,
        engine: SkipTrainer,
        tokenizer: Any,
        tasks: Mapping[str, Any],
        *,
        every: Mapping[str, int],
        out: Path,
    ) -> None:
        if engine.is_fsdp_enabled or engine.is_deepspeed_enabled:
            raise RecipeError(
                "watch: FSDP and DeepSpeed hold the weights in shards, which no task can be asked "
                "of in training; remove watch, and evaluate the model afterwards"
            )
        self.engine = engine
        self.tokenizer = tokenizer
        self.tasks = {name: tasks[name] for name in every}
        self.every = every
        self.out = out

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the scores of steps that a resumed run will do again."""
        if not self.engine.is_world_process_zero():
            return
        keep_json_lines(self.out / LINES, lambda line: line["step"] <= state.global_step)
        for folder in (self.out / FOLDERS).glob("step-*"):
            # Its trials are of weights that are lost; a GPU gives others, which would be refused.
            if int(folder.name.removeprefix("step-")) > state.global_step:
                shutil.rmtree(folder)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the tasks whose step it is."""
        due = [name for name in self.tasks if state.global_step % self.every[name] == 0]
        if due and self.engine.is_world_process_zero():
            with torch.random.fork_rng():
                for name in due:
                    self._ask(name, state.global_step)
        if due:
            self.engine.accelerator.wait_for_everyone()

    def _ask(self, name: str, step: int) -> None:
        task = TASKS[name]
        model: Any = self.engine.accelerator.unwrap_model(self.engine.model)
        generator = TransformersGenerator(model, self.tokenizer)
        folder = self.out / FOLDERS / f"step-{step}" / name
        found = task.evaluate(generator, self.tokenizer, self.tasks[name], folder)
        scores = {
            f"{name}_{cell[task.against]}" if task.against else name: float(cell["mean"])
            for cell in task.rows(found)
        }
        append_json_line(self.out / LINES, {"step": step, "task": name, "scores": scores})
        self.engine.log(scores)
