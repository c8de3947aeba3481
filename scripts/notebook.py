"""Make examples/train_on_condensed.ipynb from the script of the same name; `# %%` lines separate its cells.

The notebook is executed in its own folder, and its outputs are stored. This needs `pip install ".[notebook]"`.

    python scripts/notebook.py
"""

import argparse
import json
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "train_on_condensed.py"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def cells(script: str) -> list[dict]:
    """The cells of the notebook, without outputs."""
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


def executed(script: str, folder: Path) -> str:
    """The notebook with its outputs, as JSON; progress bars are left out."""
    import nbformat  # imported here: only the maker of the notebook needs them
    from nbclient import NotebookClient

    content = {"cells": cells(script), "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    node = nbformat.from_dict(content)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(node, resources=resources, record_timing=False, timeout=1800).execute()
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    node.metadata = METADATA
    return json.dumps(node, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    EXAMPLE.with_suffix(".ipynb").write_text(executed(EXAMPLE.read_text(), EXAMPLE.parent))
