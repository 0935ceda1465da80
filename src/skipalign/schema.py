"""A recipe's plain tree -> typed, frozen settings; every mistake named with its key path.

The strategies, key biases, RoPE extensions and tasks are those of their rooms: their schemas are
made from the fields of their dataclasses, so a new one there is a new one here.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, cast
from typing import get_type_hints as hints_of

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from skipalign.adapters import ADAPTERS, Adapter, refuse_prompt_learning
from skipalign.errors import RecipeError, did_you_mean
from skipalign.evaluation.tasks import TASKS
from skipalign.gate import Gate
from skipalign.key_bias import KEY_BIASES, KeyBias
from skipalign.logit_scale import check_logit_scale
from skipalign.packing import Packing
from skipalign.positions import STRATEGIES, Contiguous, Strategy
from skipalign.prepare import Source
from skipalign.rope import ROPE_EXTENSIONS, NoExtension, RopeExtension
from skipalign.tiny.corpus import NAMES
from skipalign.yaml_tree import shown, shown_key


class _Strict(BaseModel):
    """A mapping of known keys; for another one the nearest is named."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: Any) -> Any:
        for key in cast(dict[Any, Any], value) if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                found = unknown_key(str(key), cls.model_fields)
                raise PydanticCustomError("unknown_key", "{found}", {"key": key, "found": found})
        return value


class _Mirror(_Strict):
    """The fields of another room's dataclass, read from YAML; `built` is that dataclass."""

    target: ClassVar[type[Any]]

    @property
    def built(self) -> Any:
        names = [field.name for field in dataclasses.fields(self.target)]
        return self.target(**{name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _accept(self) -> Self:
        _ = self.built  # its own checks raise RecipeError, which then names this place
        return self


class _TaskMirror(_Mirror):
    """A task's settings; `keys: tiny` and `values: tiny` are the names of the tiny corpus."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = cast(dict[str, Any], value)
        return {
            key: NAMES.get(key, each) if each == "tiny" else each for key, each in given.items()
        }


def _mirror(
    target: type[Any], tag: str | None = None, base: type[_Mirror] = _Mirror, **more: Any
) -> type[_Mirror]:
    """Return the schema of a dataclass; `tag` is the key that holds its word in a recipe."""
    hints = hints_of(target)
    fields: dict[str, Any] = {}
    if tag is not None:
        fields[tag] = (Literal[getattr(target, tag)], ...)
    for field in dataclasses.fields(target):
        default = ... if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = Field(default_factory=field.default_factory)
        fields[field.name] = (hints[field.name], default)
    model = create_model(target.__name__, __base__=base, **fields, **more)
    model.target = target
    return model


def _built(model: Any) -> Any:
    return model.built


def _logit_scale(value: Any) -> Any:
    check_logit_scale(value)
    return value


def _one_of(registry: Mapping[str, type[Any]], tag: str) -> Any:
    """Return the discriminated union of a registry; what it reads is the dataclass itself."""
    models = tuple(_mirror(each, tag) for each in registry.values())
    return Annotated[Union[models], Field(discriminator=tag), AfterValidator(_built)]  # noqa: UP007


if TYPE_CHECKING:
    _Strategy = Strategy
    _KeyBias = KeyBias
    _Rope = RopeExtension
    _Data = Any
    _Packing = Packing
    _LogitScale = float | str
    _Gate = Gate
    _Adapter = Adapter
else:
    _Strategy = _one_of(STRATEGIES, "name")
    _KeyBias = _one_of(KEY_BIASES, "name")
    _Rope = _one_of(ROPE_EXTENSIONS, "type")
    _Data = _mirror(Source, strategy=(_Strategy | None, None))
    _Packing = Annotated[_mirror(Packing), AfterValidator(_built)]
    _LogitScale = Annotated[Any, AfterValidator(_logit_scale)]
    _Gate = Annotated[_mirror(Gate), AfterValidator(_built)]
    _Adapter = Annotated[_one_of(ADAPTERS, "type"), BeforeValidator(refuse_prompt_learning)]


class Base(_Strict):
    """The checkpoint to start from.

    `path`: `tiny` or `tiny-N`, a local folder, or a hub id; in it {seed} is the training's seed.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str = "sdpa"

    @property
    def by_seed(self) -> bool:
        """Whether every seed has a base of its own."""
        return "{seed}" in self.path

    def of(self, seed: int) -> Self:
        """Return the base of one seed."""
        return self.model_copy(update={"path": self.path.replace("{seed}", str(seed))})


class Settings(_Strict):
    """What one method decides."""

    base: Base
    architecture: str | None = None
    data: tuple[_Data, ...] = Field(min_length=1)
    rope: _Rope = NoExtension()
    strategy: _Strategy | None = None
    key_bias: _KeyBias | None = None
    packing: _Packing | None = None
    logit_scale: _LogitScale | None = None
    chunked_loss: bool = False
    adapter: _Adapter | None = None
    trainer: dict[str, Any] = {}
    template_kwargs: dict[str, Any] = {}
    train: bool = True

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        names = [source.name for source in self.data]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two sources of data are named {shown(twice)}; give each its own")
        for source in self.data:
            if source.weight is not None and source.weight <= 0:
                raise ValueError(
                    f"data: the weight of {shown(source.name)} is {source.weight:g}; it is a share "
                    "of the tokens and must be above 0 - remove the source instead"
                )
        if (
            self.train
            and self.strategy is None
            and any(source.strategy is None for source in self.data)
        ):
            raise ValueError(
                "strategy is missing; name one, such as strategy: {name: skipalign, "
                "max_position: 16384}, or strategy: contiguous for normal fine-tuning"
            )
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data of this method as the rooms take them."""
        return tuple(source.built for source in self.data)

    @property
    def strategies(self) -> dict[str, Strategy]:
        """The position strategy of every source, by its name; none is needed without training."""
        plain_one = self.strategy or Contiguous()
        return {source.name: source.strategy or plain_one for source in self.data}


class _Evaluation(_Strict):
    """The tasks that trained models are evaluated in; the fields of `Evaluation` are TASKS."""

    @property
    def tasks(self) -> dict[str, Any]:
        """The settings of every task that is asked for, by its name."""
        found = {name: getattr(self, name) for name in TASKS}
        return {name: settings for name, settings in found.items() if settings is not None}


def _task_field(settings: type[Any]) -> tuple[Any, None]:
    read_as: Any = Annotated[_mirror(settings, base=_TaskMirror), AfterValidator(_built)]
    return read_as | None, None


_TASK_FIELDS: dict[str, Any] = {name: _task_field(task.settings) for name, task in TASKS.items()}
Evaluation = create_model("Evaluation", __base__=_Evaluation, **_TASK_FIELDS)


_Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes


class Shared(_Strict):
    """What is one for all methods; `methods` are what each of them overrides, still plain."""

    name: str
    seed: _Seed | None = None
    seeds: tuple[_Seed, ...] | None = Field(default=None, min_length=1)
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    evaluation: Evaluation = Evaluation()  # pyright: ignore[reportInvalidTypeForm]
    watch: dict[str, Annotated[int, Field(ge=1)]] = {}
    gate: _Gate | None = None
    methods: dict[str, dict[str, Any]] | None = Field(default=None, min_length=1)


def read_task(task: str, values: Mapping[str, Any], where: str) -> Any:
    """Return the settings of an evaluation task from plain values.

    Raises:
        RecipeError: an unknown key or a value that cannot be used.
    """
    return read(_mirror(TASKS[task].settings, base=_TaskMirror), dict(values), where).built


def read_settings(target: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Return a dataclass of settings from plain values.

    Raises:
        RecipeError: an unknown key or a value that cannot be used.
    """
    return read(_mirror(target), dict(values), where).built


def plain(value: Any) -> Any:
    """Return settings as YAML holds them, so that they read as the same settings."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        tags = [tag for tag in ("name", "type") if hasattr(value, tag) and tag not in fields]
        return {name: plain(getattr(value, name)) for name in (*tags, *fields)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------- messages


def read(model: type[Any], tree: Any, where: str, prefixes: Mapping[str, str] | None = None) -> Any:
    """Return `tree` as `model`.

    Args:
        model: a class of this room.
        tree: plain data.
        where: the file, for messages.
        prefixes: what stands before a first key in the file, where the tree was merged.

    Raises:
        RecipeError: the first mistake, with file and key path.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        # A mistyped key is also a missing one, and the first says more; of the alternatives of a
        # value the one that was understood furthest.
        found = [(each, _key_path(each, tree)) for each in error.errors()]
        first, path = min(found, key=lambda one: (one[0]["type"] != "unknown_key", -len(one[1])))
        start = (prefixes or {}).get(path[0], "") if path else ""
        place = f"{start}{'.'.join(path)}: " if path else ""
        raise RecipeError(f"{where}: {place}{_problem(first)}") from None


def _key_path(error: ErrorDetails, tree: Any) -> list[str]:
    """Return the keys as they stand in the file, without pydantic's names of alternatives."""
    path: list[str] = []
    node = tree
    for step in error["loc"]:
        children = dict(enumerate(node)) if isinstance(node, (list, tuple)) else node
        if isinstance(children, dict) and step in children:
            path.append(shown_key(step))
            node = cast(Any, children[step])
    if error["type"] == "missing":
        path.append(shown_key(error["loc"][-1]))
    if error["type"] == "unknown_key":
        path.append(shown_key(error.get("ctx", {})["key"]))
    return path


def _problem(error: ErrorDetails) -> str:
    """Return what was found and what is required."""
    context = error.get("ctx", {})
    match error["type"]:
        case "unknown_key":
            return str(context["found"])
        case "missing":
            return "is missing; it is required"
        case "union_tag_invalid":
            names = re.findall("'([^']*)'", context["expected_tags"])
            tag = str(context["tag"])
            return f"{shown(tag)} is unknown; {did_you_mean(tag, names)}known: {', '.join(names)}"
        case "union_tag_not_found":
            return f"does not say which it is; give its {context['discriminator'].strip(chr(39))}"
        case "value_error":
            return str(context["error"])
        case "too_short":
            return f"holds {context['actual_length']}; at least {context['min_length']} is required"
        case _:
            required = error["msg"].replace("Input should", "it should")
            required = required.replace("dictionary", "mapping").replace("tuple", "list")
            return f"is {shown(error['input'])}; {required[:1].lower()}{required[1:]}"


def unknown_key(found: str, known: Iterable[str]) -> str:
    """Return the message for a key that is none of `known`."""
    known = list(known)
    return f"no such key; {did_you_mean(found, known)}known: {', '.join(known)}"
