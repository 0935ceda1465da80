"""YAML text -> a plain tree with its short forms spelled out, overridden and merged.

Nothing here knows what a key means beyond its short form; schema.py does.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from skipalign.errors import RecipeError
from skipalign.files import HALF_CHARACTER

_MOST_VALUES = 100_000  # of a document with its aliases written out
_MOST_KEYS = 32  # of the path of an override
_MOST_LEVELS = 50
_FLOAT = "tag:yaml.org,2002:float"
# The keys by which a mapping says what it is.
_TAGS = {
    "base": "path",
    "strategy": "name",
    "key_bias": "name",
    "rope": "type",
    "adapter": "type",
}
_METHOD_FORMS = (*_TAGS, "trainer", "template_kwargs", "evaluation")


# ------------------------------------------------------------------------------- text


class _Loader(yaml.SafeLoader):
    """Plain data only; no key twice, no deep nesting, every number finite, 1e-4 a number."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _MOST_LEVELS:
            mark = self.peek_event().start_mark
            problem = f"nested over {_MOST_LEVELS} levels deep; no recipe is"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shown(key.value)} stands twice; remove one",
                    problem_mark=key.start_mark,
                )
            seen.add(name)
        return node

    def construct_yaml_float(self, node: Any) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.MarkedYAMLError(
                problem=f"{shown(node.value)} is no finite number", problem_mark=node.start_mark
            )
        return value

    def construct_yaml_str(self, node: Any) -> str:
        value = super().construct_yaml_str(node)
        if HALF_CHARACTER.search(value):
            raise yaml.MarkedYAMLError(
                problem=f"{shown(value)} holds half a character", problem_mark=node.start_mark
            )
        return value


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Line ends of all kinds and control characters survive in double quotes alone.
        quoted = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=quoted)


for _each in (_Loader, _Dumper):
    # YAML 1.1, which PyYAML follows, takes 1e-4 for text.
    _each.add_implicit_resolver(
        _FLOAT, re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
_Loader.add_constructor(_FLOAT, _Loader.construct_yaml_float)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)
_Dumper.add_representer(str, _Dumper.represent_str)


def read_yaml(text: bytes, where: str) -> Any:
    """Return the one document in `text`.

    Raises:
        RecipeError: not YAML or not UTF-8, a key twice, a number that is not finite, too much.
    """
    try:
        loader = _Loader(text.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _MOST_VALUES:
            raise RecipeError(f"{where}: over {_MOST_VALUES:,} values; no recipe has so many")
        return loader.construct_document(node)
    except RecipeError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        found = str(error.problem or error.context)
        cure = "indent with spaces" if "'\\t'" in found else "mend it"
        cure = "" if "; " in found else f"; {cure}"
        raise RecipeError(f"{where}{line}: {found}{cure}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        found = " ".join(str(error).split())[:200]
        raise RecipeError(f"{where}: not YAML in UTF-8 ({found}); mend it") from None


def write_yaml(tree: Any) -> str:
    """Return `tree` as text that `read_yaml` reads as the same tree."""
    form: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 100}
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=None, **form)


def _count(node: Any, known: dict[int, float]) -> float:
    """Return how many values a node holds, aliases written out; one inside itself is endless."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        pairs = isinstance(node, yaml.MappingNode)
        inner = [each for pair in node.value for each in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_count(each, known) for each in inner)
    return known[id(node)]


# ------------------------------------------------------------------------------- the tree


def spelled_out(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with every short form written out: `base: tiny` is {path: tiny}."""
    found = _method_spelled_out(tree)
    if isinstance(methods := found.get("methods"), dict):
        found["methods"] = {
            name: {} if given is None else _method_spelled_out(given)
            for name, given in methods.items()
        }
    return found


def _method_spelled_out(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    found: dict[str, Any] = dict(tree)
    for key in found.keys() & set(_METHOD_FORMS):
        value = found[key]
        if key not in _TAGS:
            found[key] = {} if value is None else value
        elif key == "rope":
            found[key] = _rope(value)
        else:
            found[key] = _tagged(value, _TAGS[key])
    for key in ("packing", "logit_scale"):
        if found.get(key) == "none":
            found[key] = None
    if found.get("data") is not None:
        given: Any = found["data"]
        found["data"] = [_source(each) for each in (given if isinstance(given, list) else [given])]
    return found


def _tagged(value: Any, tag: str) -> Any:
    if value == "none" and tag != "path":
        return None
    return {tag: value} if isinstance(value, str) else value


def _rope(value: Any) -> Any:
    value = {"type": "none"} if value is None else _tagged(value, "type") or {"type": "none"}
    if isinstance(value, dict) and "type" not in value and "parameters" in value:
        return {"type": "parameters", **value}
    return value


def _source(value: Any) -> Any:
    value = _tagged(value, "path")
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = dict(value)
    if isinstance(path := found.get("path"), str):
        found.setdefault("name", Path(path).name.partition(".")[0] or path)
    if "strategy" in found:
        found["strategy"] = _tagged(found["strategy"], "name")
    return found


def merged(own: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys with those that a method gives.

    A mapping is merged key by key with the recipe's, unless it says what it is and stands alone.
    """
    joined = {
        key: {**own[key], **value} for key, value in given.items() if _is_merged(key, own, value)
    }
    return {**own, **given, **joined}


def _is_merged(key: str, own: dict[str, Any], value: Any) -> bool:
    mappings = isinstance(own.get(key), dict) and isinstance(value, dict)
    return mappings and _TAGS.get(key) not in value


def unused(own: dict[str, Any], methods: Sequence[dict[str, Any]]) -> str | None:
    """Return the first key path of the recipe's own that every method replaces, or None."""
    for key, value in own.items():
        if not all(key in given for given in methods):
            continue
        merges = [_is_merged(key, own, given[key]) for given in methods]
        if not any(merges):
            return key
        for inner in value if all(merges) else ():
            if all(inner in given[key] for given in methods):
                return f"{key}.{inner}"
    return None


def overridden(tree: dict[str, Any], override: str) -> dict[str, Any]:
    """Return the tree with one `a.b=value` done, the value read as YAML.

    Raises:
        RecipeError: not of that form, or a key that leads nowhere.
    """
    where = f"override {shown(override)}"
    name, sign, text = override.partition("=")
    keys = name.strip().split(".")
    if not sign or not all(keys):
        raise RecipeError(f"{where}: must be KEY=VALUE, such as trainer.max_steps=50")
    if len(keys) > _MOST_KEYS:
        raise RecipeError(f"{where}: a path of {len(keys):,} keys; no recipe is so deep")
    if keys[0] == "grid":
        keys[1:] = [".".join(keys[1:])] if keys[1:] else []  # its keys are key paths themselves
    try:
        value = read_yaml(text.encode("utf-8", "surrogateescape"), where)
    except RecipeError as error:
        if not text.startswith(("{", "[")):
            raise
        quoted = f"{name[:80]}='\"{text[:80]}\"'"
        raise RecipeError(f"{error} - or, if it is plain text, quote it twice: {quoted}") from None
    return placed(tree, keys, value, where)


def placed(node: Any, keys: Sequence[str], value: Any, where: str) -> Any:
    """Return a tree with `value` at a path of keys; a key of the tree may itself hold dots.

    Raises:
        RecipeError: the path leads through a value that has no keys.
    """
    if not keys:
        return value
    key, *rest = keys
    for stop in range(len(keys), 1, -1):
        if isinstance(node, dict) and ".".join(keys[:stop]) in node:
            key, rest = ".".join(keys[:stop]), keys[stop:]
            break
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            last = len(node) - 1
            raise RecipeError(
                f"{where}: {shown(key)} chooses from a list; give a number, 0 to {last}"
            )
        changed: list[Any] = list(node)
        changed[int(key)] = placed(changed[int(key)], rest, value, where)
        return changed
    if node is not None and not isinstance(node, dict):
        raise RecipeError(f"{where}: {shown(key)} is asked of {shown(node)}, which has no keys")
    inner: dict[str, Any] = dict(node or {})
    inner[key] = placed(inner.get(key), rest, value, where)
    return inner


def shown_key(key: Any) -> str:
    """Return a key for a message: as it stands in the file where that is short and plain."""
    text = str(key)
    return text if text.isprintable() and len(text) <= 80 else repr(text)[:80]


def shown(value: Any) -> str:
    """Return a value for a message, 80 characters at most."""
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else repr(value)[:80]
