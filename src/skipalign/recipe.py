"""YAML recipe -> typed, frozen settings -> trainings: the only room that reads YAML files.

A recipe names a base, data, a RoPE extension, a strategy and a `trainer:` block. With `methods:`
it holds several trainings, once for every seed:

    base: tiny
    data: tiny
    rope: {type: ntk, factor: 64}
    trainer: {max_steps: 300}
    seeds: [0, 1, 2]
    methods:
      normal: {strategy: contiguous}
      skipalign: {strategy: {name: skipalign, max_position: 8192}}

`base: tiny-{seed}` gives every seed a base of its own: {seed} is replaced by the seed.

A method replaces what it gives. Mappings are merged key by key instead, unless the method's own
says what it is (a base's `path`, a strategy's or key bias's `name`, a rope's `type`).

`grid:` makes of each method one for every combination of values, named after them:

    strategy: skipalign
    grid:
      strategy.skip_fraction: [0, 0.25, 0.5, 0.75, 1]
      strategy.max_position: [256, 512, 1024]

Where no sample skips (skip_fraction 0), the other keys of the strategy change nothing: that
combination is run once per seed, with the first of their values, and stands for all.

Paths are looked up from the working directory first, then from the recipe's folder; what is found
in neither stays as it is, a hub id.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign import arguments, grid, tiny
from skipalign.errors import RecipeError, did_you_mean
from skipalign.gate import Gate
from skipalign.readers import DATA_FILE
from skipalign.schema import Settings, Shared, plain, read, unknown_key
from skipalign.yaml_tree import (
    merged,
    overridden,
    read_yaml,
    shown,
    shown_key,
    spelled_out,
    unused,
    write_yaml,
)

if TYPE_CHECKING:
    from skipalign.resolved import Training

_LARGEST = 2**17  # bytes of a recipe: YAML of a MB is read for half a minute
_METHOD_NAME = re.compile("[a-z0-9]([a-z0-9.-]*[a-z0-9-])?")
_LONGEST_NAME = 100  # file systems take 255 bytes
_RUN_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe with all its defaults, and every method with all that it inherits.

    Args:
        where: the file, for messages.
        name: of the run folder.
        seeds: of the trainings.
        methods: at least one, by name.
        several: whether the recipe lists methods, rather than being one.
        grid: the values of every key that a grid varies.
        gate: what a method may lose in short ability.
        origins: for each of `methods` that a grid made, the listed method ("" if none is listed).
        tasks: the settings of each task to evaluate, by its name.
        watch: tasks asked in training, and after how many steps each time.
    """

    where: str
    name: str
    seeds: tuple[int, ...]
    methods: Mapping[str, Settings]
    several: bool
    tasks: Mapping[str, Any]
    watch: Mapping[str, int] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    gate: Gate | None = None

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """Return the seeds that a method is run with: one where they would all give the same."""
        settings = self.methods[method]
        return self.seeds if settings.train or settings.base.by_seed else self.seeds[:1]

    def with_seeds(self, count: int) -> "Recipe":
        """Return the recipe with its first `count` seeds; where it has fewer, 0 to count - 1."""
        seeds = self.seeds[:count] if count <= len(self.seeds) else tuple(range(count))
        return dataclasses.replace(self, seeds=seeds)

    def chosen(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the methods of these names; the name of a listed method stands for its grid.

        Raises:
            RecipeError: a name that is neither.
        """
        for name in names:
            known = [*self.methods, *(set(self.origins.values()) - {""})]
            if name not in known:
                raise RecipeError(
                    f"no method {name!r}; {did_you_mean(name, known)}"
                    f"the recipe has {', '.join(self.methods)}"
                )
        return tuple(
            method for method in self.methods if {method, self.origins.get(method)} & set(names)
        )

    def resolved(self) -> str:
        """Return the recipe as YAML, defaults included; it reads as this same recipe."""
        methods: dict[str, Any] = {}
        for name, settings in self.methods.items():
            methods.setdefault(self.origins.get(name, name), plain(settings))
        first = next(iter(methods.values()))
        common = {
            key: value
            for key, value in first.items()
            if all(each[key] == value for each in methods.values())
        }
        tasks = {name: plain(task) for name, task in self.tasks.items()}
        tree = {"name": self.name, **common, "evaluation": tasks, "seeds": list(self.seeds)}
        if self.gate is not None:
            tree["gate"] = plain(self.gate)
        if self.watch:
            tree["watch"] = plain(self.watch)
        if self.grid:
            tree["grid"] = plain(self.grid)
        if self.several:
            tree["methods"] = {
                name: {key: value for key, value in each.items() if key not in common}
                for name, each in methods.items()
            }
        return write_yaml(tree)

    def trainings(self) -> "tuple[Training, ...]":
        """Return one training for every method and seed.

        Raises:
            RecipeError: a `trainer:` key that is unknown or not the recipe's to set.
        """
        pairs = [(method, seed) for method in self.methods for seed in self.seeds_of(method)]
        return tuple(self._training(method, seed, len(pairs) == 1) for method, seed in pairs)

    def _training(self, method: str, seed: int, alone: bool) -> "Training":
        from skipalign import resolved

        settings = self.methods[method]
        inside = f"methods.{method}." if self.several else ""
        arguments.check(settings.trainer, f"{self.where}: {inside}trainer")
        return resolved.Training(
            method=method,
            seed=seed,
            directory="" if alone else f"{method}/seed-{seed}",
            base=resolved.Base(**settings.base.of(seed).model_dump()),
            architecture=settings.architecture,
            sources=settings.sources,
            strategies=settings.strategies,
            rope=settings.rope,
            key_bias=settings.key_bias,
            packing=settings.packing,
            logit_scale=settings.logit_scale,
            chunked_loss=settings.chunked_loss,
            adapter=settings.adapter,
            trainer=settings.trainer,
            template_kwargs=settings.template_kwargs,
            train=settings.train,
            watch=self.watch,
            tasks={
                name: _with_template(task, settings.template_kwargs)
                for name, task in self.tasks.items()
            },
        )


def _with_template(task: Any, template_kwargs: Mapping[str, Any]) -> Any:
    """Give the template in evaluation what it takes in training, unless the task says else."""
    if not hasattr(task, "template_kwargs") or task.template_kwargs:
        return task
    return dataclasses.replace(task, template_kwargs=template_kwargs)


def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a packaged recipe by its name, such as `tiny`.

    Args:
        source: path, or name of a packaged recipe where there is no such file.
        overrides: `a.b=value`, the value as YAML; a number chooses from a list, as in
            `data.0.max_tokens=512`. They change the recipe's own keys, which a method may
            replace; `methods.NAME.a=value` changes a method's.

    Raises:
        RecipeError: names the file, the key path, what was found and what is required.
    """
    path = _recipe_file(source)
    where = str(source)
    if DATA_FILE.search(path.name) and path.suffix != ".json":  # YAML holds JSON
        raise RecipeError(
            f"{where}: a data file; a recipe in YAML is required - skipalign init MODEL {where} "
            "writes one"
        )
    tree = read_yaml(_text_of(path, where), where)
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: holds {shown(tree)}; a recipe is a mapping, as in base: tiny")
    tree = spelled_out(tree)
    for override in overrides:
        tree = spelled_out(overridden(tree, override))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")
    tree.setdefault("name", stem or "recipe")
    return _recipe(_with_paths(tree, path.parent, _seeds_in(tree)), where)


def _text_of(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"{where}: cannot be read ({error.strerror}); give a file") from None
    if len(text) > _LARGEST:
        raise RecipeError(f"{where}: has over {_LARGEST:,} bytes, as no recipe does; give another")
    return text


def _recipe(tree: dict[str, Any], where: str) -> Recipe:
    """Part the tree into what is shared and what methods decide, and read both."""
    _check_keys(tree, where)
    own = {key: value for key, value in tree.items() if key in Settings.model_fields}
    rest = {key: value for key, value in tree.items() if key not in own}
    shared: Shared = read(Shared, rest, where)
    _check_shared(shared, where)
    dead = unused(own, list(shared.methods.values())) if shared.methods else None
    if dead is not None:
        raise RecipeError(
            f"{where}: {dead}: every method has its own, so this one is not used; remove it, or "
            f"change methods.NAME.{dead}"
        )
    methods: dict[str, Settings] = {}
    origins: dict[str, str] = {}
    for listed, given in (shared.methods or {"": {}}).items():
        for name, settings in _spread(listed, own, given, shared.grid, where):
            methods[name] = settings
            origins |= {name: listed} if shared.grid else {}
    if shared.gate is not None and (against := shared.gate.against) not in methods:
        raise RecipeError(
            f"{where}: gate.against: no method {shown(against)}; "
            f"{did_you_mean(against, [*methods])}the recipe has {', '.join(methods)}"
        )
    return Recipe(
        where=where,
        name=shared.name,
        seeds=shared.seeds or (shared.seed or 0,),
        methods=methods,
        several=shared.methods is not None,
        tasks=shared.evaluation.tasks,
        watch=shared.watch,
        grid=shared.grid,
        origins=origins,
        gate=shared.gate,
    )


def _check_keys(tree: Mapping[str, Any], where: str) -> None:
    known = {**Shared.model_fields, **Settings.model_fields}
    for key in tree:
        if key not in known:
            found = unknown_key(str(key), known)
            if str(key) in arguments.types_by_key():
                found = f"no such key; it stands below trainer: trainer.{key}"
            raise RecipeError(f"{where}: {shown_key(key)}: {found}")


def _spread(
    listed: str, own: dict[str, Any], given: dict[str, Any], axes: grid.Axes, where: str
) -> Iterator[tuple[str, Settings]]:
    """Yield a listed method ("" if none is listed) under its name, or all that a grid makes of it.

    Raises:
        RecipeError: settings that cannot be used, or two combinations of one name.
    """
    prefixes = dict.fromkeys(given, f"methods.{listed}.")
    if not axes:
        settings: Settings = read(Settings, merged(own, given), where, prefixes)
        yield listed or _name_of(settings), settings
        return
    seen: dict[str, bool] = {}
    for combination in grid.combinations(axes):
        tree = merged(own, spelled_out(grid.with_values(given, combination, where)))
        settings = read(Settings, tree, f"{where}: grid {grid.name_of(combination)}", prefixes)
        if stands_for_all := _never_skips(settings):
            combination = {
                path: value
                for path, value in combination.items()
                if path == "strategy.skip_fraction" or not path.startswith("strategy.")
            }
        name = "-".join(filter(None, (listed, grid.name_of(combination))))
        if name not in seen:
            yield name, settings
        elif not stands_for_all:
            raise RecipeError(f"{where}: grid: two combinations are both named {name}; remove one")
        seen[name] = stands_for_all


def _never_skips(settings: Settings) -> bool:
    """Tell whether positions are contiguous whatever else the strategy says."""
    skips = [getattr(each, "skip_fraction", None) for each in settings.strategies.values()]
    # An extension without a factor takes it from max_position, which then matters still.
    return set(skips) == {0} and getattr(settings.rope, "factor", 1) is not None


def _check_shared(shared: Shared, where: str) -> None:
    if not _RUN_NAME.fullmatch(shared.name) or len(shared.name) > _LONGEST_NAME:
        raise RecipeError(
            f"{where}: name: is {shown(shared.name)}; it names the run folder and must be letters, "
            f"digits, '.', '_' and '-', the first a letter or digit, {_LONGEST_NAME} at most"
        )
    for name, given in (shared.methods or {}).items():
        if not _METHOD_NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise RecipeError(
                f"{where}: methods: {shown(name)} names a folder and must be small letters, "
                f"digits, '-' and '.', which does not end it, {_LONGEST_NAME} at most; rename it"
            )
        for key in given.keys() & Shared.model_fields.keys():
            raise RecipeError(f"{where}: methods.{name}.{key}: is one for all methods; move it up")
    if shared.seed is not None and shared.seeds is not None:
        raise RecipeError(f"{where}: both seed and seeds are given; keep one of them")
    for task in shared.watch:
        if task not in shared.evaluation.tasks:
            raise RecipeError(
                f"{where}: watch.{shown_key(task)}: `evaluation` has no such task; give it there"
            )
    seeds = shared.seeds or ()
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"{where}: seeds: {str(list(seeds))[:80]} has one twice; remove it")


def _name_of(settings: Settings) -> str:
    """Return what a recipe without methods is called in tables."""
    if not settings.train:
        return "base"
    names = dict.fromkeys(strategy.name for strategy in settings.strategies.values())
    words = ["normal" if name == "contiguous" else name for name in names]
    added = {"bias": settings.key_bias, "packed": settings.packing, "scaled": settings.logit_scale}
    words += [word for word, value in added.items() if value is not None]
    return "-".join(words + ([settings.adapter.type] if settings.adapter else []))


# ------------------------------------------------------------------------------- paths


def _with_paths(tree: dict[str, Any], folder: Path, seeds: Sequence[Any]) -> dict[str, Any]:
    """Return the tree with the paths of base, data and texts found, in methods too."""
    found = _with_path(dict(tree), "architecture", folder, lambda _: None)
    if isinstance(base := found.get("base"), dict):
        found["base"] = _with_path(base, "path", folder, tiny.base_place, seeds)
    if isinstance(data := found.get("data"), list):
        found["data"] = [_with_path(each, "path", folder, tiny.data_place) for each in data]
    if isinstance(tasks := found.get("evaluation"), dict):
        found["evaluation"] = {
            name: _with_path(
                _with_path(task, "haystack", folder, lambda _: None), "data", folder, lambda _: None
            )
            for name, task in tasks.items()
        }
    if isinstance(methods := found.get("methods"), dict):
        found["methods"] = {
            name: _with_paths(given, folder, seeds) if isinstance(given, dict) else given
            for name, given in methods.items()
        }
    return found


def _seeds_in(tree: dict[str, Any]) -> list[Any]:
    """Return the seeds as they stand in the file, not checked yet."""
    seeds: Any = tree.get("seeds")
    return seeds if isinstance(seeds, list) and seeds else [tree.get("seed") or 0]


def _with_path(
    node: Any,
    key: str,
    folder: Path,
    embedded: Callable[[str], Path | None],
    seeds: Sequence[Any] = (0,),
) -> Any:
    """Put the recipe's folder before a path that is there, for every seed, and not here."""
    if not isinstance(node, dict) or not isinstance(path := node.get(key), str):
        return node
    names = [path.replace("{seed}", str(seed)) for seed in seeds]
    if any(embedded(name) for name in names):
        return node
    try:
        paths = [Path(name).expanduser() for name in names]
        moved = all(not each.exists() and (folder / each).exists() for each in paths)
        return {**node, key: str(folder / Path(path).expanduser())} if moved else node
    except (OSError, RuntimeError, ValueError):  # no path here; the room that reads it says so
        return node


def _recipe_file(source: str | Path) -> Path:
    """Return the file, or the packaged recipe of that name where there is none."""
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:
        raise RecipeError(f"{source}: no path ({error}); give a recipe in YAML") from None
    packaged = packaged_recipes()
    name = path.name.removesuffix(".yaml")
    by_name = path.parent in (Path(), Path("recipes"))
    if by_name and name in packaged:
        return packaged[name]
    if by_name and path.suffix in ("", ".yaml"):
        known = ", ".join(packaged) or "none"
        raise RecipeError(f"{source}: no such file, nor a packaged recipe (known: {known})")
    raise RecipeError(f"{source}: no such file; give a recipe in YAML")


def packaged_recipes() -> dict[str, Path]:
    """Return the recipes that come with skipalign, by name."""
    inside = Path(str(resources.files("skipalign"))) / "recipes"
    # A wheel holds them inside the package; in a checkout they lie at its root.
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
