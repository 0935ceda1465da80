"""What is built to be published is whole, and runs where nothing else of the repository is."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", out)
    subprocess.run([*build, ROOT], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


def tracked(*folders: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("needs a git clone: it compares with the files that git tracks")
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


def test_a_wheel_holds_every_file_of_the_package_and_every_recipe(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    package = {path.removeprefix("src/") for path in tracked("src/skipalign")}
    recipes = {f"skipalign/{path}" for path in tracked("recipes")}
    assert package | recipes <= names
    assert {"skipalign/py.typed", "skipalign/recipes/accelerate/fsdp2.yaml"} <= names
    outside = [name for name in names if not name.startswith("skipalign")]
    assert not outside
    assert not [name for name in names if name.endswith((".pyc", ".log", "~"))]
    licences = {name.rpartition("/")[2] for name in names if "dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


def test_a_source_archive_holds_what_building_and_testing_need(built: Path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "NOTICE", "LICENSE", "constraints.txt", "Makefile"}
    assert needed | {*tracked("src", "tests", "recipes", "docs")} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "build", ".git/"))]


def test_the_metadata_are_those_of_the_project(wheel: zipfile.ZipFile):
    path = next(name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
    found = message_from_bytes(wheel.read(path))
    assert (found["Name"], found["License-Expression"]) == ("skipalign", "Apache-2.0")
    assert set(found.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert found["Description-Content-Type"] == "text/markdown"
    assert "# skipalign" in found.get_payload()
    assert found["Summary"] == PROJECT["description"]
    assert "Programming Language :: Python :: 3.11" in found.get_all("Classifier")


def test_every_extra_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    for extra in PROJECT["optional-dependencies"]:
        assert re.search(rf"^{extra} = .*# \w", section, re.MULTILINE), extra


def test_the_packages_that_are_pinned_hold_every_requirement():
    """What CI installs with constraints.txt is pinned: nothing comes in a version of its own."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {normal(name) for name in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)}
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = {normal(re.split(r"[\[<>=!~ ]", each, maxsplit=1)[0]) for each in asked}
    assert names <= pinned, "pin them in constraints.txt"


def test_what_the_package_imports_is_required_by_it_or_by_an_extra():
    extras = [each for listed in PROJECT["optional-dependencies"].values() for each in listed]
    required = {
        normal(re.split(r"[\[<>=!~ ]", each, maxsplit=1)[0])
        for each in (*PROJECT["dependencies"], *extras)
    } | {"pydantic-core", "markupsafe"}  # parts of pydantic and of jinja2
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names}:
                if top in sys.stdlib_module_names or top == "skipalign":
                    continue
                known = normal({"yaml": "pyyaml"}.get(top, top))
                assert known in required, f"{path.name} imports {top}, which nothing requires"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.long
def test_a_wheel_runs_beside_the_packages_alone(built: Path, tmp_path: Path):
    """In a fresh environment that sees the installed packages, and nothing of the repository."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    place = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    (Path(place) / "packages.pth").write_text(sysconfig.get_path("purelib"))
    install = (sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "-q")
    wheel = next(built.glob("*.whl"))
    subprocess.run([*install, "--no-deps", "--no-index", "--ignore-installed", wheel], check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *words: str) -> str:
        done = subprocess.run(
            [home / "bin" / program, *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    package = run("python", "-c", "import skipalign; print(skipalign.__path__[0])").strip()
    assert package.startswith(str(home))
    assert "skipalign run tiny" in run("skipalign", "--help")
    assert json.loads(run("skipalign", "doctor", "--json"))["ok"]
    assert "skipalign-bias" in run("skipalign", "run", "tiny", "--dry-run")
    assert "normal" in run("skipalign", "plan", "llama-2-7b", "--gpu", "h100")
    assert (Path(package) / "recipes/accelerate/fsdp2.yaml").is_file()
