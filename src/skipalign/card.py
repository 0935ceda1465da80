"""The model card: what a model is made of, in a README that the hub and people read."""

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from skipalign.files import write_text
from skipalign.model import MINIMUM_TRANSFORMERS

_LOADING = "## Loading\n\n"
UNKNOWN = "unknown"  # as the hub says it
RESULTS_BLOCK = "<!-- results -->\nNot evaluated yet.\n<!-- /results -->"


def write_card(
    model_dir: Path, training: Mapping[str, Any], *, accounting: Mapping[str, Any] | None = None
) -> None:
    """Write model/README.md from a training's settings and outcome.

    Args:
        model_dir: the Hugging Face folder.
        training: the contents of training.json.
        accounting: of accounting.json, where data was prepared.
    """
    base = training["base"]["path"]
    adapter = training.get("adapter") if training["train"] else None
    library = "peft" if adapter else "transformers"
    header = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    header += [f"base_model: {_yaml_text(base)}", "tags: [skipalign, long-context]"]
    terms = training.get("base_license") or {"license": UNKNOWN}
    header += [*(f"{key}: {_yaml_text(value)}" for key, value in terms.items()), "---"]
    parts = [
        "\n".join(header),
        f"# {_text(Path(base).name)}, {_text(training['method'])}, seed {training['seed']}",
        _how(training),
        "## Results\n\n" + RESULTS_BLOCK,
        "## Data\n\n" + _data(training, accounting),
        "## Licence\n\n" + _terms(terms),
        "## Settings\n\n" + _table(_flat(_settings(training))),
        _LOADING + (_loading_adapter(training) if adapter else _loading()),
    ]
    write_text(model_dir / "README.md", "\n\n".join(parts) + "\n")


def license_of(base: str) -> dict[str, str] | None:
    """Return what a base's own card says of its licence, None where it says nothing.

    Args:
        base: a local folder, or a hub id whose card lies in the hub's cache; nothing is fetched.

    Returns:
        `license`, and of one that the hub has no name for `license_name` and `license_link`.
    """
    card = Path(base, "README.md")
    if not card.is_file() and not Path(base).exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(base, "README.md")
        except HFValidationError:
            return None
        if not isinstance(found, str):
            return None
        card = Path(found)
    if not card.is_file():
        return None
    head = re.match(r"---\n(.*?\n)---\n", card.read_text(encoding="utf-8", errors="replace"), re.S)
    lines = re.findall(
        r"^(license|license_name|license_link): *[\"']?([\w.:/+-]+)[\"']? *$",
        head[1] if head else "",
        re.MULTILINE,
    )
    terms = dict(lines)
    return terms if "license" in terms else None


def _terms(terms: Mapping[str, str]) -> str:
    if terms["license"] == UNKNOWN:
        return (
            "The base's card does not state its licence. Its terms hold for this model too: look "
            "them up before you share it."
        )
    name = terms.get("license_name", terms["license"])
    where = f" ({_text(terms['license_link'])})" if "license_link" in terms else ""
    return f"That of the base: {_text(name)}{where}. The data may have terms of their own."


def _how(training: Mapping[str, Any]) -> str:
    if not training["train"]:
        return "The base with another RoPE extension; no weight was changed."
    names = ", ".join(strategy["name"] for strategy in training["strategies"].values())
    bias, packing, scale = (training.get(key) for key in ("key_bias", "packing", "logit_scale"))
    added = [f"the key bias `{bias['name']}` (in training only)"] if bias else []
    if scale is not None:
        added.append(f"attention logits multiplied by {_text(str(scale))} (in training only)")
    if packing:
        seen = "as one text" if packing["attention"] == "causal" else "each sample for itself"
        added.append(f"samples packed into rows of {packing['max_tokens']:,} tokens, {seen}")
    adapter = training.get("adapter")
    if adapter:
        added.append(f"an adapter `{adapter['type']}` of rank {adapter['r']}")
    more = f", with {', '.join(added)}" if added else ""
    kind = "an adapter, to be loaded as said below" if adapter else "an ordinary checkpoint"
    return (
        f"Fine-tuned by skipalign with the position strategy {_text(names)}{more}, "
        f"{training['steps']:,} steps, rows of at most {training['max_row_tokens']:,} tokens. It "
        f"is {kind}: positions skip in training only."
    )


def _data(training: Mapping[str, Any], accounting: Mapping[str, Any] | None) -> str:
    if accounting is None:
        return "None."
    rows: dict[str, str] = {}
    for source in training["sources"]:
        found = accounting["sources"][source["name"]]
        rejected, dropped = sum(found["rejected"].values()), sum(found["dropped"].values())
        rows[f"{source['name']} ({source['path']})"] = (
            f"{found['rows_read']:,} rows read = {found['used']:,} used + {rejected:,} rejected "
            f"+ {dropped:,} dropped; {found['tokens']:,} tokens"
        )
    digests = {
        f"{name}/{file}": digest
        for name, files in (training.get("data_sha256") or {}).items()
        for file, digest in files.items()
    }
    listed = _table(digests, head=("file", "sha256")) if digests else "No digest was kept."
    return f"{_table(rows)}\n\n{listed}"


def _settings(training: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "strategies",
        "key_bias",
        "packing",
        "logit_scale",
        "adapter",
        "rope",
        "trainer",
        "seed",
    )
    return {key: training[key] for key in keys if key in training}


def write_merged_card(model_dir: Path, adapter_dir: str) -> None:
    """Write the card of a plain model made of an adapter: the adapter's, where it has one."""
    path = Path(adapter_dir, "README.md")
    found = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = found.partition(_LOADING)[0] if RESULTS_BLOCK.split("\n")[0] in found else ""
    kept = kept.replace("library_name: peft", "library_name: transformers", 1)
    kept = kept.replace("an adapter, to be loaded as said below", "an adapter merged into its base")
    kept = kept or f"---\nlibrary_name: transformers\n---\n\n# {_text(model_dir.name)}\n\n"
    write_text(model_dir / "README.md", kept + _LOADING + _loading() + "\n")


def _loading_adapter(training: Mapping[str, Any]) -> str:
    in_bits = (
        " It was trained beside a base in 4 bits; loaded and merged it is beside the base in full."
        if training["adapter"]["type"] == "qlora"
        else ""
    )
    return (
        "This is an adapter. `skipalign merge ADAPTER OUT` makes the portable "
        "form: a plain model that any loader runs. The adapter belongs to the RoPE settings in "
        "its config.json: skipalign restores them (`skipalign.load_model`) and refuses to load "
        "without them; PEFT alone puts it on the base's own RoPE, where far positions fail."
        f"{in_bits} Made with {_versions()}."
    )


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("skipalign", "transformers"))


def _loading() -> str:
    return (
        f"Made with {_versions()}. transformers {MINIMUM_TRANSFORMERS} or newer reads the RoPE "
        "settings from `rope_parameters`; `rope_theta` and `rope_scaling` hold the same for older "
        "loaders. Evaluation uses natural positions."
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            rows |= _flat(item, f"{prefix}{key}.")
        else:
            rows[prefix + str(key)] = item
    return rows


def _table(rows: Mapping[str, Any], head: tuple[str, str] = ("", "")) -> str:
    lines = [f"| {_text(str(key))} | {_text(str(value))} |" for key, value in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *lines])


def _text(text: str) -> str:
    """Return text as Markdown shows it, whatever it holds."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    for character in "\\`*_[]<>|#":
        shown = shown.replace(character, "\\" + character)
    return shown


def _yaml_text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
