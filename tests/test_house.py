"""The house keeps its walls: directions of imports, what is at the root, start-up, one version, typed settings."""

import dataclasses
import subprocess
import sys
import tomllib

import pytest
from conftest import RECIPES, ROOT, settings_class

import ddm
from ddm.__main__ import COMMANDS
from ddm.commands.collect_results import FORMATS
from ddm.data.loading import NAMES
from ddm.data.settings import NAMED
from ddm.evaluation.protocol import EVAL_MODES
from ddm.losses import MOMENTS
from ddm.methods.coreset import methods
from ddm.methods.objective import ICD_FORMS
from ddm.methods.optimizers import SCHEDULES
from ddm.methods.sampling import SAMPLERS
from ddm.methods.step import INITS
from ddm.settings import Role, Settings, declarations

EVERY = [*(name for name in RECIPES), *COMMANDS]


def test_the_directions_of_imports():
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_of_ddm_imports_the_root():
    roots = {path.stem for path in ROOT.glob("*.py")}
    assert roots == {*RECIPES, "networks", "augment", "utils"}
    for path in (ROOT / "ddm").rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            assert not (len(words) > 1 and words[0] in ("import", "from") and words[1] in roots), f"{path}: {line}"


def test_no_namespace_and_no_getattr_fallback_outside_compat():
    for path in (ROOT / "ddm").rglob("*.py"):
        if path.name != "compat.py":
            text = path.read_text()
            assert "Namespace" not in text, path
            assert "getattr(args" not in text and "getattr(settings," not in text, path


@pytest.mark.parametrize("name", EVERY)
def test_help_imports_nothing_heavy(name):
    start = [f"import runpy; runpy.run_path({str(ROOT / f'{name}.py')!r}, run_name='__main__')"]
    if name in COMMANDS:
        start = [f"from ddm.__main__ import main; main([{name!r}, '--help'])"]
    code = "import sys\nsys.argv = ['x', '--help']\ntry:\n    " + start[0]
    code += "\nexcept SystemExit as end:\n    assert end.code in (0, None), end.code\n"
    code += "names = 'torch torchvision numpy scipy sklearn kornia matplotlib tqdm'.split()\n"
    code += "heavy = {*names} & {*sys.modules}\n"
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout and "--version" in done.stdout
    # every flag is explained, the rare ones by --help-all
    for word, own in declarations(settings_class(name)).items():
        assert own.help and (own.hidden or own.rare or own.positional or f"--{word}" in done.stdout), word


def test_the_version_is_stated_once():
    done = subprocess.run([sys.executable, "-m", "ddm", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"ddm {ddm.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and ddm.__version__ not in (ROOT / "CITATION.cff").read_text()
    assert {"test", "hf", "score", "tensorboard", "wandb", "yaml"} <= project["project"]["optional-dependencies"].keys()


def test_every_choice_has_its_row():
    """Choices stand in light modules, the code behind them in tables: both must have the same names."""
    declared = declarations(settings_class("DM_DDM"))
    for name, table in {"init": INITS, "lr_schedule": SCHEDULES, "style_stats": MOMENTS, "icd_form": ICD_FORMS}.items():
        assert set(declared[name].choices) == set(table), name
    assert set(NAMED.split(", ")) == set(NAMES)
    assert set(declarations(settings_class("collect"))["format"].choices) == set(FORMATS)
    for name in SAMPLERS:
        assert name in declared["real_sampling"].help or name == "random"
    for mode in EVAL_MODES:
        assert mode in declared["eval_mode"].help
    for method in methods():
        assert method in declarations(settings_class("coreset"))["method"].help


@pytest.mark.parametrize("name", EVERY)
def test_settings_are_frozen_and_have_roles(name):
    cls = settings_class(name)
    assert issubclass(cls, Settings) and all(isinstance(own.role, Role) for own in declarations(cls).values())
    required = {
        word: "x" for word, f in cls.__dataclass_fields__.items() if f.default is dataclasses.MISSING and word != "to"
    }
    own = cls(**required, **({"to": "png"} if "to" in cls.__dataclass_fields__ else {}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.res = 3
    with pytest.raises(AttributeError):
        own.settting  # noqa: B018 - a typo is an error


def test_the_published_flags_keep_their_names_and_defaults():
    published = {
        **{"dataset": "CIFAR10", "model": "ConvNet_gram", "ipc": 10, "eval_mode": "SS", "num_exp": 5, "num_eval": 20},
        **{"epoch_eval_train": 1000, "Iteration": 20000, "lr_img": 1.0, "lr_net": 0.01, "batch_real": 256},
        **{"batch_train": 256, "init": "real", "dsa_strategy": "color_crop_cutout_flip_scale_rotate"},
        **{"data_path": "data", "save_path": "result", "dis_metric": "ours", "style_ratio": 10000.0},
    }
    for recipe in ("DM_GramMatching", "DM_MeanStd_Matching"):
        values = settings_class(recipe)().values()
        assert {name: values[name] for name in published} == published
    nearest = settings_class("DM_KNearest")().values()
    assert (nearest["model"], nearest["icd_ratio"], nearest["k"]) == ("ConvNet", 10.0, None)
