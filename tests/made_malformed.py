"""Malformed inputs by kind, made from good ones by code: the same bytes every time."""

import gzip
import io
import json
from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq


class Malformed(NamedTuple):
    """One input. `file` says how it is read; `options` go to the reader, or are overrides."""

    kind: str
    name: str
    file: str
    data: bytes
    options: tuple[Any, ...] = ()


def malformed() -> Iterator[Malformed]:
    """Yield every input, kind by kind."""
    for part in (row_inputs, file_inputs, table_inputs, recipe_inputs):
        yield from part()


# ------------------------------------------------------------------------------- rows

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": CHAT},
    "sharegpt": {"conversations": TURNS, "system": "s"},
    "alpaca": {"instruction": "do", "input": "it", "output": "a"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "text": {"text": "some text"},
}
VALUES = (None, True, 0, -1, 1e308, "", " \n", [], {}, [[]], [None], {"a": 1}, ["x"], "[", "{}")
NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-0", "01", "+1", "1.", ".5", "0x10", "1_000"),
    *("9" * 4000, "9" * 5000, "1e-400", "--1", "1e", "\u0661"),
)
NOT_UTF8 = {
    "a stray byte": b"\xff",
    "a lone continuation": b"\x80",
    "an overlong slash": b"\xc0\xaf",
    "a surrogate in three bytes": b"\xed\xa0\x80",
    "a cut character": b"\xe2\x82",
    "over U+10FFFF": b"\xf4\x90\x80\x80",
    "Latin-1": "né".encode("latin-1"),
    "GB 2312": "汉".encode("gb2312"),
}
CONTROLS = (
    "\0",
    "\x01",
    "\x1b[31m",
    "\x07",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
    "\ud800",
)
ROLES: tuple[Any, ...] = (
    *("", "User", " user", "user ", "narrator", "document", "ASSISTANT", "us\0er", "\u202euser"),
    *(None, 0, True, [], {}, ["user"], {"role": "user"}, "x" * 5000),
)
CONTENTS: tuple[Any, ...] = (
    *(None, 0, 1.5, True, {}, [], "", " ", "\n\t", [[]], [None], ["text"], [{}], [{"type": 1}]),
    *([{"type": "text"}], [{"type": "text", "text": None}], [{"type": "image_url", "url": "u"}]),
    *([{"type": "text", "text": ""}], [[{"type": "text", "text": "a"}]], {"text": "a"}),
)
ORDERS = (
    *("a", "u", "s", "t", "su", "ua u", "uu a", "uaa", "au", "uta", "uat", "uatu", "usa", "uas"),
    *("ssua", "sa", "ta", "uatua", "uu", "aa", "sss", ""),
)
NAMES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


def row_inputs() -> Iterator[Malformed]:
    """Yield single rows, each between two good ones."""
    for kind, name, row in rows():
        text = row if isinstance(row, bytes) else json.dumps(row).encode()
        first, last = (json.dumps(GOOD[each]).encode() for each in ("text", "messages"))
        yield Malformed(kind, name, "a.jsonl", b"\n".join([first, text, last]) + b"\n")
        if kind in ("bytes in a string", "numbers", "deep nesting", "cut rows"):
            array = b"[" + b",\n".join([first, text, last]) + b"]"
            yield Malformed(f"{kind}, in an array", name, "a.json", array)


def rows() -> Iterator[tuple[str, str, Any]]:
    for shape, row in GOOD.items():
        yield from damaged(shape, row)
    for role in ROLES:
        turns = [{"role": role, "content": "q"}, CHAT[1]]
        yield "roles", repr(role)[:40], {"messages": turns}
    for content in CONTENTS:
        for place in (0, 1):
            turns = [dict(turn) for turn in CHAT]
            turns[place]["content"] = content
            yield "contents", f"{json.dumps(content)[:40]} of {place}", {"messages": turns}
    for order in ORDERS:
        turns = [{"role": NAMES[each], "content": "x"} for each in order.replace(" ", "")]
        yield "order of roles", order, {"messages": turns}
    for turn in (*VALUES, {"role": "user"}, {"content": "q"}, {"from": "human", "content": "q"}):
        yield "turns", json.dumps(turn)[:40], {"messages": [turn, CHAT[1]]}
    for key in ("tool_calls", "function_call"):
        for value in ([{"name": "f"}], "f", 1, {}, None):
            turns = [CHAT[0], {**CHAT[1], key: value}]
            yield "tool calls", f"{key} {json.dumps(value)}", {"messages": turns}
    for system in VALUES:
        yield "system columns", json.dumps(system)[:40], {"system": system, "messages": CHAT}
    for name, raw in NOT_UTF8.items():
        yield "bytes in a string", name, b'{"text": "a' + raw + b'b"}'
    for character in CONTROLS:
        raw = character.encode("utf-8", "surrogatepass")
        yield "bytes in a string", ascii(character), b'{"text": "a' + raw + b'b"}'
        yield "escapes in a string", ascii(character), {"text": f"a{character}b"}
        yield "escapes in a string", f"{character!a} alone", {"text": character}
        yield "escapes in a string", f"{character!a} in a key", {f"te{character}xt": "a"}
    for number in NUMBERS:
        yield "numbers", f"{number[:20]} ({len(number)}) as text", f'{{"text": {number}}}'.encode()
        extra = f'{{"text": "a", "id": {number}}}'.encode()
        yield "numbers", f"{number[:20]} ({len(number)}) beside", extra
    for depth in (10, 90, 200, 500, 3000, 100_000):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            text = f'{{"text": "a", "x": {opening * depth}0{closing * depth}}}'
            yield "deep nesting", f"{depth} of {opening}", text.encode()
            yield "deep nesting", f"{depth} of {opening}, open", f"{opening * depth}".encode()


def damaged(shape: str, row: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield a good row cut, and with keys missing, twice, more, renamed, of other types."""
    text = json.dumps(row)
    for part in range(1, 8):
        yield "cut rows", f"{shape}, {part} of 8", text[: len(text) * part // 8].encode()
    for key, good in row.items():
        rest = {name: value for name, value in row.items() if name != key}
        yield "missing keys", f"{shape} without {key}", rest
        for other in (key.upper(), f" {key}", f"{key}s", f"{key}\0", ""):
            yield "renamed keys", f"{shape}, {key} as {other!r}", {other: good, **rest}
        twice = f'{{{json.dumps(key)}: "x", {text[1:]}'
        yield "keys twice", f"{shape} with {key} twice", twice.encode()
        for value in VALUES:
            yield "wrong types", f"{shape}, {key}: {json.dumps(value)}", {**row, key: value}
    for other, more in GOOD.items():
        if other != shape:
            yield "two shapes at once", f"{shape} and {other}", {**more, **row}
    for name, raw in {
        "a comma at the end": text[:-1] + ",}",
        "no commas": text.replace(",", " "),
        "no colons": text.replace(":", " "),
        "single quotes": text.replace('"', "'"),
        "a comment": text + " // good",
        "Python's words": text[:-1] + ', "x": None}',
        "no quotes around keys": text.replace('{"', "{").replace('":', ":"),
        "two rows in a line": text + text,
        "text before": "data: " + text,
        "brackets around": f"[{text}]",
        "as a string": json.dumps(text),
        "a wrong escape": text.replace('"a', '"\\xa', 1),
        "a semicolon after": text + ";",
    }.items():
        yield "almost JSON", f"{shape}, {name}", raw.encode()


# ------------------------------------------------------------------------------- files

LINES = "".join(json.dumps(row) + "\n" for row in GOOD.values())
ARRAY = json.dumps(list(GOOD.values()), indent=1)
CSV = 'prompt,completion\nq,a\n"q ""x"", y","a\nb"\nq,a\n'


def file_inputs() -> Iterator[Malformed]:
    """Yield whole files: encodings, line ends, archives, arrays, csv, names, sizes."""
    for file, text in (("a.jsonl", LINES), ("a.json", ARRAY), ("a.csv", CSV)):
        for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp037"):
            yield Malformed("encodings", f"{file} in {name}", file, text.encode(name))
        raw = text.encode()
        for name, end in (
            *(("CR", b"\r"), ("LF CR", b"\n\r"), ("CR CR LF", b"\r\r\n"), ("NUL", b"\0")),
            *(("NEL", b"\xc2\x85"), ("LS", b"\xe2\x80\xa8"), ("VT", b"\x0b"), ("none", b"")),
            *(("blank lines", b"\n \n\t\n\n"), ("CR LF", b"\r\n"), ("NUL LF", b"\0\n")),
        ):
            yield Malformed("line ends", f"{file} with {name}", file, raw.replace(b"\n", end))
        for name, data in {
            "NULs before": bytes(64) + raw,
            "NULs after": raw + bytes(64),
            "two marks": b"\xef\xbb\xbf" * 2 + raw,
            "half": raw[: len(raw) // 2],
            "twice": raw + raw,
            "no end": raw.rstrip(),
            "an HTML page": b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
            "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\nsize 12\n",
            "a zip": b"PK\x03\x04" + bytes(200),
            "empty": b"",
            "blank": b" \n\t\n",
            "a mark alone": b"\xef\xbb\xbf",
            "one NUL": b"\0",
            "noise": bytes(n * 167 % 256 for n in range(2000)),
        }.items():
            yield Malformed("whole files", f"{file}: {name}", file, data)
        yield from archives(file, raw)
        for limit in (0, 1, 20, 40, 60):
            name = f"{file}, at most {limit} bytes"
            yield Malformed("rows over the limit", name, file, raw, (limit,))
    for name in (
        "a.txt",
        "a.jsonl.bz2",
        "a.jsonl.zip",
        "a.parquet.gz",
        "jsonl",
        "a.json5",
        "a.tsv",
    ):
        yield Malformed("names of files", name, name, LINES.encode())
    yield from arrays()
    for name, data in CSV_FILES.items():
        yield Malformed("csv", name, "a.csv", data.encode("utf-8", "surrogateescape"))


def archives(file: str, raw: bytes) -> Iterator[Malformed]:
    packed = gzip.compress(raw, mtime=0)
    middle = len(packed) // 2
    for name, data in {
        "not gz": raw,
        "empty": b"",
        "a header alone": packed[:10],
        "a quarter": packed[: len(packed) // 4],
        "half": packed[:middle],
        "no checksum": packed[:-8],
        "a wrong checksum": packed[:-8] + bytes(4) + packed[-4:],
        "a wrong size": packed[:-4] + bytes(4),
        "zeros in the middle": packed[:middle] + bytes(9) + packed[middle + 9 :],
        "text after": packed + b"text",
        "zeros after": packed + bytes(9),
        "two members": packed + packed,
        "packed twice": gzip.compress(packed, mtime=0),
        "another method": packed[:2] + b"\x07" + packed[3:],
    }.items():
        yield Malformed("gz", f"{file}: {name}", f"{file}.gz", data)
    yield Malformed("gz", f"{file}: not named so", file, packed)


def arrays() -> Iterator[Malformed]:
    row = json.dumps(GOOD["messages"])
    for name, text in {
        "not closed": f"[{row},\n{row}",
        "closed twice": f"[{row},\n{row}]]",
        "opened twice": f"[[{row},\n{row}]",
        "a comma at the end": f"[{row},\n{row},]",
        "a comma in front": f"[,{row}]",
        "two commas": f"[{row},,\n{row}]",
        "no comma": f"[{row}\n{row}]",
        "semicolons": f"[{row};\n{row}]",
        "an array in an array": f"[[{row}],\n{row}]",
        "two arrays": f"[{row}]\n[{row}]",
        "text after": f"[{row}] text",
        "text before": f"text [{row}]",
        "the wrong bracket": f"[{row},\n{row}}}",
        "an object around": f'{{"data": [{row}]}}',
        "values of all kinds": f'[1, "a", null, true, {row}, -1.5e3]',
        "words": f"[{row}, nul, tru, Infinit, {row}]",
        "a quote too many": f'[{row}, {{"text": "a"b"}},\n{row}]',
        "a quote too few": f'[{row}, {{"text": "a}},\n{row}]',
        "a line end in a string": f'[{row}, {{"text": "a\nb"}},\n{row}]',
        "a brace too few": f"[{row[:-1]},\n{row}]",
        "a bracket too few": f"[{row.replace(']', '')},\n{row}]",
        "keys that are no strings": f"[{{1: 2}},\n{row}]",
        "a key without a value": f'[{{"text"}},\n{row}]',
        "brackets alone": "[" * 3000,
        "braces alone": "[" + "{" * 3000,
        "commas alone": "[" + "," * 3000 + "]",
        "empty": "[]",
        "empty objects": "[{},{},{}]",
        "a mark inside": f"[{row},\ufeff{row}]",
        "a comment": f"[{row}, /* no */ {row}]",
    }.items():
        yield Malformed("JSON arrays", name, "a.json", text.encode())


CSV_FILES = {
    "no header": "q,a\nq,a\n",
    "a header alone": "prompt,completion\n",
    "an empty header": ",\nq,a\n",
    "a column without a name": "prompt,completion,\nq,a,x\n",
    "two columns of one name": "prompt,prompt\nq,a\n",
    "a quote open in the header": '"prompt,completion\nq,a\n',
    "a quote inside the header": 'pro"mpt,completion\nq,a\n',
    "a header in quotes": '"prompt","completion"\nq,a\n',
    "a header of capitals": "Prompt,Completion\nq,a\n",
    "semicolons": "prompt;completion\nq;a\n",
    "tabs": "prompt\tcompletion\nq\ta\n",
    "bars": "prompt|completion\nq|a\n",
    "single quotes": "prompt,completion\n'q, x',a\n",
    "a field too few": "prompt,completion\nq,a\nq\nq,a\n",
    "a field too many": "prompt,completion\nq,a\nq,a,a\nq,a\n",
    "a quote in a field": 'prompt,completion\nq "x",a\nq,a\n',
    "a quote after a quote": 'prompt,completion\n"q"x,a\nq,a\n',
    "a backslash before a quote": 'prompt,completion\n"q \\"x\\"",a\nq,a\n',
    "a quote open to the end": 'prompt,completion\nq,a\n"q,a\nq,a\n',
    "a quote open in every row": 'prompt,completion\n"q,a\n"q,a\n"q,a\n',
    "quotes alone": 'prompt,completion\n""""""\n',
    "three quotes": 'prompt,completion\n"""q,a\n',
    "spaces before a quote": 'prompt,completion\n "q",a\n',
    "a line end in a field": "prompt,completion\nq\nx,a\n",
    "an empty answer": 'prompt,completion\nq,""\nq, \n',
    "commas alone": "prompt,completion\n,,,,\n,\n",
    "a NUL": "prompt,completion\nq\0,a\n",
    "not UTF-8": "prompt,completion\nq\udcff,a\nq,a\n",
    "a header that is not UTF-8": "prom\udcffpt,completion\nq,a\n",
    "half a JSON cell": 'messages\n"[{""role"":"\n',
    "a JSON cell of numbers": 'messages\n"[1, 2]"\n',
    "a JSON cell that is an object": 'messages\n"{}"\n',
    "a cell in Python's words": "messages\n\"[{'role': 'user'}]\"\n",
    "a formula": "prompt,completion\n=cmd|'/c calc'!A1,a\n",
    "20,000 columns": ",".join(f"c{n}" for n in range(20_000)) + "\nq,a\n",
    "20,000 fields": "prompt,completion\n" + "q," * 20_000 + "\nq,a\n",
    "2,000 line ends in a cell": 'prompt,completion\n"' + "\n" * 2000 + 'q",a\n',
    "a sep line": "sep=,\nprompt,completion\nq,a\n",
    "a comment": "# made by hand\nprompt,completion\nq,a\n",
}


# ------------------------------------------------------------------------------- parquet


def table_inputs() -> Iterator[Malformed]:
    """Yield parquet files: cut, changed bytes, columns of other types."""
    raw = parquet(pa.table({"text": ["first text", "second text"], "n": [1, 2]}))
    for part in range(1, 16):
        cut = raw[: len(raw) * part // 16]
        yield Malformed("parquet, cut", f"{part} of 16", "a.parquet", cut)
    for part in range(48):
        place = len(raw) * part // 48
        changed = raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :]
        yield Malformed("parquet, a byte changed", f"at {part} of 48", "a.parquet", changed)
    for name, data in {
        "empty": b"",
        "its mark alone": b"PAR1",
        "its marks alone": b"PAR1PAR1",
        "a footer of no bytes": b"PAR1" + bytes(4) + b"PAR1",
        "a footer of four GB": raw[:-8] + b"\xff" * 4 + b"PAR1",
        "a footer of zeros": raw[: len(raw) // 2] + bytes(len(raw) // 2 - 8) + raw[-8:],
        "encrypted": raw[:-4] + b"PARE",
        "no mark in front": bytes(4) + raw[4:],
        "names that are not UTF-8": raw.replace(b"text", b"\xff\xfe\xfd\xfc"),
        "a name of another length": raw.replace(b"\x04text", b"\x7ftext"),
        "backwards": raw[::-1],
        "JSON lines": LINES.encode(),
        "bytes after": raw + b"more",
        "twice": raw + raw,
    }.items():
        yield Malformed("parquet, whole files", name, "a.parquet", data)
    for name, table in tables().items():
        yield Malformed("parquet, columns", name, "a.parquet", parquet(table))


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="none")
    return file.getvalue()


def tables() -> dict[str, pa.Table]:
    chats = pa.array([CHAT])
    column: dict[str, pa.Array] = {
        "text of bytes": pa.array([b"text"]),
        "text that is not UTF-8": pa.array([b"\xff"]).view(pa.string()),
        "text of numbers": pa.array([1.5]),
        "text of lists": pa.array([["a"]]),
        "text of nulls": pa.nulls(1),
        "text of a struct": pa.array([{"text": "a"}]),
        "text of truth": pa.array([True]),
        "text of categories": pa.array(["a"]).dictionary_encode(),
    }
    beside: dict[str, pa.Array] = {
        "a map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
        "a date after Python's": pa.array([2**30], pa.int32()).view(pa.date32()),
        "a date before Python's": pa.array([-(2**30)], pa.int32()).view(pa.date32()),
        "a time after Python's": pa.array([2**60], pa.timestamp("ms")),
        "a duration over Python's": pa.array([2**62], pa.duration("s")),
        "a time zone of nowhere": pa.array([0], pa.timestamp("us", tz="Mars/Base")),
        "nanoseconds": pa.array([2**62 + 1], pa.timestamp("ns")),
        "half floats": pa.array([1.5], pa.float16()),
        "a million nulls": pa.array([[None] * 10**6], pa.list_(pa.null())),
        "a million empty lists": pa.array([[[]] * 10**6]),
        "a decimal of 38 digits": pa.array([date.max.toordinal()]).cast(pa.decimal128(38, 0)),
        "two fields of one name": pa.StructArray.from_arrays([chats, chats], names=["a", "a"]),
    }
    bad_turns: dict[str, list[Any]] = {
        "no turns": [],
        "a role of numbers": [{"role": 1, "content": "q"}],
        "a content of lists": [{"role": "user", "content": ["q"]}],
        "strings": ["q", "a"],
        "nulls": [None, None],
        "half nulls": [CHAT[0], {"role": "assistant", "content": None}],
    }
    return {
        **{name: pa.table({"text": each}) for name, each in column.items()},
        **{name: pa.table({"messages": chats, "x": each}) for name, each in beside.items()},
        **{f"turns: {name}": pa.table({"messages": [each]}) for name, each in bad_turns.items()},
        "two columns of one name": pa.table([chats, chats], names=["messages", "messages"]),
        "a column without a name": pa.table([chats], names=[""]),
        "a line end in a name": pa.table([chats], names=["mess\nages"]),
        "no rows": pa.table({"text": pa.array([], pa.string())}),
        "no columns": pa.table({}),
    }


# ------------------------------------------------------------------------------- recipes

RECIPE: dict[str, Any] = {
    "base": {"path": "some/model", "dtype": "float32"},
    "data": [{"path": "chats.jsonl", "name": "chats", "max_tokens": 512}],
    "rope": {"type": "ntk", "factor": 8},
    "strategy": {"name": "skipalign", "max_position": 4096, "skip_fraction": 0.5},
    "key_bias": {"name": "gap"},
    "trainer": {"max_steps": 5},
    "template_kwargs": {"enable_thinking": False},
    "evaluation": {"needle": {"lengths": [64, 128]}},
    "seeds": [0, 1],
    "name": "own",
}
ANY: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**9, 10**30, "x", "", "\0", "../../etc/passwd", "x" * 3000),
    *([], {}, [None], {"x": 1}, ["x", "x"]),
)
PATHS = (
    *("base", "base.path", "base.dtype", "base.revision", "data", "data.0", "data.0.path"),
    *("data.0.name", "data.0.max_tokens", "data.0.weight", "data.0.max_row_bytes", "data.0.shape"),
    *("rope", "rope.type", "rope.factor", "strategy", "strategy.name", "strategy.max_position"),
    *("strategy.skip_fraction", "key_bias", "trainer", "trainer.max_steps", "template_kwargs"),
    *("evaluation", "evaluation.needle", "evaluation.needle.lengths", "seeds", "seeds.0", "name"),
    *(
        "methods",
        "methods.a",
        "grid",
        "gate",
        "watch",
        "adapter",
        "packing",
        "logit_scale",
        "train",
    ),
)
TEXTS = {
    "empty": "",
    "blank": " \n\n",
    "a comment": "# nothing\n",
    "one word": "tiny",
    "a list": "- a\n- b\n",
    "a number": "5",
    "tabs": "base:\n\tpath: tiny\n",
    "a key twice": "base: tiny\nbase: tiny\n",
    "a bracket open": "base: [tiny\n",
    "a quote open": "base: 'tiny\n",
    "a colon in a value": "base: a: b\n",
    "two documents": "base: tiny\n---\nbase: tiny\n",
    "an unknown anchor": "base: *nowhere\n",
    "an anchor twice": "base: &a tiny\ndata: &a x\nname: *a\n",
    "a cycle of a list": "base: &a [*a]\n",
    "a cycle of a mapping": "base: &a {path: *a}\n",
    "a cycle of the whole": "&a\nbase: *a\n",
    "aliases that multiply": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
    "merges that multiply": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)),
    "a merge of no mapping": "base: {<<: 5}\n",
    "a merge of itself": "base: &a {<<: *a}\n",
    "code of Python": "base: !!python/object/apply:os.system ['true']\n",
    "a module of Python": "base: !!python/module:os\n",
    "a name of Python": "base: !!python/name:os.system\n",
    "an unknown tag": "base: !thing tiny\n",
    "bytes": "base: !!binary aGVsbG8=\n",
    "bytes that are none": "base: !!binary '*'\n",
    "a set": "seeds: !!set {0, 1}\n",
    "pairs": "base: !!pairs [path: tiny]\n",
    "an ordered mapping": "base: !!omap [path: tiny]\n",
    "a date": "name: 2001-01-01\n",
    "a date that is none": "name: 2001-99-99\n",
    "a time": "name: 2001-01-01T00:00:00Z\n",
    "sixties": "seeds: [1:30:00]\n",
    "octal": "seeds: [0o17, 017, 0b1, 0x1]\n",
    "not a number": "rope: {type: ntk, factor: .nan}\n",
    "endless": "rope: {type: ntk, factor: .inf}\n",
    "1e999": "rope: {type: ntk, factor: 1e999}\n",
    "5,000 digits": "seeds: [" + "9" * 5000 + "]\n",
    "a null key": "~: tiny\n",
    "a number as key": "1: tiny\n",
    "a truth as key": "yes: tiny\n",
    "a list as key": "? [1]\n: 2\n",
    "a mapping as key": "? {a: 1}\n: 2\n",
    "a date as key": "2001-01-01: 2\n",
    "a long key": "x" * 5000 + ": 2\n",
    "a line end in a key": '"a\\nb": 2\n',
    "a NUL": "base: a\0b\n",
    "a bell": "base: a\x07b\n",
    "an escape in quotes": 'base: "\\x1b[31m"\n',
    "half a pair in quotes": 'base: "\\ud800"\n',
    "1,500 brackets": "[" * 1500,
    "1,500 braces": "{" * 1500,
    "1,500 dashes": "- " * 1500,
    "500 levels": "".join(" " * n + f"k{n}:\n" for n in range(500)),
    "a percent sign": "%YAML 9.9\n---\nbase: tiny\n",
    "an at sign": "base: @tiny\n",
    "a backquote": "base: `tiny`\n",
    "a document end": "...\n",
    "JSON": '{"base": "tiny", "data": "tiny", "strategy": "contiguous"}',
    "TOML": 'base = "tiny"\n[data]\npath = "x"\n',
    "XML": "<recipe><base>tiny</base></recipe>\n",
    "3,000 values": "seeds: [" + "1, " * 3000 + "1]\n",
    "200,000 values": "seeds: [" + "1, " * 200_000 + "1]\n",
    "over a MB": "#" * 2**20 + "\nbase: tiny\n",
}
OVERRIDES = (
    *("", "=", "=1", "a", "base", ".", "..=1", "a..b=1", " =1", "base.path.x=1", "data.5.path=x"),
    *("data.x=1", "data.-1.path=x", "seeds.0.x=1", "base=[", "base={", "base='", "base=*a"),
    *("base=&a [*a]", "seeds=-1", "seeds=[1e9]", "strategy.max_position=1e9", "strategy.nam=x"),
    *("strategy.max_position=99999999999999999999", "data.0.max_tokens=-5", "base=!!binary x"),
    *(
        "base=\0",
        "base=\udcff",
        "grid.x=1",
        "grid.strategy.max_position=[]",
        "grid.=[1]",
        "methods=",
    ),
    *("methods.a.b.c.d=1", "trainer.output_dir=/", "trainer.nothing=1", "evaluation.needle=5"),
    *("\u202ebase=x", "name=../x", "name=", "seed=0", "x" * 5000 + "=1", "a" + ".a" * 3000 + "=1"),
)


def recipe_inputs() -> Iterator[Malformed]:
    """Yield recipes: of wrong types, with unknown keys, in broken YAML, with overrides."""
    for path in PATHS:
        for value in ANY:
            name = f"{path}: {json.dumps(value)[:40]}"
            yield Malformed("recipes, wrong values", name, "r.yaml", yaml(with_value(path, value)))
    for path in ("", "base.", "data.0.", "rope.", "strategy.", "key_bias.", "evaluation.needle."):
        for key in ("nothing", "pathh", "Name", "", "a.b", "\u202e"):
            tree = with_value(path + key.replace(".", "_"), 1)
            yield Malformed("recipes, unknown keys", f"{path}{key!r}", "r.yaml", yaml(tree))
    for key in RECIPE:
        tree = {name: value for name, value in RECIPE.items() if name != key}
        yield Malformed("recipes, missing keys", key, "r.yaml", yaml(tree))
    for name, text in TEXTS.items():
        yield Malformed("YAML", name, "r.yaml", text.encode())
    good = yaml(RECIPE)
    for name in ("utf-8-sig", "utf-16", "utf-32", "utf-7", "cp037"):
        raw = good.decode().encode(name)
        yield Malformed("YAML", f"in {name}", "r.yaml", raw)
    for part in range(1, 16):
        cut = good[: len(good) * part // 16]
        yield Malformed("YAML, cut", f"{part} of 16", "r.yaml", cut)
    for name, raw in NOT_UTF8.items():
        yield Malformed("YAML", name, "r.yaml", b"base: a" + raw + b"\n")
    for override in OVERRIDES:
        yield Malformed("overrides", ascii(override)[:40], "r.yaml", good, (override,))


def with_value(path: str, value: Any) -> dict[str, Any]:
    tree: Any = json.loads(json.dumps(RECIPE))
    node = tree
    *keys, last = path.split(".")
    for key in keys:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    node[int(last) if isinstance(node, list) else last] = value
    return tree


def yaml(tree: dict[str, Any]) -> bytes:
    """Return a tree as JSON, which is YAML too."""
    return json.dumps(tree, indent=1).encode()
