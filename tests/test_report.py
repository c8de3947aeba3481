"""The page about runs: self-contained, whole, accessible, of bounded size, and right where a number can be checked."""

import html.parser
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import command, run

from ddm import page
from ddm.commands import report, report_data
from ddm.errors import UserError
from ddm.losses import correlation_matching


class Page(html.parser.HTMLParser):
    """What the tests read in a page: tags, headings, links, texts of images, and the cells of tables by caption."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.open, self.tags = [], [], [], []
        self.headings, self.levels, self.texts, self.tables, self.ids = [], [], [], {}, []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.sources += [found["src"]] if "src" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.ids += [found["id"]] if "id" in found else []
        self.texts += [found["aria-label"]] if found.get("role") == "img" else []
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
            self.levels.append(int(tag[1]))
        if tag == "tr":
            self.tables[self.caption].append([])
        if tag in ("th", "td"):
            self.tables[self.caption][-1].append("")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words += text if "style" not in self.open else ""
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += text
        if self.open and self.open[-1] == "caption":
            self.caption = text
            self.tables[text] = []
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[self.caption][-1][-1] += text

    def of(self, **attributes):
        return [tag for tag, found in self.tags if attributes.items() <= found.items()]


def written(tmp_path, data_path, *folders):
    command("report", *folders, "--data_path", data_path, "--out", tmp_path / "r.html")
    return Page((tmp_path / "r.html").read_text())


def summary(data_path, *folders):
    """The first two sections of the page."""
    runs, baselines = report.read_folders(list(map(str, folders)), str(data_path), None)
    return Page(report.overview(runs, baselines) + report.differences(runs))


@pytest.fixture(scope="module")
def folder(data_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run("DM_DDM", data_path, folder / "out", "--Iteration", "20", "--eval_every", "10", "--lr_img", "0.01")
    return folder / "out"


@pytest.fixture(scope="module")
def one(folder, data_path, tmp_path_factory):
    """The text of the page of one run."""
    out = tmp_path_factory.mktemp("page") / "r.html"
    command("report", folder, "--data_path", data_path, "--out", out)
    return out.read_text()


def changed(folder, target, **values):
    """A copy of a run, with other values in its results.json."""
    shutil.copytree(folder, target)
    results = json.loads((folder / "results.json").read_text()) | values
    (target / "results.json").write_text(json.dumps(results))
    return target


def whole(target, results, accuracy):
    """The results.json of `ddm coreset --method full` on the data and network of a run."""
    args = results["args"] | {"method": "full", "subset_size": 0, "recipe": "coreset"}
    target.mkdir()
    found = {"mean": accuracy, "std": 0.0, "n": 1, "accuracies": [accuracy]}
    (target / "results.json").write_text(json.dumps({"args": args, "models": {args["model"]: found}}))
    return target


def test_one_run(one):
    shown = Page(one)
    tags = {tag for tag, _ in shown.tags}
    assert not shown.open and not tags & {"script", "link", "iframe", "object"}
    assert all(source.startswith("data:image/png;base64,") for source in shown.sources)
    assert len(shown.sources) == 10 * (5 + 2) + 3  # five real and two condensed images per class, three grids
    assert shown.headings[0] == "DM_DDM, CIFAR10, 2 images per class"
    wanted = {"Summary", "Images", "Images during condensation", "Accuracy", "Losses", "Style gap of each layer"}
    assert wanted | {"Spread within classes", "Embeddings", "Origin"} <= set(shown.headings)
    assert "Settings that differ" not in shown.headings


def test_the_shownis_accessible(folder, data_path, tmp_path):
    """Language, landmarks, a skip link, headings in order, scopes, captions, focusable scrolling parts, unique ids."""
    shown = written(tmp_path, data_path, folder, folder)
    tags = [tag for tag, _ in shown.tags]
    assert [tags.count(tag) for tag in ("main", "header", "nav", "footer", "h1")] == [1] * 5
    assert dict(shown.tags)["html"] == {"lang": "en"}
    assert len(set(shown.ids)) == len(shown.ids) and {link.removeprefix("#") for link in shown.links} <= set(shown.ids)
    assert shown.links[0] == "#main"
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(shown.levels))
    assert tags.count("caption") == tags.count("table") > 0
    assert all(found.get("scope") in ("row", "col") for tag, found in shown.tags if tag == "th")
    assert all(shown.headings) and all(cells[0][0] for cells in shown.tables.values())
    for tag, found in shown.tags:
        if found.get("class") in ("scroll", "strip"):
            assert found["tabindex"] == "0" and found["aria-label"]
        if tag == "svg":
            assert found["role"] == "img" and any(digit in found["aria-label"] for digit in "0123456789")
    assert all(shown.texts) and not any("plot" in text for text in shown.texts)


def test_the_texts_of_plots_state_their_numbers(folder, one):
    results, shown = json.loads((folder / "results.json").read_text()), Page(one)
    (accuracy,) = (text for text in shown.texts if text.startswith("Accuracy"))
    for entry in results["evaluations"]:
        assert f"{100 * entry['mean']:.1f} % ± {100 * entry['std']:.1f} after {entry['iteration']}" in accuracy
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line["L_MMD"] for line in lines if line["kind"] == "loss"]
    (loss,) = (text for text in shown.texts if text.startswith("L_MMD"))
    assert f"from {first:.3g} to {last:.3g}" in loss


def test_terms_that_vary_by_step(folder, data_path, tmp_path):
    other = changed(folder, tmp_path / "other")
    base = {"kind": "loss", "experiment": 0, "L_MMD": 1.0}
    late = [base | {"iteration": k, "L_early" if k < 3 else "L_late": float(k)} for k in range(1, 6)]
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in late))
    texts = written(tmp_path, data_path, other).texts
    assert all(any(text.startswith(name) for text in texts) for name in ("L_MMD", "L_late", "L_early"))


def test_headline_and_summary(folder, data_path, tmp_path):
    values = {"mean": 0.5, "std": 0.02, "random_real": {"ConvNetW32": {"mean": 0.419, "std": 0.01, "n": 2}}}
    one = changed(folder, tmp_path / "one", **values)
    other = changed(folder, tmp_path / "other", mean=0.4, random_real={})
    args = json.loads((one / "results.json").read_text())["args"]
    lower = changed(one, tmp_path / "lower", mean=0.4, args=args | {"lr_img": 7.0})
    full = whole(tmp_path / "full", {"args": args}, 0.8)
    assert "+8.1 points over random real images" in summary(data_path, one).words
    shown = summary(data_path, one, lower, full)
    assert "+8.1 points over random real images; 62 % of whole-set accuracy" in shown.words
    assert "-1.9 points against random real images; 50 % of whole-set accuracy" in shown.words
    head, first, second = shown.tables["Test accuracy, std over networks"]
    row = dict(zip(head, first, strict=True))
    assert (row["run"], row["accuracy %"], row["std"], row["gain"]) == ("one", "50.00", "2.00", "+8.10")
    assert row["of whole set"] == "62 %" and dict(zip(head, second, strict=True))["random real %"] == "41.90"
    assert shown.tables["Values that differ"] == [["setting", "one", "lower"], ["lr_img", "0.01", "7.0"]]
    alone = summary(data_path, other)  # nothing to compare with
    assert "40.00 % accuracy" in alone.words and "points" not in alone.words
    assert "random real %" not in alone.tables["Test accuracy, std over networks"][0]
    beside = summary(data_path, one, other)  # the same protocol: the same random images
    assert "-1.9 points against random real images" in beside.words


def test_whole_set_accuracy_of_evaluate(folder, data_path, tmp_path):
    line = ("--epochs", "0", "--whole_epochs", "0", "--num_eval", "1", "--baselines", "whole")
    command("evaluate", folder, "--data_path", data_path, "--save_path", tmp_path / "e", *line)
    entries = json.loads((tmp_path / "e" / "results.json").read_text())["evaluations"]
    (accuracy,) = (entry["mean"] for entry in entries if entry["set"] == "whole training set")
    mean = json.loads((folder / "results.json").read_text())["mean"]
    shown = summary(data_path, folder, tmp_path / "e")
    assert f"{100 * mean / accuracy:.0f} % of whole-set accuracy" in shown.words
    with pytest.raises(SystemExit):
        written(tmp_path, data_path, tmp_path / "e")  # no set


def test_sections_without_data_are_left_out(data_path, tmp_path):
    """One image per class has no spread; one accuracy, one loss and one grid are no development."""
    line = ("--ipc", "1", "--Iteration", "10", "--eval_every", "0", "--num_eval", "1")
    run("DM_KNearest", data_path, tmp_path / "one", *line)
    shown = written(tmp_path, data_path, tmp_path / "one")
    assert not {"Accuracy", "Losses", "Spread within classes", "Settings that differ"} & set(shown.headings)
    assert shown.headings[0] == "DM_KNearest, CIFAR10, 1 image per class"
    line = ("--dataset", "CIFAR10", "--model", "ConvNetW32", "--ipc", "1", "--num_exp", "1", "--num_eval", "1")
    paths = ("--data_path", data_path, "--save_path", tmp_path / "random")
    command("coreset", "--method", "random", *line, "--epoch_eval_train", "2", *paths)
    shown = written(tmp_path, data_path, tmp_path / "random", tmp_path / "one")
    assert "Accuracy" in shown.headings  # two accuracies to compare
    accuracy = next(text for text in shown.texts if text.startswith("Accuracy"))
    assert "random: ConvNetW32, random" in accuracy and "one: ConvNetW32, condensed" in accuracy
    assert "points over" in shown.words or "points against" in shown.words


def test_many_classes_are_folded_and_bounded(folder, data_path, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FEW", 8)
    monkeypatch.setattr(report, "CLASSES", 9)
    monkeypatch.setattr(report, "GROUP", 5)
    monkeypatch.setattr(report, "TILES", 9)
    shown = written(tmp_path, data_path, folder)
    assert len(shown.sources) == 9 * (2 + 1) + 3
    details = [found for tag, found in shown.tags if tag == "details"]
    assert len(details) == 2 + 1 and ["open" in found for found in details] == [True, False, False]
    assert "Classes 1 to 5: airplane to deer" in shown.words and "condensed, 1 of 2" in shown.words
    assert "1 more classes are not shown" in shown.words


def test_large_images_are_reduced():
    tiles = page.tiles(torch.rand(2, 3, 256, 256), "two", "real")
    assert len(tiles) < 2 * 4 / 3 * (96 * 96 * 3 + 1000)


def test_axes_are_shared_and_colours_readable():
    limits = []

    def plot(top):
        def draw(axes):
            axes.plot([0, 1], [0, top])
            axes.figure.canvas.mpl_connect("draw_event", lambda event: limits.append(axes.get_ylim()))

        return page.Plot(draw, "one & two")

    svg = page.plots([plot(1), plot(5)], "y")
    assert set(limits) == {limits[0]} and limits[0][1] > 5
    assert 'aria-label="one &amp; two"' in svg and "currentColor" in svg and page.INK not in svg

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for colour, background in itertools.product(page.COLOURS, page.BACKGROUNDS.values()):
        low, high = sorted((luminance(colour), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 3, (colour, background)


def test_dark_mode_and_narrow_screens(one):
    style = one.split("<style>")[1].split("</style>")[0]
    assert "prefers-color-scheme: dark" in style and "--tile: 96px" in style and "max-width: 600px" in style


def test_the_gap_is_that_of_the_losses(folder, data_path):
    found = report_data.ReportedRun(folder, str(data_path), None)
    real, syn = report_data.embed_classes(found, found.real), report_data.embed_classes(found, found.of_class)
    net = report_data.empty_network("ConvNetW32", 3, 10, (32, 32), "cpu")
    net.tap("published")
    report_data.initialise(net, report_data.rng.generator(0, 0, 0, -1, "report")).eval()
    with torch.no_grad():
        values = []
        for c in range(10):
            maps = [[net.embed(x)[1][1][None]] for x in (found.real(c), found.of_class(c))]
            values.append(correlation_matching(*maps, relative=True).item())
    assert report_data.style_gaps(real, syn)["Gram (L_CM)"][1] == pytest.approx(sum(values) / 10, rel=1e-4)
    assert torch.equal(found.initial(3), torch.load(next(folder.glob("res_*.pt")))["data"][0][0][6:8]) is False
    assert len(report_data.spreads(real)) == 10 and min(report_data.spreads(real)) > 0


@pytest.mark.parametrize("init", ["real", "noise"])
def test_before_is_what_the_run_started_from(init, data_path, tmp_path):
    """Under --eval_split val and of any init; a learning rate of 0 leaves the images as they were."""
    line = ("--eval_split", "val", "--init", init, "--lr_img", "0", "--Iteration", "1", "--eval_every", "0")
    saved, _ = run("DM_KNearest", data_path, tmp_path / "out", *line)
    found = report_data.ReportedRun(tmp_path / "out", str(data_path), None)
    assert torch.equal(torch.cat([found.initial(c) for c in range(10)]), saved["data"][0][0])


def test_what_is_no_run(tmp_path, data_path):
    with pytest.raises(UserError, match="no results"):
        report_data.ReportedRun(tmp_path, str(data_path), None)
    (tmp_path / "results.json").write_text('{"args": {"dataset": "CIFAR10"}}')  # of another command
    with pytest.raises(UserError, match=r"not the results\.json of a recipe or coreset"):
        report_data.ReportedRun(tmp_path, str(data_path), None)


def test_damaged_evaluations_are_one_line(folder, data_path, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    record = json.loads(path.read_text())
    del record["evaluations"][0]["images"]  # before, a KeyError while it was plotted
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        written(tmp_path, data_path, tmp_path / "run")
    assert "it has no valid evaluations: name the --save_path" in capsys.readouterr().err


def test_tsne_and_other_data(folder, data_path, tmp_path):
    """Runs on different data: each group has its own real images."""
    line = ("--dataset", "Digits", "--model", "ConvNetW32", "--batch_real", "8", "--eval_every", "0")
    run("DM_KNearest", data_path, tmp_path / "digits", *line)
    shown = written(tmp_path, data_path, folder, tmp_path / "digits", "--embedding", "tsne")
    assert shown.headings.count("airplane") == 1 and shown.headings.count("7") == 1
    assert sum(text.startswith("t-SNE") for text in shown.texts) == 2


def test_copies_of_grids_odd_names_and_long_images(folder, data_path, tmp_path):
    shutil.copytree(folder, tmp_path / "$x^$")
    grid = next((tmp_path / "$x^$").glob("vis_*.png"))
    shutil.copy(grid, grid.with_name(f"{grid.stem} copy.png"))
    written(tmp_path, data_path, tmp_path / "$x^$", folder)
    assert "<img" in page.tiles(torch.zeros(1, 3, 1, 200), "", "")


def test_data_of_equal_file_names_are_other_data():
    one, other = ({"dataset": f"{place}/data.npz"} for place in "ab")
    assert report_data.whole_key(one, "ConvNet") != report_data.whole_key(other, "ConvNet")
    assert report_data.whole_key({"dataset": "./a/data.npz"}, "ConvNet") == report_data.whole_key(one, "ConvNet")
