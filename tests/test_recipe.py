"""Recipes: files, methods and seeds, paths, overrides, what is resolved, their trainings."""

import dataclasses
from pathlib import Path

import pytest

from skipalign import recipe as room
from skipalign import tiny
from skipalign.errors import RecipeError
from skipalign.key_bias import GapBias
from skipalign.packing import Packing
from skipalign.positions import Contiguous, PoSE, SkipAlign
from skipalign.recipe import load, packaged_recipes
from skipalign.rope import Ntk

ONE = """
base: some/model
data: {path: chats.jsonl, max_tokens: 512}
rope: {type: ntk, factor: 8}
strategy: {name: skipalign, max_position: 4096}
trainer: {max_steps: 5, learning_rate: 1e-4}
evaluation: {needle: {lengths: [64, 128]}}
"""
MANY = """
base: tiny
data: tiny
seeds: [3, 4]
trainer: {max_steps: 300}
strategy: {name: skipalign, max_position: 4096}
evaluation:
  needle: {lengths: [64], trials: {64: 2}}
  stretch: {distances: [512], context_length: 128}
methods:
  base: {train: false}
  normal: {strategy: contiguous}
  skipalign:
  skipalign-bias: {strategy: {cuts_within: 6}, key_bias: gap, trainer: {max_steps: 5}}
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def write(text: str, name: str = "own.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as found:
        load(write(text), overrides)
    return str(found.value)


def test_a_recipe_of_one_training():
    recipe = load(write(ONE))
    assert recipe.name == "own"
    assert recipe.seeds == (0,)
    assert list(recipe.methods) == ["skipalign"]
    settings = recipe.methods["skipalign"]
    assert settings.base.path == "some/model"
    assert settings.rope == Ntk(factor=8)
    assert settings.trainer == {"max_steps": 5, "learning_rate": 1e-4}
    assert list(recipe.tasks) == ["needle"]


def test_a_recipe_without_methods_is_named_after_what_it_does():
    for override, name in (
        ("strategy=contiguous", "normal"),
        ("key_bias=gap", "skipalign-bias"),
        ("train=false", "base"),
    ):
        assert list(load(write(ONE), [override]).methods) == [name]


def test_methods_inherit_and_override():
    methods = load(write(MANY)).methods
    assert list(methods) == ["base", "normal", "skipalign", "skipalign-bias"]
    assert methods["normal"].strategy == Contiguous()
    assert methods["skipalign"].strategy == SkipAlign(max_position=4096)
    ours = methods["skipalign-bias"]
    assert ours.strategy == SkipAlign(max_position=4096, cuts_within=6)
    assert ours.key_bias == GapBias()
    assert [each.trainer["max_steps"] for each in methods.values()] == [300, 300, 300, 5]


def test_overrides_win_over_the_file_and_lose_to_a_method():
    recipe = load(
        write(MANY),
        [
            "trainer.max_steps=7",
            "name=other",
            "methods.normal.strategy={name: pose, max_position: 9}",
        ],
    )
    assert recipe.name == "other"
    assert recipe.methods["skipalign"].trainer["max_steps"] == 7
    assert recipe.methods["skipalign-bias"].trainer["max_steps"] == 5
    assert recipe.methods["normal"].strategy == PoSE(max_position=9)


def test_an_override_may_use_short_forms():
    recipe = load(write(ONE), ["base=tiny", "base.dtype=bfloat16", "data.0.weight=2", "rope=none"])
    assert recipe.methods["skipalign"].base.dtype == "bfloat16"
    assert recipe.methods["skipalign"].base.path == "tiny"
    assert recipe.methods["skipalign"].sources[0].weight == 2


@pytest.mark.parametrize("text", [ONE, MANY], ids=["one", "many"])
def test_the_resolved_recipe_reads_as_the_same_recipe(text: str):
    recipe = load(write(text), ["trainer.adam_epsilon=1e-9"])
    again = load(write(recipe.resolved(), "resolved.yaml"))
    assert dataclasses.replace(again, where=recipe.where) == recipe
    assert again.resolved() == recipe.resolved()


def test_the_resolved_recipe_names_embedded_files_and_holds_the_defaults():
    text = load(write(MANY)).resolved()
    assert str(tiny.FOLDER) not in text
    assert "path: tiny" in text
    assert "law: stars_and_bars" in text


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_packaged_recipes_resolve_to_themselves(name: str):
    recipe = load(name)
    again = load(write(recipe.resolved(), f"{recipe.name}.yaml"))
    assert dataclasses.replace(again, where=recipe.where) == recipe


def test_a_packaged_recipe_is_found_by_its_name_unless_there_is_such_a_file():
    for name in ("tiny", "tiny.yaml", "recipes/tiny.yaml"):
        assert load(name).name == "tiny"
    Path("tiny").write_text(ONE)
    assert load("tiny").methods["skipalign"].base.path == "some/model"
    for name in ("nosuch", "other/tiny.yaml", "nosuch.yaml", "tiny.yml"):
        with pytest.raises(RecipeError, match="no such file"):
            load(name)


def test_paths_are_looked_up_here_then_beside_the_recipe(elsewhere: Path):
    beside = elsewhere / "beside"
    beside.mkdir()
    text = ONE.replace("lengths:", "haystack: prose.txt, lengths:")
    text = text.replace("{needle:", "{babilong: {data: prose.txt}, needle:")
    (beside / "own.yaml").write_text(text + "methods: {a: {data: other.jsonl}, b: {}}\n")
    for name in ("chats.jsonl", "other.jsonl", "prose.txt"):
        (beside / name).touch()
    recipe = load(beside / "own.yaml")
    assert recipe.methods["b"].sources[0].path == str(beside / "chats.jsonl")
    assert recipe.methods["a"].sources[0].path == str(beside / "other.jsonl")
    assert recipe.methods["b"].base.path == "some/model"
    assert recipe.tasks["needle"].haystack == str(beside / "prose.txt")
    assert recipe.tasks["babilong"].data == str(beside / "prose.txt")
    Path("chats.jsonl").touch()
    assert load(beside / "own.yaml").methods["b"].sources[0].path == "chats.jsonl"


BY_SEED = """
base: tiny-{seed}
data: tiny-long
seeds: [0, 2]
strategy: contiguous
methods: {base: {train: false}, normal: {}, other: {base: tiny-7, train: false}}
"""


def test_every_seed_can_have_a_base_of_its_own():
    recipe = load(write(BY_SEED))
    found = [(each.method, each.seed, each.base.path) for each in recipe.trainings()]
    assert found == [
        ("base", 0, "tiny-0"),
        ("base", 2, "tiny-2"),
        ("normal", 0, "tiny-0"),
        ("normal", 2, "tiny-2"),
        ("other", 0, "tiny-7"),
    ]
    again = load(write(recipe.resolved(), "again.yaml"))
    assert again.trainings() == recipe.trainings()
    assert "tiny-{seed}" in recipe.resolved()


def test_no_path_of_the_cache_stands_in_a_recipe_or_in_settings(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SKIPALIGN_CACHE", str(elsewhere / "cache"))
    for name in ("tiny-2", "tiny-long.jsonl.gz"):
        (elsewhere / "cache" / name).mkdir(parents=True)
    recipe = load(write(BY_SEED))
    assert str(elsewhere) not in recipe.resolved()
    for training in recipe.trainings():
        assert str(elsewhere) not in str(training.settings())
        assert training.sources[0].path == "tiny-long"


GRID = """
base: tiny
data: tiny
seeds: [0, 1]
strategy: skipalign
grid:
  strategy.skip_fraction: [0, 0.5, 1]
  strategy.max_position: [256, 1024]
"""


def test_a_grid_makes_one_method_for_every_combination():
    recipe = load(write(GRID))
    assert {name: each.strategy for name, each in recipe.methods.items()} == {
        "skip-fraction-0": SkipAlign(skip_fraction=0, max_position=256),
        "skip-fraction-0.5-max-position-256": SkipAlign(skip_fraction=0.5, max_position=256),
        "skip-fraction-0.5-max-position-1024": SkipAlign(skip_fraction=0.5, max_position=1024),
        "skip-fraction-1-max-position-256": SkipAlign(skip_fraction=1, max_position=256),
        "skip-fraction-1-max-position-1024": SkipAlign(skip_fraction=1, max_position=1024),
    }
    directories = [each.directory for each in recipe.trainings()]
    assert len(directories) == len(set(directories)) == 10
    assert directories[:3] == [
        "skip-fraction-0/seed-0",
        "skip-fraction-0/seed-1",
        "skip-fraction-0.5-max-position-256/seed-0",
    ]


def test_without_skips_only_the_strategy_s_own_keys_make_no_difference():
    recipe = load(write(GRID), ["grid.trainer.seq=[1, 2]", "grid.strategy.skip_fraction=[0, 1]"])
    assert list(recipe.methods) == [
        *("skip-fraction-0-seq-1", "skip-fraction-0-seq-2"),
        *(f"skip-fraction-1-max-position-{m}-seq-{s}" for m in (256, 1024) for s in (1, 2)),
    ]


def test_without_a_factor_the_extension_depends_on_max_position_even_where_nothing_skips():
    for rope, count in (("ntk", 6), ("{type: ntk, factor: 8}", 5), ("none", 5)):
        assert len(load(write(GRID), [f"rope={rope}"]).methods) == count, rope


def test_a_grid_is_laid_over_every_listed_method():
    listed = "methods: {inner: {strategy: {skip_at: [inner]}}, biased: {key_bias: gap}}\n"
    recipe = load(write(GRID + listed), ["grid.strategy.max_position=[64]"])
    assert list(recipe.methods) == [
        *("inner-skip-fraction-0", "inner-skip-fraction-0.5-max-position-64"),
        *("inner-skip-fraction-1-max-position-64", "biased-skip-fraction-0"),
        *("biased-skip-fraction-0.5-max-position-64", "biased-skip-fraction-1-max-position-64"),
    ]
    assert recipe.methods["inner-skip-fraction-1-max-position-64"].strategy == SkipAlign(
        skip_fraction=1, max_position=64, skip_at=("inner",)
    )
    assert recipe.chosen(["biased"]) == tuple(recipe.methods)[3:]
    assert recipe.chosen(["biased", "inner-skip-fraction-0"]) == (
        "inner-skip-fraction-0",
        *tuple(recipe.methods)[3:],
    )


def test_a_grid_reaches_any_key_of_a_method_in_its_short_form():
    recipe = load(write(ONE), ["grid={key_bias: [none, gap], trainer.learning_rate: [1e-4, 1e-3]}"])
    found = {name: (m.key_bias, m.trainer["learning_rate"]) for name, m in recipe.methods.items()}
    assert found == {
        "key-bias-none-learning-rate-0.0001": (None, 1e-4),
        "key-bias-none-learning-rate-0.001": (None, 1e-3),
        "key-bias-gap-learning-rate-0.0001": (GapBias(), 1e-4),
        "key-bias-gap-learning-rate-0.001": (GapBias(), 1e-3),
    }


@pytest.mark.parametrize("extra", ["", "methods: {a: {}, b: {key_bias: gap}}\n"])
def test_the_resolved_recipe_of_a_grid_reads_as_the_same_trainings(extra: str):
    recipe = load(write(GRID + extra))
    again = load(write(recipe.resolved(), "resolved.yaml"))
    assert dataclasses.replace(again, where=recipe.where, name="own") == recipe
    assert again.trainings() == recipe.trainings()
    assert again.resolved() == recipe.resolved()


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ("grid.strategy.skip_fraction=[]", "own.yaml: grid.strategy.skip_fraction: holds 0"),
        ("grid.strategy.skip_fraction=0.5", "own.yaml: grid.strategy.skip_fraction: is 0.5"),
        (
            "grid.strategy.law=[x]",
            "own.yaml: grid skip-fraction-0-max-position-256-law-x: strategy",
        ),
        ("grid={stratgy.law: [x]}", "own.yaml: grid law-x: stratgy: no such key"),
        ("grid.strategy.skip_fraction=[0.5, 0.5]", "own.yaml: grid: two combinations are both"),
    ],
)
def test_mistakes_in_a_grid_are_named(change: str, start: str):
    assert refused(GRID, change).startswith(start)


def test_the_first_seeds_can_be_chosen():
    recipe = load(write(MANY))
    assert recipe.with_seeds(1).seeds == (3,)
    assert recipe.with_seeds(2).seeds == (3, 4)
    assert recipe.with_seeds(5).seeds == (0, 1, 2, 3, 4)
    assert recipe.with_seeds(5).seeds_of("base") == (0,)


def test_methods_can_be_chosen_and_others_are_refused():
    recipe = load(write(MANY))
    assert recipe.chosen(["skipalign", "base"]) == ("base", "skipalign")
    with pytest.raises(RecipeError, match=r"no method 'skipaling'; did you mean 'skipalign'\?"):
        recipe.chosen(["base", "skipaling"])


def test_packing_and_logit_scale_reach_the_training_and_its_settings():
    one = {
        "packing": {"max_tokens": 64, "attention": "causal", "loss": "token"},
        "logit_scale": 0.5,
    }
    changes = ["packing={max_tokens: 64}", "logit_scale=0.5", "strategy=contiguous"]
    recipe = load(write(ONE), changes)
    assert list(recipe.methods) == ["normal-packed-scaled"]
    (training,) = recipe.trainings()
    assert training.packing == Packing(max_tokens=64)
    assert {key: training.settings()[key] for key in one} == one
    (training,) = load(write(ONE)).trainings()
    assert {training.settings()[key] for key in one} == {None}


def test_the_bases_of_the_seeds_are_looked_up_like_other_paths(elsewhere: Path):
    text = "base: own-{seed}\ndata: x.jsonl\nseeds: [3, 4]\nstrategy: contiguous\n"
    beside = elsewhere / "beside"
    for name in ("own-3", "own-4"):
        (beside / name).mkdir(parents=True)
    (beside / "own.yaml").write_text(text)
    paths = [each.base.path for each in load(beside / "own.yaml").trainings()]
    assert paths == [str(beside / "own-3"), str(beside / "own-4")]
    Path("own-3").mkdir()
    paths = [each.base.path for each in load(beside / "own.yaml").trainings()]
    assert paths == ["own-3", "own-4"]


def test_data_in_place_of_a_recipe_is_told_what_writes_one():
    with pytest.raises(RecipeError, match=r"a data file; .*skipalign init MODEL chats"):
        load(write("{}\n{}\n", "chats.jsonl"))


def test_the_name_of_the_run_comes_from_the_file():
    assert load(write(ONE, "My recipe, v2.yaml")).name == "My-recipe-v2"
    assert load(write(ONE + "name: given\n")).name == "given"


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ("stratgy=pose", "own.yaml: stratgy: no such key; did you mean 'strategy'?"),
        ("max_steps=5", "own.yaml: max_steps: no such key; it stands below trainer: trainer.max"),
        ("name=../up", "own.yaml: name: is '../up'"),
        ("seeds=[]", "own.yaml: seeds: holds 0; at least 1 is required"),
        ("name=a/b", "own.yaml: name"),
        ("seeds=[1,1]", "own.yaml: seeds: [1, 1] has one twice"),
        ("evaluation.needle.lengths=[a]", "own.yaml: evaluation.needle.lengths.0: is 'a'"),
        (
            "evaluation.neddle={}",
            "own.yaml: evaluation.neddle: no such key; did you mean 'needle'?",
        ),
        ("strategy.max_position=0", "own.yaml: strategy: strategy skipalign: max_position is 0"),
        (
            "data.0.max_token=3",
            "own.yaml: data.0.max_token: no such key; did you mean 'max_tokens'?",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_key_path(change: str, start: str):
    assert refused(ONE, change).startswith(start)


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ("methods.normal.strategy={name: pose}", "own.yaml: methods.normal.strategy.max_position"),
        ("methods.normal.rope=ntkk", "own.yaml: methods.normal.rope: 'ntkk'"),
        ("strategy.max_positon=3", "own.yaml: strategy.max_positon: no such key"),
        ("methods.Up={}", "own.yaml: methods: 'Up'"),
        ("methods.a..={}", "override 'methods.a..={}'"),
        ("methods={a.: {}}", "own.yaml: methods: 'a.'"),
        ("methods.a/b={}", "own.yaml: methods: 'a/b'"),
        ("methods.normal.seeds=[1]", "own.yaml: methods.normal.seeds: is one for all"),
        ("methods={}", "own.yaml: methods: holds 0"),
        ("methods.normal=3", "own.yaml: methods.normal: is 3"),
        ("seed=3", "own.yaml: both seed and seeds"),
    ],
)
def test_mistakes_in_methods_are_named_where_they_stand(change: str, start: str):
    assert refused(MANY, change).startswith(start)


def test_a_key_that_every_method_replaces_is_refused():
    text = MANY.replace("  base: {train: false}\n", "").replace("  skipalign:\n", "")
    text = text.replace("{strategy: {cuts_within: 6}", "{strategy: contiguous")
    assert refused(text).startswith("own.yaml: strategy: every method has its own")


@pytest.mark.parametrize("text", ["- a", "text", "", "3"])
def test_a_recipe_is_a_mapping(text: str):
    assert "a recipe is a mapping" in refused(text)


def test_files_that_are_no_recipes_are_refused():
    with pytest.raises(RecipeError, match="cannot be read"):
        load(".")
    with pytest.raises(RecipeError, match="bytes"):
        load(write("# " + "x" * 2**17))
    for name in ("a\0b", "x" * 5000, "~nobody-of-that-name/r.yaml"):
        with pytest.raises(RecipeError):
            load(name)


def test_trainings_are_methods_times_seeds_and_what_is_not_trained_runs_once():
    trainings = load(write(MANY)).trainings()
    assert [(each.method, each.seed, each.directory) for each in trainings] == [
        ("base", 3, "base/seed-3"),
        ("normal", 3, "normal/seed-3"),
        ("normal", 4, "normal/seed-4"),
        ("skipalign", 3, "skipalign/seed-3"),
        ("skipalign", 4, "skipalign/seed-4"),
        ("skipalign-bias", 3, "skipalign-bias/seed-3"),
        ("skipalign-bias", 4, "skipalign-bias/seed-4"),
    ]
    assert [each.train for each in trainings] == [False, *[True] * 6]
    assert all(each.tasks == trainings[0].tasks for each in trainings)
    assert list(trainings[0].tasks) == ["needle", "stretch"]


def test_one_training_lies_in_the_run_folder_itself():
    (training,) = load(write(ONE)).trainings()
    assert training.directory == ""
    assert training.sources[0].max_tokens == 512
    assert training.strategies == {"chats": SkipAlign(max_position=4096)}
    assert training.trainer == {"max_steps": 5, "learning_rate": 1e-4}


def test_the_template_takes_in_evaluation_what_it_takes_in_training():
    kwargs = "template_kwargs: {enable_thinking: false}\n"
    (training,) = load(write(ONE + kwargs)).trainings()
    kept = training.tasks["needle"].template_kwargs
    assert kept == training.template_kwargs == {"enable_thinking": False}
    own = "evaluation.needle.template_kwargs={x: 1}"
    (training,) = load(write(ONE + kwargs), [own]).trainings()
    assert training.tasks["needle"].template_kwargs == {"x": 1}


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("learning_rat", "did you mean 'learning_rate'?"),
        ("output_dir", "the run folder decides it"),
        ("seed", "the recipe's own `seed`"),
        ("group_by_length", "not yours to set"),
    ],
)
def test_trainer_keys_that_cannot_be_passed_on_are_refused(key: str, part: str):
    recipe = load(write(ONE), [f"trainer.{key}=1"])
    with pytest.raises(RecipeError) as found:
        recipe.trainings()
    assert str(found.value).startswith(f"own.yaml: trainer.{key}: ")
    assert part in str(found.value)
    recipe = load(write(MANY), [f"methods.normal.trainer.{key}=1"])
    with pytest.raises(RecipeError, match=rf"own.yaml: methods.normal.trainer.{key}: "):
        recipe.trainings()


def test_no_path_of_this_checkout_is_needed_where_recipes_are_packaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/inside.yaml").touch()
    monkeypatch.setattr(room.resources, "files", lambda _: tmp_path)
    assert list(packaged_recipes()) == ["inside"]
