"""Command lines: what overrides what, and the one line that a mistake gets."""

import json

import pytest
from conftest import command, parsed, run

from ddm import cli
from ddm.__main__ import COMMANDS
from ddm.commands.settings import RecipeSettings
from ddm.settings import declarations, setting


def refused(capsys, name, *argv):
    with pytest.raises(SystemExit) as error:
        command(name, *argv)
    assert error.value.code == 2
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1 and errors[0].startswith("error: "), err
    return err


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("stray", ["", " ", "--nonsense", "--"])
def test_stray_arguments_are_one_line(name, stray, capsys):
    positional = {"evaluate": ["x.pt"], "report": ["x"], "collect": ["x"], "score": ["x.pt"], "prepare": ["X"]}
    required = {"export": ["x.pt", "--to", "png", "--out", "x"], "prepare": ["X", "--source", "x"]}
    argv = required.get(name, positional.get(name, []))
    assert refused(capsys, name, *argv, *([stray] if stray != "--" else ["--ipcc", "3"]))


def test_like_warns_of_another_recipe_and_explicit_flags_override_it(data_path, tmp_path, capsys):
    run("DM_KNearest", data_path, tmp_path, "--Iteration", "1", "--num_eval", "1", "--eval_every", "0")
    path = tmp_path / "results.json"
    capsys.readouterr()
    settings = parsed("DM_DDM", "--like", path, "--ipc", "7")
    assert (settings.ipc, settings.batch_real, settings.icd_ratio) == (7, 6, 10.0)
    command_err = capsys.readouterr().err
    assert "this command has no" not in command_err  # DM_DDM has every flag of DM_KNearest
    record = json.loads(path.read_text())
    record["asked"]["ipc"] = "numbers.json"  # continual takes a number only
    path.write_text(json.dumps(record))
    assert parsed("continual", "--like", path, "--ipc", "3").ipc == 3
    assert "'numbers.json' is not an integer" in refused(capsys, "continual", "--like", path)
    out = tmp_path / "again"
    line = ["--like", path, "--ipc", "2", "--data_path", data_path, "--save_path", out, "--Iteration", "1"]
    command("condense", *line, "--num_eval", "1", "--epoch_eval_train", "1", "--eval_every", "0")
    err = capsys.readouterr().err
    assert f"warning: --like {str(path)[:80]!r}: it is a run of DM_KNearest, this command runs DM_DDM" in err


def test_a_deep_json_of_ipc_is_one_line(data_path, tmp_path, capsys):
    (tmp_path / "ipc.json").write_text("[" * 100_000)
    err = refused(
        capsys, "condense", "--ipc", tmp_path / "ipc.json", "--data_path", data_path, "--save_path", tmp_path / "o"
    )
    assert "not a readable .json" in err and not (tmp_path / "o").exists()


def test_help_names_the_presets_and_samplers(capsys):
    for name, words in (
        ("condense", ("fast, dm, published, paper, style, best", "balanced")),
        ("coreset", ("kcenter",)),
    ):
        with pytest.raises(SystemExit):
            command(name, "--help-all")
        text = " ".join(capsys.readouterr().out.split())
        assert all(word in text for word in words)


def output_of(capsys, *argv):
    """The output of a command that exits with status 0."""
    with pytest.raises(SystemExit) as stop:
        command(*argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_screen_of_help_is_short_and_help_all_has_every_flag(name, capsys):
    short, full = output_of(capsys, name, "--help"), output_of(capsys, name, "--help-all")
    declared = declarations(COMMANDS[name][1])
    shown = {flag for flag, own in declared.items() if not (own.hidden or own.positional)}
    assert all(f"--{flag} " in full or f"--{flag}," in full for flag in shown)
    rare = {flag for flag in shown if declared[flag].rare}
    assert not any(f"--{flag} " in short for flag in rare) and (f"{len(rare)} more flags" in short) == bool(rare)
    assert len(short.splitlines()) <= 100 and f"    ddm {name} " in short


def test_hints_name_the_right_flag_or_command(capsys):
    for argv, hint in (
        ("condense --style_ratio 1", "--mm_ratio weights L_MM, --cm_ratio weights L_CM"),
        ("condense --iteration 1", "did you mean '--Iteration'?"),
        ("condense --learning-rate 1", "unknown argument '--learning-rate' (see --help)"),
        ("condense --method herding", "it is a flag of ddm coreset, not of ddm condense"),
        ("coreset --Iteration 5", "it is a flag of ddm"),
        ("export --file x.pt", "unknown argument '--file' (see --help)"),
        ("condense --dsa_strategy color,crop", "join the operations by _, such as color_crop_flip"),
    ):
        assert hint in refused(capsys, *argv.split()), argv


def test_config_is_written_read_and_overridden(tmp_path, capsys):
    pytest.importorskip("yaml")
    text = output_of(capsys, "condense", "--preset", "fast,dm", "--ipc", "3", "--lr_net", "1e-5", "--print_config")
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert parsed("DM_DDM", "--config", path) == parsed("DM_DDM", "--preset", "fast,dm", "--ipc", 3, "--lr_net", 1e-5)
    assert output_of(capsys, "condense", "--config", str(path), "--print_config") == text
    settings = parsed("DM_DDM", "--config", path, "--ipc", "7", "--preset", "paper")
    assert (settings.ipc, settings.batch_real, settings.mm_ratio) == (7, 32, 10000.0)
    path.write_text("preset: fast\nbatch_real: 8\n")  # the file's values override the file's preset
    assert (parsed("DM_DDM", "--config", path).batch_real, parsed("DM_DDM", "--config", path).Iteration) == (8, 1000)
    as_json = tmp_path / "run.json"
    as_json.write_text('{"ipc": 4, "zca": true, "to": 1}')
    assert "unknown setting 'to': it is a flag of ddm export" in refused(capsys, "condense", "--config", str(as_json))
    for text, hint in (
        ("ipc: few", "'few' is not an integer"),
        ("zca: 3", "argument --zca: 3 is not a valid value"),
        ("Itration: 3", "unknown setting 'Itration': did you mean '--Iteration'?"),
        ("- 3", "is a list: write lines of the form `name: value`"),
        ("a: [", "is not a readable .yaml or .json file"),
    ):
        path.write_text(text)
        assert hint in refused(capsys, "condense", "--config", str(path)), text
    assert "No such file" in refused(capsys, "condense", "--config", str(tmp_path / "none.yaml"))
    path.write_text("to: png\nout: somewhere\n")  # required flags may come from the file
    assert parsed("export", "x.pt", "--config", path).to == "png"
    assert "required: --out" in refused(capsys, "export", "x.pt", "--to", "png")


def test_settings_without_effect_are_warned_of_once_and_logged(data_path, tmp_path, capsys):
    quick = ("--Iteration", "1", "--num_eval", "1", "--epoch_eval_train", "0", "--eval_every", "0")
    run("DM_KNearest", data_path, tmp_path, *quick, "--ipc", "1", "--lr_img", "0")
    err, log = capsys.readouterr().err, (tmp_path / "training.log").read_text()
    for line in ("warning: --lr_img 0 changes no pixel", "warning: --icd_ratio has no effect with 1 image per class"):
        assert err.count(line) == 1 and log.count(line) == 1
    run("DM_KNearest", data_path, tmp_path / "large", *quick, "--lr_img", "1000")
    assert "warning: --lr_img 1000 is very large for sgd" in capsys.readouterr().err


def test_config_and_exclusive_flags_paths_and_long_names(tmp_path, capsys):
    pytest.importorskip("yaml")
    path = tmp_path / "c.yaml"
    path.write_text("model: MLP\n")
    settings = parsed("evaluate", "x.pt", "--config", path, "--eval_mode", "N")
    assert (settings.model, settings.eval_mode) == (None, "N")
    path.write_text("model: MLP\neval_mode: N\n")
    err = refused(capsys, "evaluate", "x.pt", "--config", str(path))
    assert "argument --config: --model and --eval_mode exclude each other: leave one out" in err
    settings = parsed("evaluate", "x.pt", "--config", path, "--model", "ConvNet")
    assert (settings.model, settings.eval_mode) == ("ConvNet", None)
    assert "--model and --eval_mode exclude" in refused(
        capsys, *["evaluate", "x.pt", "--model", "MLP", "--eval_mode", "N"]
    )
    path.write_text("compile: on\ngraphs: off\n")  # YAML's words for false and true
    settings = parsed("condense", "--config", path)
    assert (settings.compile, settings.graphs) == ("on", "off")
    odd = "\N{GRINNING FACE} \u00fc,x"
    path.write_text(output_of(capsys, "condense", "--save_path", odd, "--print_config"))
    assert parsed("condense", "--config", path).save_path == odd
    assert "is too long for a file name" in refused(capsys, "evaluate", "x" * 300)
    assert "is too long for a file name" in refused(capsys, "collect", "x" * 300)


def test_a_recipes_settings_without_a_group_and_with_text_annotations(tmp_path, capsys):
    pytest.importorskip("yaml")

    class Mine(RecipeSettings):
        strength: "int | None" = setting(None, "of a term")
        weight: float = setting(1.0, "of a term")

    with pytest.raises(SystemExit) as stopped:
        cli.parse(Mine, ["--weight", "3", "--print_config"], prog="mine")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "# options\nstrength: null\nweight: 3.0\n" in text
    (tmp_path / "mine.yaml").write_text(text)
    read = cli.parse(Mine, ["--config", str(tmp_path / "mine.yaml"), "--strength", "2"], prog="mine")
    assert (read.weight, read.strength) == (3.0, 2)
    for flags, message in (
        (["--weight", "x"], "'x' is not a number"),
        (["--strength", "2.5"], "'2.5' is not an integer"),
    ):
        with pytest.raises(SystemExit):
            cli.parse(Mine, flags, prog="mine")
        assert message in capsys.readouterr().err


def test_like_is_silent_about_flags_and_presets_that_override_it(data_path, tmp_path, capsys):
    run("DM_KNearest", data_path, tmp_path, "--Iteration", "1", "--num_eval", "1", "--eval_every", "0")
    path = tmp_path / "results.json"
    record = json.loads(path.read_text())
    for name in ("factor", "lr_schedule", "momentum_img"):
        del record["asked"][name], record["args"][name]
    path.write_text(json.dumps(record))
    capsys.readouterr()
    parsed("DM_KNearest", "--like", path, "--factor", "2", "--preset", "fast")
    assert capsys.readouterr().err.strip().endswith("defaults are used, as the file has none: --momentum_img")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ipc", 10, "--ipc 10"),
        ("zca", True, "--zca"),
        ("zca", False, "--no-zca"),
        ("dataset", "/my data/x.npz", "--dataset '/my data/x.npz'"),
    ],
)
def test_a_flag_is_spelled_for_a_shell(name, value, words):
    assert cli.spelled(name, value) == words
