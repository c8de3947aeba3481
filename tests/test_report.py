"""The page about a run: self-contained, whole, and right where a number can be checked."""

import html.parser

import pytest
import torch
from conftest import command, run

from ddm.commands import report
from ddm.errors import UserError
from ddm.losses import correlation_matching


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.headings, self.open, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(text)


@pytest.fixture(scope="module")
def folder(data_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run("DM_DDM", data_path, folder / "out", "--Iteration", "20", "--eval_every", "10", "--lr_img", "0.01")
    return folder / "out"


def test_two_runs_side_by_side(folder, data_path, tmp_path):
    command("report", folder, folder, "--data_path", data_path, "--out", tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert not page.open and not page.tags & {"script", "link", "iframe"}
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) >= 2 * (20 + 3 + 6)  # pairs of each class, three pictures of the set, six plots
    assert (
        page.headings.count("Style gap of each layer") == 2 and "DM_DDM, CIFAR10, 2 images per class" in page.headings
    )


def test_the_gap_is_that_of_the_losses(folder, data_path):
    found = report.RunFolder(folder, str(data_path), None)
    real, syn = report.embed_classes(found, found.real), report.embed_classes(found, found.of_class)
    net = report.empty_network("ConvNetW32", 3, 10, (32, 32), "cpu")
    net.tap("published")
    report.initialise(net, report.rng.generator(0, 0, 0, -1, "report")).eval()
    with torch.no_grad():
        values = []
        for c in range(10):
            maps = [[net.embed(x)[1][1][None]] for x in (found.real(c), found.of_class(c))]
            values.append(correlation_matching(*maps, relative=True).item())
    assert report.style_gaps(real, syn)["Gram (L_CM)"][1] == pytest.approx(sum(values) / 10, rel=1e-4)
    assert torch.equal(found.initial(3), torch.load(next(folder.glob("res_*.pt")))["data"][0][0][6:8]) is False
    assert len(report.spreads(real)) == 10 and min(report.spreads(real)) > 0


@pytest.mark.parametrize("init", ["real", "noise"])
def test_before_is_what_the_run_started_from(init, data_path, tmp_path):
    """Under --eval_split val and of any init; a learning rate of 0 leaves the images as they were."""
    line = ("--eval_split", "val", "--init", init, "--lr_img", "0", "--Iteration", "1", "--eval_every", "0")
    saved, _ = run("DM_KNearest", data_path, tmp_path / "out", *line)
    found = report.RunFolder(tmp_path / "out", str(data_path), None)
    assert torch.equal(torch.cat([found.initial(c) for c in range(10)]), saved["data"][0][0])


def test_what_is_no_run(tmp_path, data_path):
    with pytest.raises(UserError, match="no results"):
        report.RunFolder(tmp_path, str(data_path), None)
