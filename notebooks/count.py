#!/usr/bin/env python3
"""How long a notebook takes to read, and how dense it is. `python notebooks/count.py` prints a table.

Reading: 200 words and 20 lines of code a minute, half a minute a figure. Cells tagged "further" (what goes
further) and "answer" (folded answers) are counted apart; all other limits hold for every cell.
"""

import re
import statistics
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
ASIDE = {"further", "answer"}
PICTURES = {"image/png", "image/svg+xml"}


def words(text):
    """The words of a markdown cell: whatever holds a letter or a digit, formulas too, HTML tags not."""
    return sum(bool(re.search(r"\w", word)) for word in re.sub(r"<[^>]+>", " ", text).split())


def lines(code):
    return [line for line in code.splitlines() if line.strip()]


def figures(cell):
    return sum(bool(PICTURES & output.get("data", {}).keys()) for output in cell.get("outputs", ()))


def minutes(cells):
    """Of reading some cells once."""
    total = 0.0
    for cell in cells:
        if cell.cell_type == "markdown":
            total += words(cell.source) / 200
        else:
            total += len(lines(cell.source)) / 20 + figures(cell) / 2
    return total


def count(notebook):
    """A notebook as saved -> its counts, by name."""
    aside = [cell for cell in notebook.cells if ASIDE & set(cell.metadata.get("tags", ()))]
    path = [cell for cell in notebook.cells if cell not in aside]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    sizes = [len(lines(cell.source)) for cell in code]
    before = []  # the words before the first figure
    for cell in notebook.cells:
        if figures(cell):
            break
        before.append(words(cell.source) if cell.cell_type == "markdown" else 0)
    return {
        "minutes": minutes(path),
        "further": minutes(aside),
        "words before a figure": sum(before),
        "figures": sum(map(figures, path)),
        "code after code": len(re.findall("(?=cc)", kinds)),
        "longest code": max(sizes),
        "median code": statistics.median(sizes),
        "widest code": max(len(line) for cell in code for line in cell.source.splitlines()),
        "asserts": sum(len(re.findall(r"^\s*assert\b", cell.source, re.M)) for cell in code),
        "longest text": max(map(words, texts)),
    }


def main():
    for path in sorted(FOLDER.glob("[1-9]_*.ipynb")):
        found = {name: round(value, 1) for name, value in count(nbformat.read(path, 4)).items()}
        print(path.name, *(f"{name} {value:g}" for name, value in found.items()), sep="; ")


if __name__ == "__main__":
    main()
