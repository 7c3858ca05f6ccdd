"""The code of the README and the docs is run, their links hold, and their generated parts are those of the records."""

import ast
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import gen_jax
from gen_jax.cli.main import COMMANDS
from gen_jax.cli.study import COMMANDS as STUDY
from gen_jax.configs import load

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"<!-- run(: slow)? -->\n```python\n(.*?)```", re.DOTALL)
QUICK = ("README.md",)  # of the blocks that are not slow, those of these pages are run by `make test`


def blocks():
    for page in PAGES:
        for number, (slow, code) in enumerate(BLOCK.findall(page.read_text())):
            marks = [pytest.mark.slow, pytest.mark.optimized] if slow or page.name not in QUICK else []
            yield pytest.param(code, id=f"{page.relative_to(ROOT)}:{number}", marks=marks)


@pytest.mark.parametrize("code", list(blocks()))
def test_code_runs(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})


def test_the_readme_is_short_and_begins_with_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    assert re.search(r"make train.*\n.*make test", text)


def test_the_commands_exist(monkeypatch):
    """Every command of the pages is understood; the configs it names exist."""
    monkeypatch.chdir(ROOT)
    shell = [block for page in PAGES for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [shlex.split(line, comments=True) for block in shell for line in block.splitlines() if line.strip()]
    names = {command.__name__ for command in COMMANDS} | {"train", "sweep"}
    seen = set()
    for words in lines:
        if words[:2] == ["python", "train.py"]:
            words = ["python", "-m", "gen_jax", "train", *words[2:]]
        if words[:1] == ["gen_jax"]:
            words = ["python", "-m", *words]
        if words[:3] != ["python", "-m", "gen_jax"]:
            continue
        if words[3] == "study":
            assert words[4] in STUDY, words
            continue
        assert words[3] in names, words
        seen.add(words[3])
        if words[3] == "train" and not Path(words[4]).name.startswith(
            ("vae_annealed", "my_", "mine", "NAME", "CONFIG")
        ):
            load(words[4])
    assert {"train", "sample", "evaluate", "compare", "bench", "data", "configs"} <= seen


def test_make_targets_exist():
    named = {m for page in PAGES for m in re.findall(r"`make ([a-z-]+)`", page.read_text())}
    for target in sorted(named | {"train", "test"}):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"make {target}: {done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_links_and_paths_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:\s]+)[^)]*\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:gen_jax|tests|benchmarks|configs|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists() or any(w in path for w in ("NAME", "vae_annealed", "mine", "my_")), path
    for name in re.findall(r"`(gen_jax(?:\.\w+)+)`", text):
        _resolve(name)


def _resolve(name: str) -> object:
    """The object of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_every_public_name_is_on_an_api_page():
    """Modules are documented whole: each has a page, and says by `__all__` what is public."""
    pages = "\n".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    documented = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    missing = []
    for module in pkgutil.walk_packages(gen_jax.__path__, "gen_jax."):
        path = Path(module.module_finder.path) / module.name.rpartition(".")[2]
        text = path.with_suffix(".py") if not module.ispkg else path / "__init__.py"
        internal = module.name.startswith(("gen_jax.cli", "gen_jax.data.builders")) or module.name.endswith("__main__")
        names = [n for n in ast.parse(text.read_text()).body if isinstance(n, ast.Assign) and _is_all(n)]
        if names and not internal and not module.ispkg and module.name not in documented:
            missing.append(module.name)
    assert not missing, f"on no page of docs/api: {missing}"


def _is_all(node) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"


def test_public_names_are_imported_when_asked_for():
    code = "import sys, gen_jax; assert 'jax' not in sys.modules; gen_jax.fit; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert {"fit", "State", "descent", "em", "load", "GMM", "VAE"} <= set(gen_jax.__all__)
    for name in gen_jax.__all__:
        assert vars(gen_jax).get(name) is not None or gen_jax.__getattr__(name) is not None
    with pytest.raises(AttributeError):
        gen_jax.nothing  # noqa: B018


def test_pages_of_results_are_those_of_the_records():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_address_path_or_machine_name_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed or [str(p.relative_to(ROOT)) for p in ROOT.glob("*.*")]:
        if name.endswith((".py", ".toml", ".lock", ".md", ".yml", ".cff", "Makefile", "run")):
            text = (ROOT / name).read_text()
            pattern = r"--(extra-)?index-url|pypi\.org|/home/\w|/root/"
            assert not re.search(pattern, text) or name.startswith("tests/"), name
