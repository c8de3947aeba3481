"""Make examples/train_on_condensed.ipynb from the script of that name, whose `# %%` lines part its cells.

python scripts/notebook.py
"""

import json
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "train_on_condensed.py"


def cells(script: str) -> list[dict]:
    found = []
    for number, part in enumerate(script.split("# %%")[1:]):
        first, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        common = {"id": f"cell-{number}", "metadata": {}}
        if "[markdown]" in first:
            text = [line.removeprefix("#").removeprefix(" ") for line in lines]
            found.append({"cell_type": "markdown", **common, "source": "\n".join(text)})
        else:
            found.append(
                {"cell_type": "code", **common, "execution_count": None, "outputs": [], "source": "\n".join(lines)}
            )
    return found


def notebook(script: str) -> str:
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells(script), "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    EXAMPLE.with_suffix(".ipynb").write_text(notebook(EXAMPLE.read_text()))
