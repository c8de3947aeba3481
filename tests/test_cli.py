"""Command lines: what overrides what, and the one line that a mistake gets."""

import json

import pytest
from conftest import QUICK, command, parsed, run

from ddm.__main__ import COMMANDS


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


def test_a_session_of_version_0_1_0_is_refused_in_one_line_that_says_so(data_path, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps({"key": {"ipc": 1}, "versions": {"ddm": "0.1.0"}}))
    line = [*QUICK[:8], "--data_path", data_path, "--save_path", tmp_path, "--memory", "random", "--seeds", "1"]
    err = refused(capsys, "continual", *line)
    assert "written by version 0.1.0" in err and "name another --save_path" in err


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
            command(name, "--help")
        text = " ".join(capsys.readouterr().out.split())
        assert all(word in text for word in words)
