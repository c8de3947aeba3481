"""Plots, image grids, and Markdown and LaTeX tables."""

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddm import disk
from ddm.errors import UserError

SMALLEST_TILE = 32  # pixels; smaller images are enlarged in grids


def markdown(rows: Sequence[Iterable[object]]) -> str:
    """A Markdown table; the first row is the header."""
    head, *body = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
LATEX |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}


def mean_std(mean: float, std: float, n: int, unit: str = "") -> str:
    """A text such as '48.90 % ± 0.60', from numbers in percent; one value has no deviation."""
    return f"{mean:.2f}{unit}" + (f" ± {std:.2f}" if n > 1 else "")


def escaped(text: str) -> str:
    """Text for LaTeX, with its special characters escaped."""
    return text.translate(str.maketrans(LATEX))


def latex(rows: Sequence[Sequence[str]], blocks: Sequence[object], texts: int, caption: str) -> str:
    """A LaTeX table in the style of the package booktabs.

    The cells are LaTeX; the first row is the header, and the first `texts` columns are aligned left. `blocks` has one
    value per further row: a rule separates rows with different values.
    """
    lines = [" & ".join(row) + r" \\" for row in rows]
    # After a line end, LaTeX takes [ and * for arguments of it.
    head, *body = [f"{{}}{line}" if line[:1] in ("[", "*") else line for line in lines]
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * texts}{'r' * (len(rows[0]) - texts)}}}", r"\toprule", head, r"\midrule"]
    for number, line in enumerate(body):
        lines += [r"\midrule"] if number and blocks[number] != blocks[number - 1] else []
        lines.append(line)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def with_signs(text: str) -> str:
    """Text for LaTeX, with ± and the sign of a number at its start."""
    return re.sub(r"^([+-][\d.]+)", r"$\1$", escaped(text).replace("±", r"$\pm$"))


def comma_separated(rows: Sequence[Iterable[object]]) -> str:
    """A table as CSV; the first row is the header."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def table_files(tables: Sequence[Sequence[Sequence[str]]], caption: str) -> dict[str, str]:
    """File name -> content: the tables of accuracies as Markdown and LaTeX, and the first one as CSV.

    The first row of a table is its header, the first column its names. `caption` is text.
    """
    columns = []
    for table in tables:
        cells = [[with_signs(cell) for cell in row] for row in table]
        columns.append(latex(cells, [0] * (len(cells) - 1), 1, with_signs(caption)))
    return {
        "table.md": "\n\n".join(map(markdown, tables)) + "\n",
        "table.csv": comma_separated(tables[0]),
        "table.tex": "\n\n".join(columns) + "\n",
    }


def in_rows(images: Tensor, counts: list[int], smallest: int = SMALLEST_TILE) -> Tensor:
    """Images [N, C, H, W] in [0, 1], in class order, as tiles of a grid: [classes * max(counts), C, h, w].

    Classes with fewer images are padded with white. Images below `smallest` pixels are enlarged.
    """
    rows = torch.ones(len(counts), max(counts), *images.shape[1:])
    for row, part in zip(rows, images.split(counts), strict=True):
        row[: len(part)] = part
    enlarge = max(1, smallest // images.shape[-1])
    return rows.flatten(0, 1).repeat_interleave(enlarge, dim=-1).repeat_interleave(enlarge, dim=-2)


def png(images: Tensor, columns: int, **options: Any) -> bytes:
    """Images [N, C, H, W] in [0, 1] as one PNG with `columns` images per row; options are those of make_grid."""
    from torchvision.utils import save_image  # imported here: it takes two seconds

    buffer = io.BytesIO()
    save_image(images, buffer, nrow=columns, format="png", **options)
    return buffer.getvalue()


def corner(path: Path, shape: tuple[int, int], rows: int, columns: int) -> bytes:
    """The first rows and columns of a PNG of `png`, which has a grid of `shape` images, as a PNG."""
    from matplotlib.image import imread  # imported here: it takes a second

    grid = torch.from_numpy(imread(path))[..., :3].permute(2, 0, 1)
    padding = 2  # of make_grid
    height, width = (
        padding + (size - padding) // n * kept
        for size, n, kept in zip(grid.shape[1:], shape, (rows, columns), strict=True)
    )
    return png(grid[None, :, :height, :width], 1, padding=0)


@contextlib.contextmanager
def axes(wide: float, high: float, settings: dict[str, Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """A matplotlib figure and its axes, drawn without a screen and closed at the end."""
    import matplotlib  # imported here: it takes a second, and few commands draw

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"text.parse_math": False} | (settings or {})):  # names of classes and runs may have $
        figure, ax = plt.subplots(figsize=(wide, high), layout="constrained")
        try:
            yield figure, ax
        finally:
            plt.close(figure)


def banded(axes: Any, at: Sequence[float], values: Sequence[Sequence[float]], label: str) -> None:
    """Plot the mean of values[i] at at[i], with a band of one (population) standard deviation; a bar for one point."""
    points = [torch.tensor(v, dtype=torch.float64) for v in values]
    mean, std = ([f(v).item() for v in points] for f in (torch.mean, lambda v: v.std(correction=0)))
    if len(at) == 1:
        axes.errorbar(at, mean, std, fmt="o", markersize=4, capsize=3, label=label)
        return
    axes.plot(at, mean, "o-", markersize=4, label=label)
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    axes.fill_between(at, low, high, alpha=0.2)


def save_figure(figure: Any, path: str | Path, flag: str) -> None:
    """Write a figure in the format of the path's suffix. Raises UserError that names `flag`."""
    try:
        kind = Path(path).suffix.removeprefix(".") or "png"
        disk.replace(Path(path), lambda file: figure.savefig(file, dpi=150, format=kind))
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {str(path)!r} can't be written ({error})") from None
