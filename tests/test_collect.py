"""`ddm collect`: the tables and plots of many results.json files."""

import csv
import json

import numpy as np
import pytest
from conftest import ROOT, command, command_line

from ddm.commands import collect_results, run_records
from ddm.errors import UserError
from ddm.evaluation import protocol


def write_results(folder, accs, recipe="DM_DDM", first=0, **args):
    """A results.json of experiments with the accuracies given, [experiment][network]."""
    folder.mkdir(parents=True)
    args = {"dataset": "CIFAR10", "ipc": 10, "seed": 0, "model": "ConvNet", "recipe": recipe, "Iteration": 5} | args
    flat = [acc for own in accs for acc in own]
    evaluations = [
        {"experiment": e, "iteration": i, "images": "condensed", "model": "ConvNet", "accuracies": own}
        for e, own in enumerate(accs, first)
        for i in sorted({2, 5, args["Iteration"]})
    ]
    record = {"args": args, "protocol": "p", "evaluations": evaluations}
    record |= {"mean": float(np.mean(flat)), "std": float(np.std(flat)), "n": len(flat)}
    (folder / "results.json").write_text(json.dumps(record))


def test_a_ratio_of_0_is_plain_dm_for_every_recipe(tmp_path, capsys):
    """Defect U3: DM_GramMatching's and DM_MeanStd_Matching's weight was not known as one."""
    for recipe, flag in (("DM_GramMatching", "style_ratio"), ("DM_KNearest", "icd_ratio")):
        folder = tmp_path / recipe
        write_results(folder / "zero", [[0.4], [0.5]], recipe, **{flag: 0.0})
        write_results(folder / "weighted", [[0.45], [0.56]], recipe, **{flag: 100.0})
        command("collect", folder)
        (row,) = (line for line in capsys.readouterr().out.splitlines() if "| weighted |" in line)
        assert "| +5.50 |" in row and "2 experiments | zero |" in row


def test_the_table_pairs_experiments_with_dm(tmp_path, capsys):
    zero = {"mm_ratio": 0, "cm_ratio": 0, "icd_ratio": 0, "rr_ratio": 0, "mmd_ratio": 1}
    dm, other = [[0.40, 0.42], [0.44, 0.46], [0.40, 0.40]], [[0.43, 0.45], [0.45, 0.47], [0.41, 0.43]]
    write_results(tmp_path / "dm", dm, **zero)
    write_results(tmp_path / "style", other, **zero | {"mm_ratio": 180})
    write_results(tmp_path / "best", other, **zero | {"rr_ratio": 30})  # sorts before dm
    write_results(tmp_path / "long_dm", other, **zero | {"Iteration": 2})
    write_results(tmp_path / "long", other, **zero | {"Iteration": 2, "mm_ratio": 1})
    write_results(tmp_path / "ipc1", other, **zero | {"ipc": 1, "cm_ratio": 1})
    write_results(tmp_path / "random", [[0.2, 0.3]], recipe="coreset", method="random", Iteration=5)
    write_results(tmp_path / "herding", [[0.2, 0.3]] * 3, recipe="coreset", method="herding", Iteration=2)
    command("collect", tmp_path, "--csv", tmp_path / "t.csv", "--plot", tmp_path / "p.png")
    printed = capsys.readouterr().out
    rows = {row["run"]: row for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())}
    assert all(f"| {run} |" in printed for run in rows) and len(rows) == 8
    differences = [3.0, 1.0, 2.0]
    half = 4.302653 * np.std(differences, ddof=1) / 3**0.5  # Student's t with 2 degrees of freedom
    assert rows["style"]["minus DM"] == "+2.00" and rows["style"]["95 % interval"] == f"± {half:.2f}"
    assert rows["style"]["pairs"] == "3 experiments" and rows["style"]["accuracy %"] == "44.00"
    assert rows["best"]["minus DM"] == "+2.00" and rows["best"]["DM run"] == "dm"
    assert rows["long"]["minus DM"] == "+0.00" and rows["long"]["DM run"] == "long_dm"
    assert rows["herding"]["DM run"] == "dm" and rows["herding"]["pairs"] == "3 experiments"
    assert rows["dm"]["minus DM"] == rows["ipc1"]["minus DM"] == ""
    assert rows["random"]["minus DM"] == "-16.00" and "networks" in rows["random"]["pairs"]
    assert (tmp_path / "p.png").stat().st_size > 10_000


ZERO = {"mm_ratio": 0, "cm_ratio": 0, "icd_ratio": 0, "rr_ratio": 0, "mmd_ratio": 1}


def rows_of(folder):
    results = run_records.load([str(folder)])
    rows = [collect_results.Row(result.name, [result]) for result in results]
    return {row["run"]: row for row in collect_results.table(rows, [])}


def test_another_baseline(tmp_path, capsys):
    write_results(tmp_path / "strong", [[0.60], [0.62]], **ZERO | {"rr_ratio": 0.3}, num_exp=2)
    write_results(tmp_path / "no_rr", [[0.50], [0.53]], **ZERO, num_exp=2)
    command("collect", tmp_path, "--baseline", "strong", "--csv", tmp_path / "t.csv", "--out", tmp_path / "t.tex")
    rows = {row["run"]: row for row in csv.DictReader((tmp_path / "t.csv").open())}
    half = 12.7062 * np.std([10.0, 9.0], ddof=1) / 2**0.5
    assert rows["no_rr"]["minus strong"] == "-9.50" and rows["no_rr"]["95 % interval"] == f"± {half:.2f}"
    assert rows["no_rr"]["strong run"] == "strong" and rows["strong"]["minus strong"] == ""
    assert "Minus strong: mean paired difference" in (tmp_path / "t.tex").read_text()
    with pytest.raises(SystemExit):
        command("collect", tmp_path, "--baseline", "stron")
    assert "did you mean 'strong'?" in capsys.readouterr().err


def test_experiments_run_apart_are_one_row(tmp_path, capsys):
    dm, other = [[0.40, 0.42], [0.44, 0.46]], [[0.43, 0.45], [0.45, 0.47]]
    write_results(tmp_path / "dm", dm, **ZERO, num_exp=2)
    for e in (1, 0):  # the folder of experiment 0 comes second
        write_results(tmp_path / f"best_{1 - e}", other[e : e + 1], first=e, **ZERO | {"rr_ratio": 30}, first_exp=e)
    write_results(tmp_path / "best_again", other, **ZERO | {"rr_ratio": 30})  # the same experiments: not merged
    rows = rows_of(tmp_path)
    assert rows.keys() == {"dm", "best_0", "best_again"}
    assert {k: v for k, v in rows["best_0"].items() if k != "run"} == {
        k: v for k, v in rows["best_again"].items() if k != "run"
    }
    assert "best_0 and best_1 are merged, experiments 0, 1" in capsys.readouterr().err
    write_results(tmp_path / "five", other[:1], **ZERO, num_exp=1, num_eval=5)
    write_results(tmp_path / "two", other[1:], first=1, **ZERO, num_exp=1, first_exp=1, num_eval=2)
    assert {"five", "two"} < rows_of(tmp_path).keys()  # their experiments do not weigh the same


def test_the_likest_dm_run_is_the_one_that_is_compared_with(tmp_path, capsys):
    accs = [[0.4], [0.5]]
    write_results(tmp_path / "a_noise", accs, **ZERO, init="noise")
    write_results(tmp_path / "b_other_lr", accs, **ZERO, init="real", lr_img=1.0)
    write_results(tmp_path / "c_dm", accs, **ZERO, init="real", lr_img=5.0)
    write_results(tmp_path / "own_term", accs, cosine_ratio=0, init="real", lr_img=5.0)  # without L_MMD
    write_results(tmp_path / "style", accs, **ZERO | {"mm_ratio": 1}, init="real", lr_img=5.0)
    write_results(tmp_path / "style_lr", accs, **ZERO | {"mm_ratio": 1}, init="real", lr_img=9.0)
    write_results(tmp_path / "style_res", accs, **ZERO | {"mm_ratio": 1}, init="real", lr_img=5.0, res=64)
    write_results(tmp_path / "pool", accs, **ZERO | {"mm_ratio": 1}, init="real", lr_img=5.0, model="ConvNetBN")
    rows = rows_of(tmp_path)
    assert rows["style"]["DM run"] == "c_dm" and rows["style_lr"]["DM run"] == "b_other_lr"
    assert rows["style_res"]["DM run"] == "" and rows["own_term"]["DM run"] == "c_dm"
    said = capsys.readouterr().err
    assert "style_lr and b_other_lr, its baseline, differ in --lr_img" in said and "note: style and" not in said
    assert "style_res is not compared with b_other_lr: --res is 64 and unset\n" in said
    assert "pool: condensed on ConvNetBN, accuracy of ConvNet" in said


def test_the_table_refuses_what_is_not_a_result(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text("{}")
    (tmp_path / "worse").mkdir()
    record = {"args": {}, "protocol": "", "evaluations": [], "mean": 0, "std": 0, "n": 1}
    (tmp_path / "worse" / "results.json").write_text(json.dumps(record))
    refused = {"empty": "no results.json", "gone": "no results.json", "bad": "no results.json of a recipe"}
    refused |= {"worse": "no results.json of a recipe"}
    for name, text in refused.items():
        with pytest.raises(UserError, match=text):
            run_records.load([str(tmp_path / name)])
    with pytest.raises(UserError, match=r"it has no .*Iteration"):
        run_records.load([str(tmp_path / "worse" / "results.json")])
    write_results(tmp_path / "good", [[0.4]])
    assert [result.name for result in run_records.load([str(tmp_path)])] == ["good"]
    assert capsys.readouterr().err.count("skipped") == 2 + 2
    done = command_line("collect", str(tmp_path / "gone"))
    assert done.returncode == 2 and refused["gone"] in done.stderr and done.stderr.count("\n") == 1


def sweep(folder, recipe="DM_GramMatching"):
    """Runs of two weights and three seeds, of two networks each, in folders whose last parts are equal."""
    accs = {0: [0.40, 0.44, 0.42], 1000: [0.41, 0.47, 0.45]}
    for ratio, means in accs.items():
        for seed, mean in enumerate(means):
            own = [[mean - 0.01, mean + 0.01]]
            path = folder / f"ratio_{ratio}" / f"seed_{seed}" / "run"
            write_results(path, own, recipe, style_ratio=float(ratio), seed=seed, num_eval=2)
    return folder


def columns_of(out):
    lines = [line[2:-2].split(" | ") for line in out.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_runs_are_named_by_what_differs_and_settings_that_differ_are_columns(tmp_path, capsys):
    """Defect U4: two rows were called seed_0, and no column said what differs."""
    command("collect", sweep(tmp_path))
    rows = columns_of(capsys.readouterr().out)
    assert [row["run"] for row in rows] == [f"ratio_{r}/seed_{s}" for r in (0, 1000) for s in range(3)]
    assert [(row["style_ratio"], row["seed"]) for row in rows] == [(r, s) for r in ("0", "1000") for s in "012"]
    assert list(rows[0])[4:6] == ["seed", "style_ratio"]
    assert "num_eval" not in rows[0] and "Iteration" not in rows[0]
    assert [row["DM run"] for row in rows[3:]] == [f"ratio_0/seed_{seed}" for seed in range(3)]
    command("collect", tmp_path / "ratio_0", tmp_path / "ratio_1000", tmp_path)  # named twice: once in the table
    assert len(columns_of(capsys.readouterr().out)) == 6
    command("collect", tmp_path / "ratio_0" / "seed_0", "--columns", "Iteration,model")
    (row,) = columns_of(capsys.readouterr().out)
    assert row["run"] == "run" and row["Iteration"] == "5" and row["model"] == "ConvNet"
    command("collect", tmp_path, "--columns", "none")
    assert list(columns_of(capsys.readouterr().out)[0]) == [
        *("dataset", "ipc", "run", "made by", "accuracy %", "std", "n", "minus DM", "95 % interval", "pairs", "DM run")
    ]


@pytest.mark.parametrize("names", ["auto", "style_ratio", " --style_ratio,ipc"])
def test_group_by_averages_over_seeds_and_pairs_the_same_seeds(tmp_path, capsys, names):
    command("collect", sweep(tmp_path), f"--group_by={names}")
    out, err = capsys.readouterr()
    zero, weighted = columns_of(out)
    assert err == "" and zero["run"] == "ratio_0" and weighted["run"] == "ratio_1000"
    assert (zero["accuracy %"], zero["std over seeds"]) == ("42.00", f"{np.std([40, 44, 42]):.2f}")
    assert (zero["seeds"], zero["networks"], zero["minus DM"]) == ("3", "6", "")
    differences = [1.0, 3.0, 3.0]
    half = 4.302653 * np.std(differences, ddof=1) / 3**0.5
    assert (weighted["minus DM"], weighted["95 % interval"]) == ("+2.33", f"± {half:.2f}")
    assert (weighted["pairs"], weighted["DM run"]) == ("3 experiments", "ratio_0")


def test_group_by_warns_of_what_it_averages_over(tmp_path, capsys):
    sweep(tmp_path)
    write_results(tmp_path / "lr", [[0.5], [0.6]], "DM_GramMatching", style_ratio=1000.0, seed=3, lr_img=9.0)
    write_results(tmp_path / "old", [[0.5], [0.6]], "DM_GramMatching", style_ratio=1000.0, seed=3, zca=False)
    command("collect", tmp_path, "--group_by", "style_ratio")
    out, err = capsys.readouterr()
    assert err.count("warning") == 1 and "rows average over runs that differ in --lr_img: add" in err
    rows = columns_of(out)
    assert rows[0]["runs"] == "5" and "std over runs" in rows[0] and "seeds" not in rows[0]  # seed 3 is there twice
    assert rows[0]["run"] == "lr and 4 more"
    write_results(tmp_path / "copy", [[0.5], [0.6]], "DM_GramMatching", style_ratio=1000.0, seed=3)
    command("collect", tmp_path, "--group_by", "auto")
    out, err = capsys.readouterr()
    assert "warning: copy and old have equal settings and seeds, and both count" in err
    assert [row["lr_img"] for row in columns_of(out)] == ["", "9", ""]


def test_a_setting_that_only_some_recipes_have_does_not_differ(tmp_path):
    write_results(tmp_path / "a", [[0.4]], **ZERO | {"mm_ratio": 5.0}, lr_img=1.0, model="ConvNet_gram")
    write_results(tmp_path / "old", [[0.4]], "DM_DDM", mmd_ratio=1.0, mm_ratio=5.0, lr_img=1.0)
    write_results(tmp_path / "random", [[0.2]], "coreset", method="random", Iteration=5)
    assert run_records.differing(run_records.load([str(tmp_path)])) == []


def test_rows_are_in_the_order_of_numbers_in_their_paths(tmp_path):
    for name in ("lr_10", "lr_0.5", "lr_5", "dm"):
        write_results(tmp_path / name, [[0.4]])
    assert [result.name for result in run_records.load([str(tmp_path)])] == ["dm", "lr_0.5", "lr_5", "lr_10"]


def test_names_that_no_run_has_are_one_line(tmp_path, capsys):
    sweep(tmp_path)
    for flag in ("--group_by", "--columns"):
        with pytest.raises(SystemExit) as error:
            command("collect", tmp_path, flag, "style_ration")
        err = capsys.readouterr().err
        assert error.value.code == 2 and err.startswith(f"error: {flag}: no run has a setting 'style_ration'")
        assert "did you mean 'style_ratio'?" in err and err.count("\n") == 1
    with pytest.raises(SystemExit):
        command("collect", tmp_path, "--out", tmp_path / "gone" / "t.tex")
    assert "error: --out" in capsys.readouterr().err


def test_latex_is_a_booktabs_table_with_the_best_in_bold(tmp_path, capsys):
    accs = [[0.40, 0.42], [0.44, 0.46]]
    write_results(tmp_path / "50%_a&b", accs, **ZERO | {"mm_ratio": 5.0}, Iteration=5)
    write_results(tmp_path / "dm", [[0.30], [0.31]], **ZERO)
    write_results(tmp_path / "full", [[0.9]], "coreset", method="full")
    write_results(tmp_path / "single", [[0.2]], **ZERO | {"ipc": 1, "mm_ratio": 5.0})
    command("collect", tmp_path, "--columns", "none", "--out", tmp_path / "t.tex", "--csv", tmp_path / "t.csv")
    assert capsys.readouterr().out == ""
    lines = (tmp_path / "t.tex").read_text().splitlines()
    begin, end = lines.index(r"\midrule"), lines.index(r"\bottomrule")
    assert lines[0] == r"% needs \usepackage{booktabs}" and lines[begin - 2] == r"\toprule"
    assert lines[begin - 1] == r"ipc & run & made by & accuracy, \% & n & minus DM \\"
    assert lines[begin + 1 : end] == [
        rf"10 & 50\%\_a\&b & DM\_DDM & $\mathbf{{43.00 \pm {100 * np.std(accs):.2f}}}$ & 4 & $+12.50 \pm 19.06$ \\",
        r"10 & dm & DM\_DDM & $30.50 \pm 0.50$ & 2 &  \\",
        r"10 & full & full & $90.00$ & 1 & $+60.00$ \\",  # an upper baseline is not the best set; one network
        r"\midrule",
        r"1 & single & DM\_DDM & $\mathbf{20.00}$ & 1 &  \\",
    ]
    caption = next(line for line in lines if line.startswith(r"\caption"))
    assert "dataset CIFAR10" in caption and "deviation over networks" in caption and "over condensations" in caption
    assert len(list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))) == 4


def test_a_validation_split_is_named_and_has_its_own_best(tmp_path, capsys):
    write_results(tmp_path / "a", [[0.4]], **ZERO)
    write_results(tmp_path / "b", [[0.6]], **ZERO | {"eval_split": "val"})
    write_results(tmp_path / "c", [[0.3]], **ZERO | {"ipc": 1})
    write_results(tmp_path / "d", [[0.2]], **ZERO)
    command("collect", tmp_path, "--columns", "none", "--format", "latex")
    out = capsys.readouterr().out
    assert out.count("mathbf") == 3 and out.count(r"\midrule") == 3  # blocks, also of rows that are apart
    command("collect", tmp_path / "b", "--columns", "none", "--format", "latex")
    assert "CIFAR10 (validation split)" in capsys.readouterr().out.split("caption")[1].splitlines()[0]


def test_latex_of_a_sweep_has_its_settings_instead_of_paths(tmp_path, capsys):
    command("collect", sweep(tmp_path), "--group_by", "auto", "--format", "latex")
    out = capsys.readouterr().out
    assert r"style\_ratio & accuracy, \% & seeds & minus DM \\" in out and "deviation over seeds" in out
    assert r"1000 & $\mathbf{44.33 \pm 2.49}$ & 3 & $+2.33 \pm 2.87$ \\" in out


def test_a_plot_over_the_setting_that_differs(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(collect_results.drawing, "save_figure", lambda figure, path, flag: drawn.append(figure))
    folder = sweep(tmp_path / "sweep")
    write_results(folder / "random", [[0.2]], "coreset", method="random")
    command("collect", folder, "--group_by", "auto", "--plot", tmp_path / "p.png")
    (axes,) = drawn.pop().axes
    assert axes.get_xlabel() == "style_ratio" and [text.get_text() for text in axes.texts] == ["random"]
    (bars,) = axes.containers
    line, _, (segments,) = bars.lines
    assert line.get_xdata().tolist() == [0, 1000] and line.get_ydata() == pytest.approx([42, 44.333], abs=1e-3)
    heights = [float(np.ptp(segment[:, 1])) for segment in segments.get_segments()]
    assert heights == pytest.approx([2 * np.std([40, 44, 42]), 2 * np.std([41, 47, 45])])
    command("collect", folder / "ratio_0", "--group_by", "auto", "--plot", tmp_path / "p.png")  # nothing is swept
    assert drawn.pop().axes[0].get_xlabel() == "condensation iterations"


def test_the_tables_of_the_documentation_are_those_of_their_files(capsys):
    documented = (ROOT / "docs" / "results.md").read_text().splitlines()
    for name in (
        "ablation/ipc1",
        "ablation/ipc10",
        "ablation/ipc50",
        "best/CIFAR10/ipc1",
        "best/CIFAR100/ipc1",
        "best/CIFAR100/ipc10",
        "terms/ipc10",
    ):
        command("collect", ROOT / "docs" / "results" / name, "--columns", "none")
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) > 3 and set(lines) <= set(documented), name


def test_the_curves_of_the_published_commands_are_those_of_their_files(tmp_path):
    text = (ROOT / "docs" / "results.md").read_text()
    head, _, *lines = text[text.index("| iterations | dm |") :].split("\n\n")[0].splitlines()
    names = [name.strip() for name in head.strip("|").split("|")][1:]
    assert len(lines) > 5 and sorted(names) == ["diversity", "dm", "gram", "moments", "paper"]
    for line in lines:
        iteration, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        out = tmp_path / f"{iteration}.csv"
        flags = ("--iteration", iteration.replace(",", ""), "--csv", out)
        command("collect", ROOT / "docs" / "results" / "published", *flags)
        with out.open() as file:
            rows = {row["run"].split(",")[0]: row for row in csv.DictReader(file)}
        for name, cell in zip(names, cells, strict=True):
            row = rows.get(name)
            gain = f" ({row['minus DM']} {row['95 % interval']})" if row and row["minus DM"] else ""
            assert cell == (row["accuracy %"] + gain if row else ""), (iteration, name)


def test_split_images_and_other_networks_are_not_plain_dm(tmp_path):
    write_results(tmp_path / "dm", [[0.40], [0.44]], **ZERO, factor=1, networks="random")
    write_results(tmp_path / "dm_factor", [[0.50], [0.52]], **ZERO, factor=2, networks="random")
    write_results(tmp_path / "dm_trained", [[0.42], [0.46]], **ZERO, factor=1, networks="trained")
    rows = rows_of(tmp_path)
    assert (rows["dm_factor"]["minus DM"], rows["dm_factor"]["DM run"]) == ("+9.00", "dm")
    assert (rows["dm_trained"]["minus DM"], rows["dm"]["minus DM"]) == ("+2.00", "")


def test_a_term_of_a_users_recipe_is_a_column_and_never_plain_dm(tmp_path, capsys):
    write_results(tmp_path / "dm", [[0.40], [0.44]], **ZERO)
    write_results(tmp_path / "paper", [[0.42], [0.47]], **ZERO | {"mm_ratio": 5.0})
    write_results(tmp_path / "mine", [[0.50], [0.52]], "mine", **ZERO, cov_weight=2.0)
    write_results(tmp_path / "off", [[0.41], [0.45]], "mine", **ZERO, cov_weight=0.0)
    rows = rows_of(tmp_path)
    assert (rows["mine"]["minus DM"], rows["mine"]["DM run"]) == ("+9.00", "dm")
    assert rows["off"]["minus DM"] == ""  # plain DM
    (tmp_path / "dm" / "results.json").unlink()
    (tmp_path / "off" / "results.json").unlink()
    capsys.readouterr()
    command("collect", tmp_path, "--baseline", "paper", "--columns", "auto")
    assert "| cov_weight |" in capsys.readouterr().out.splitlines()[0]
    command("collect", tmp_path, "--columns", "cov_weight,seconds,date")
    assert "| cov_weight | seconds | date |" in capsys.readouterr().out.splitlines()[0]


def test_a_setting_newer_than_a_file_has_its_default(tmp_path, capsys):
    write_results(tmp_path / "dm", [[0.40], [0.44]], **ZERO)
    newer = {"factor": 1, "networks": "random", "pool": 10, "interpolate": True}
    write_results(tmp_path / "paper", [[0.42], [0.47]], **ZERO | {"mm_ratio": 5.0} | newer)
    write_results(tmp_path / "split", [[0.42], [0.47]], **ZERO | {"mm_ratio": 5.0} | newer | {"factor": 2})
    rows_of(tmp_path)
    err = capsys.readouterr().err
    assert "paper and dm" not in err and "split and dm, its baseline, differ in --factor\n" in err


def test_a_table_after_an_earlier_iteration(tmp_path, capsys):
    write_results(tmp_path / "dm", [[0.40, 0.44]], **ZERO)
    write_results(tmp_path / "paper", [[0.42, 0.47]], **ZERO | {"mm_ratio": 5.0})
    write_results(tmp_path / "random", [[0.2]], "coreset", method="random")
    for name, accs in (("dm", [0.30, 0.34]), ("paper", [0.31, 0.35])):
        path = tmp_path / name / "results.json"
        record = json.loads(path.read_text())
        (early,) = (entry for entry in record["evaluations"] if entry["iteration"] == 2)
        early["accuracies"] = accs
        path.write_text(json.dumps(record))
    command("collect", tmp_path, "--columns", "none", "--iteration", 2)
    out = capsys.readouterr().out
    assert "| dm, 2 of 5 iterations | DM_DDM | 32.00 | 2.00 | 2 |" in out
    assert "| paper, 2 of 5 iterations | DM_DDM | 33.00 | 2.00 | 2 | +1.00 | ± 0.00 | 2 networks of one" in out
    assert "| random | random | 20.00 |" in out
    command("collect", tmp_path, "--columns", "none", "--iteration", 5)
    whole = capsys.readouterr().out
    command("collect", tmp_path, "--columns", "none")
    assert capsys.readouterr().out == whole
    with pytest.raises(SystemExit):
        command("collect", tmp_path, "--iteration", 3)
    assert "--iteration 3: no run was evaluated then, but after 2, 5" in capsys.readouterr().err
    write_results(tmp_path / "late", [[0.42, 0.47]], **ZERO | {"mm_ratio": 7.0, "Iteration": 9})
    command("collect", tmp_path, "--columns", "none", "--iteration", 9)
    out, err = capsys.readouterr()
    assert out.count("DM_DDM") == 1 and "note: --iteration 9: dm was not evaluated then" in err
    path = tmp_path / "dm" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unfinished": [5, 9]}))
    command("collect", tmp_path / "dm", tmp_path / "late", tmp_path / "paper")
    err = capsys.readouterr().err
    assert "the end and 5 of 9 iterations (--iteration 5 compares them)\n" in err and err.count("compares") == 1
    command("collect", tmp_path / "dm", tmp_path / "late", "--iteration", 5)
    assert "2 networks of one experiment | dm |" in capsys.readouterr().out
    other = json.loads(path.read_text())
    for entry in other["evaluations"]:
        entry["experiment"] = 1
    path.write_text(json.dumps(other))
    command("collect", tmp_path / "dm", tmp_path / "late")  # no condensation in common
    assert "compares" not in capsys.readouterr().err
    write_results(tmp_path / "apart" / "a", [[0.42, 0.47]], **ZERO | {"Iteration": 9})
    write_results(tmp_path / "apart" / "b", [[0.40, 0.41]], first=1, **ZERO)
    path = tmp_path / "apart" / "b" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unfinished": [5, 9]}))
    command("collect", tmp_path / "apart", "--columns", "none", "--iteration", 5)  # equal progress: one row
    assert "| a, 5 of 9 iterations | DM_DDM | 42.50 | 2.69 | 4 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("collect", tmp_path / "random", "--iteration", 5)
    assert "coresets have no iterations" in capsys.readouterr().err


def test_costs_are_entries_of_results(capsys):
    run = ROOT / "docs" / "results" / "published" / "gram"
    assert set(run_records.COSTS) <= json.loads((run / "results.json").read_text()).keys()
    command("collect", run, "--columns", ",".join(run_records.COSTS))
    head, _, row = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    assert all(row[head.index(name)] for name in run_records.COSTS)


def test_why_runs_are_not_compared(tmp_path, capsys):
    write_results(tmp_path / "dm", [[0.40], [0.44]], **ZERO)
    write_results(tmp_path / "mine", [[0.50], [0.52]], **ZERO | {"mm_ratio": 1, "model": "MLP", "batch_real": 64})
    rows_of(tmp_path)
    err = capsys.readouterr().err
    assert "mine is not compared with dm: --model is MLP and ConvNet; --batch_real is 64 and unset" in err


def test_the_headline_of_a_pool_is_the_network_that_condensed_without_its_taps():
    accs = {"MLP": [0.1], "ConvNet": [0.5]}
    assert protocol.headline_model("ConvNet_gram", accs) == protocol.headline_model("ConvNet", accs) == "ConvNet"
    assert protocol.headline_model("ResNet18", accs) == "MLP" and protocol.headline_model("LeNet", ()) == "LeNet"
    entries = [
        {"experiment": 0, "iteration": 5, "images": "condensed", "model": model, "accuracies": values}
        for model, values in accs.items()
    ]
    args = {"model": "ConvNet_gram", "Iteration": 5}
    assert run_records.Result("gram", {"args": args, "evaluations": entries}).final() == {0: [0.5]}


def test_a_run_that_goes_on_is_marked(tmp_path):
    write_results(tmp_path / "dm", [[0.40], [0.44]], **ZERO)
    record = json.loads((tmp_path / "dm" / "results.json").read_text())
    (tmp_path / "dm" / "results.json").write_text(json.dumps(record | {"unfinished": [5, 20000]}))
    assert list(rows_of(tmp_path)) == ["dm, 5 of 20,000 iterations"]


def test_a_run_that_goes_on_is_never_merged_and_marks_its_averages(tmp_path, capsys):
    write_results(tmp_path / "a", [[0.40]], **ZERO, first_exp=0)
    for seed, name in enumerate(("b", "c")):
        write_results(tmp_path / name, [[0.44]], **ZERO, first=1, first_exp=1, seed=seed)
        path = tmp_path / name / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"unfinished": [5, 20000]}))
    assert set(rows_of(tmp_path)) == {"a", "b, 5 of 20,000 iterations", "c, 5 of 20,000 iterations"}
    command("collect", tmp_path / "b", tmp_path / "c", "--group_by", "auto")
    assert "| b and 1 more, 5 of 20,000 iterations |" in capsys.readouterr().out
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unfinished": [5, 10000]}))
    command("collect", tmp_path / "b", tmp_path / "c", "--group_by", "auto")
    assert "with unfinished runs" in capsys.readouterr().out


def test_parts_of_a_run_are_marked_by_the_sum_of_their_experiments(tmp_path):
    for name, first, done, total in (("a", 0, 1, 1), ("b", 1, 2, 3)):
        write_results(tmp_path / name, done * [[0.4]], **ZERO, first=first, first_exp=first, num_exp=done)
        path = tmp_path / name / "results.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"asked": record["args"] | {"num_exp": total}}))
    (row,) = rows_of(tmp_path)
    assert row == "a, 3 of 4 experiments"


def test_other_protocols_are_not_compared(tmp_path, capsys):
    write_results(tmp_path / "dm", [[0.40], [0.44]], **ZERO)
    write_results(tmp_path / "mine", [[0.50], [0.52]], **ZERO | {"mm_ratio": 1})
    path = tmp_path / "mine" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": "another"}))
    assert rows_of(tmp_path)["mine"]["minus DM"] == ""
    assert "mine is not compared with dm: the protocols of evaluation differ" in capsys.readouterr().err


def test_groups_keep_methods_data_sets_and_sizes_apart(tmp_path, capsys):
    for k, (dataset, ipc, method) in enumerate(
        [("CIFAR10", 10, "herding"), ("CIFAR10", 10, "kcenter"), ("CIFAR10", 1, "herding"), ("SVHN", 10, "herding")]
    ):
        for seed in (0, 1):
            line = {"dataset": dataset, "ipc": ipc, "method": method, "seed": seed}
            write_results(tmp_path / f"{k}_{seed}", [[0.1 * (k + 1)]], "coreset", **line)
    command("collect", tmp_path, "--group_by", "model")
    rows = columns_of(capsys.readouterr().out)
    assert [(row["accuracy %"], row["seeds"]) for row in rows] == [(f"{10 * k}.00", "2") for k in (1, 2, 3, 4)]
