"""README.md and README.zh-CN.md say the same: alike in structure, code, figures and links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREE = "Where things are"  # the tree of files stands in one of them


def read(name: str) -> str:
    """Return a README whose comments within code are no headings."""
    text = (ROOT / name).read_text(encoding="utf-8")
    fences = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return fences.sub(lambda found: found[0].replace("\n#", "\n #"), text)


def parts(name: str) -> list[tuple[str, str]]:
    """Return level and text of each part of a README, its heading left out."""
    found = re.split(r"^(#+) (.+)$", read(name), flags=re.MULTILINE)
    return list(zip(found[1::3], found[3::3], strict=True))


def headings(name: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", read(name), re.MULTILINE)


ENGLISH, CHINESE = parts("README.md"), parts("README.zh-CN.md")
TOLD = [heading for heading in headings("README.md") if heading != TREE]


def code(text: str) -> list[str]:
    """Return the lines of code, comments left out."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"^ {4}\S.*$", plain, re.MULTILINE)
    return [line.partition(" #")[0].rstrip() for line in lines if line.strip()]


def table_rows(text: str) -> list[str]:
    """Return what stands in the first column of each row, and the figures of all others."""
    rows = re.findall(r"^\| (.+?) \|(.*)$", text, re.MULTILINE)
    return [f"{first} {figures(rest)}" for first, rest in rows if not first.startswith("命令")]


def figures(text: str) -> list[str]:
    return re.findall(r"\d[\d,.]*\d|\d", text)


def test_both_have_the_same_parts():
    assert len(ENGLISH) > 8
    assert [level for level, _ in CHINESE] == [level for level, _ in ENGLISH]


@pytest.mark.parametrize("heading", TOLD)
def test_a_part_has_the_same_code_tables_links_and_figures(heading: str):
    index = headings("README.md").index(heading)
    english, chinese = ENGLISH[index][1], CHINESE[index][1]
    assert code(chinese) == code(english)
    theirs = [row for row in table_rows(english) if not row.startswith("command")]
    assert table_rows(chinese) == theirs
    links = r"\]\(([^)]+)\)"
    ours = sorted(set(re.findall(links, chinese)) - {"README.md"})
    assert ours == sorted(set(re.findall(links, english)) - {"README.zh-CN.md"})
    prose = re.sub(r"^ {4}.*$|^\|.*$", "", english, flags=re.MULTILINE)
    measured = r"\d+\.\d+"
    assert sorted(re.findall(measured, chinese)) == sorted(re.findall(measured, english))
    names = r"`[^`\n]+`"
    assert set(re.findall(names, prose)) <= set(re.findall(names, chinese))


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_every_link_to_a_file_leads_somewhere(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
