"""The commands of README and docs/ run as they stand, in the order they stand, on tiny data with tiny budgets.

Each ```bash block is run in a folder of its page, and the ```python block of README. To commands that train, flags of
a tiny budget are added. Commands in tables of docs/ are only parsed. A ```text block and indented lines are synopses.
Those of docs/sweeps.md run in test_docs.py, those of docs/extending.md in test_extending.py.
"""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPES, ROOT, parsed, recipe_of, tiny_arrays

from ddm import __main__ as entry
from ddm.commands import condense

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TINY = "--num_eval 1 --epoch_eval_train 1 --num_exp 1 --compile off"
BUDGETS = {  # command -> flags of a tiny budget
    "recipe": f"{TINY} --Iteration 2 --batch_real 4 --eval_every 0",
    "condense": f"{TINY} --Iteration 2 --batch_real 4 --eval_every 0 --model ConvNetW32 --ipc 2",
    "coreset": f"{TINY} --proxy_epochs 1 --model ConvNetW32",
    "continual": "--num_eval 1 --epoch_eval_train 1 --Iteration 1 --batch_real 4 --proxy_epochs 1 --seeds 1 --ipc 1"
    " --steps 2 --model ConvNetW32",
    "evaluate": "--num_eval 1 --epochs 0 --compile off",
}
# First words of commands that other tests or .ci/run execute, or that leave this machine.
ELSEWHERE = {
    "pip": ".ci/run",
    "python3": ".ci/run: README's lines of installation",
    "torchrun": "tests/test_ranks.py",
    "sbatch": "tests/test_docs.py runs the script",
    "python benchmarks": "programs that take minutes",
    "scripts": "tests/test_docs.py",
    "ddm score": "tests/test_score.py",
    "python my_recipe.py": "tests/test_extending.py",
    "python scripts": "draws README's pictures from runs of hours",
}
# Words of a command -> the optional package that it needs; .ci/run installs them.
OPTIONAL = {"--config": "yaml", "--to safetensors": "safetensors", "--to hf": "datasets"}


def commands(text: str) -> list[str]:
    """The command lines of a shell block; a trailing backslash continues a line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def demo(line: str) -> str:
    """The part of README's first line that follows the installation; other lines unchanged."""
    return re.sub(r"^.*&& \.venv/bin/python (DM_|-m ddm)", r"python \1", line)


def elsewhere(line: str) -> bool:
    return any(f"{line.removeprefix('.venv/bin/')} ".startswith((f"{word} ", f"{word}/")) for word in ELSEWHERE)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.S | re.M)


def in_tables(page: Path) -> list[str]:
    """The complete commands in backticks, without placeholders, of recipes and of commands without a FILE."""
    found = re.findall(r"`((?:ddm (?:condense|coreset|continual)|python DM_\w+\.py) -[^`]*)`", page.read_text())
    left_out = re.compile(r"--help| [A-Z]+( |$)|,[A-Z]+|\.\.\.|\{")
    return [line for line in found if not left_out.search(line)]


def run_line(line: str) -> str:
    """Run one command in this process; return what it wrote to a file by `>`, or ''."""
    words, redirected = shlex.split(line), None
    if ">" in words:
        words, redirected = words[: words.index(">")], words[-1]
    words = words[1:] if words[0] == "python" else words
    script = words[0].removesuffix(".py")
    name, rest = ("recipe", words[1:]) if script in RECIPES else (words[1], words[2:])
    flags = [] if "--print_config" in rest else BUDGETS.get(name, "").split()
    out = sys.stdout
    if redirected:
        sys.stdout = open(redirected, "w")  # noqa: SIM115 - closed below
        sys.stdout.reconfigure = lambda **options: None
    try:
        if name == "recipe":
            condense.run_recipe(recipe_of(script), parsed(script, *rest, *flags))
        else:
            entry.main([name, *rest, *flags])
    except SystemExit as stop:
        assert stop.code in (0, None), f"{line}: status {stop.code}"
    finally:
        if redirected:
            sys.stdout.close()
            sys.stdout = out


@pytest.fixture
def page_folder(tmp_path, monkeypatch):
    """A folder with tiny data sets, as a clone's root with its data."""
    (tmp_path / "data").mkdir()
    arrays = tiny_arrays(train=12, test=1)
    np.savez(tmp_path / "data" / "CIFAR10.npz", **arrays)
    hundred = {}
    for split in ("train", "test"):  # the same images ten times, as 100 classes
        hundred[f"x_{split}"] = np.tile(arrays[f"x_{split}"], (10, 1, 1, 1))
        hundred[f"y_{split}"] = np.arange(len(hundred[f"x_{split}"])) % 100
    np.savez(tmp_path / "data" / "CIFAR100.npz", **hundred)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_commands_of_a_page(page, page_folder, capsys):
    ran, tables = 0, in_tables(page) if page.name == "README.md" else []
    lines = [line for block in blocks(page) for line in commands(block)] + tables
    for words, package in OPTIONAL.items():
        if any(words in line for line in lines):
            pytest.importorskip(package)
    for line in lines:
        line = demo(line)
        if not elsewhere(line):
            run_line(line)
            ran += 1
    assert ran or page.stem == "speed", "no command ran"


def test_the_commands_of_tables_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [line for page in PAGES for line in in_tables(page)]
    assert len(found) > 10
    for line in found:
        _, name, *rest = shlex.split(line)
        parsed(name.removesuffix(".py"), *rest)


def test_the_python_of_readme(page_folder, capsys):
    readme = ROOT / "README.md"
    run_line(demo(next(line for block in blocks(readme) for line in commands(block))))
    (code,) = re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.S | re.M)
    exec(code, {})
    assert "torch.Size" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["docs/sets.md", "sets/README.md"])
def test_the_python_of_a_page_about_sets(page, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(ROOT)
    for code in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M):
        found = {}
        exec(code.replace("range(1001)", "range(1)"), found)
        assert len(found["train"]) >= 100 if "train" in found else found["images"].shape == (100, 3, 32, 32)


def test_another_set_is_compared_as_docs_say(page_folder, capsys):
    pytest.importorskip("safetensors")
    (line,) = re.findall(r"^    (ddm evaluate mine\.pt .*)$", (ROOT / "docs" / "sets.md").read_text(), re.M)
    arrays = tiny_arrays()
    images = torch.from_numpy(arrays["x_train"][:20]).permute(0, 3, 1, 2) / 255
    torch.save([images, torch.arange(20) % 10], "mine.pt")
    (page_folder / "sets").symlink_to(ROOT / "sets")
    run_line(line)
    out = capsys.readouterr().out
    assert "minus mine.pt" in out and "random" in out


def test_every_link_of_the_documentation_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(#[^)]*)?\)", page.read_text()):
            if not target[0].startswith("http"):
                assert (page.parent / target[0]).exists(), f"{page.name}: {target[0]}"
                if target[1]:
                    anchors = {
                        re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-")
                        for head in re.findall(r"^#+ (.*)$", (page.parent / target[0]).read_text(), re.M)
                    }
                    assert target[1][1:] in anchors, f"{page.name}: {target[0]}{target[1]}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200
