"""Hostile text, put into every field of a run folder that holds text."""

import json
from pathlib import Path

from made_runs import write_json
from skipalign.files import read_json

# Markup, handlers, links, ends of elements that hold raw text, template marks, what steers a
# terminal or turns text around, a lone surrogate.
HOSTILE = (
    "</td></script><script>document.title='owned'</script>"
    "\"'><img src=x onerror=\"document.title='owned'\"><svg/onload=document.title='owned'>"
    "<a href=\"javascript:document.title='owned'\">x</a></style><style>body{display:none}</style>"
    "--><!--]]>{{7*7}}{% raw %}&amp;\x1b[2J\x07\u202e\u2066\u200b\ud800"
)
# What a file's name can hold.
NAME = "\"'><img src=x onerror=document.title='owned'>&amp;\x1b[2J\u202e"


def poisoned(value):
    """Put hostile text after every text and into every name that is not the format's own."""
    if isinstance(value, dict):
        return {key: poisoned(each) for key, each in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return value + HOSTILE if isinstance(value, str) else value


def poison(folder: Path) -> Path:
    """Poison a run folder of made_runs: documents, single answers, recipe, names of folders."""
    for path in folder.rglob("*.json"):
        document = {key: poisoned(each) for key, each in read_json(path).items()}
        if path.name == "accounting.json":
            counted = {**document["sources"]["tiny"]}
            counted = {key: each for key, each in counted.items() if key != HOSTILE}
            for key in ("rejected", "dropped", "notes"):
                counted[key][HOSTILE] = 1
            document["sources"] = {HOSTILE: counted}
            document.pop("total")
        if path.name == "coverage.json":
            document["histogram"].pop(HOSTILE)
        document.pop("schema_version")
        write_json(path, document)
    for path in folder.rglob("*.trials.jsonl"):
        head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        lines = [head, *({**line, "answer": HOSTILE, "value": HOSTILE} for line in lines)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(HOSTILE.replace("\ud800", ""), encoding="utf-8")
    for method in [each for each in folder.iterdir() if each.is_dir()]:
        method.rename(folder / (method.name + NAME))
    return folder.rename(folder.parent / (folder.name + NAME))
