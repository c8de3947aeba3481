"""Make examples/train_on_condensed.ipynb from the script of the same name; `# %%` lines separate its cells.

python scripts/notebook.py
"""

import json
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "train_on_condensed.py"


def cells(script: str) -> list[dict]:
    made = []
    for number, part in enumerate(script.split("# %%")[1:]):
        first, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        common = {"id": f"cell-{number}", "metadata": {}}
        if "[markdown]" in first:
            text = [line.removeprefix("#").removeprefix(" ") for line in lines]
            made.append({"cell_type": "markdown", **common, "source": "\n".join(text)})
        else:
            made.append(
                {"cell_type": "code", **common, "execution_count": None, "outputs": [], "source": "\n".join(lines)}
            )
    return made


def notebook(script: str) -> str:
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    content = {"cells": cells(script), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    EXAMPLE.with_suffix(".ipynb").write_text(notebook(EXAMPLE.read_text()))
