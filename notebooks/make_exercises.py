#!/usr/bin/env python3
"""The exercises out of the solutions; the checks are in helpers.py.

`python notebooks/make_exercises.py` writes exercises.ipynb: solutions.ipynb without its cells tagged
"solution-only" and with a gap where its cells tagged "exercise" have an answer, run once, so that every check
shows what it says of an empty gap. `python notebooks/make_exercises.py --grade FILE.ipynb` puts a student's
answers into fresh exercises and prints their points. It runs what the student wrote.
"""

import argparse
import copy
import os
import re
import sys
import textwrap
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from notebooks import helpers

ANSWER = re.compile(r"^( *)# --- your answer\n(.*?)^ *# --- end of your answer$", re.S | re.M)


def answers(notebook):
    """-> what stands between the fences of each cell that has them, in order."""
    found = [ANSWER.search(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    return [answer[2] for answer in found if answer]


def fill(notebook, answers):
    """A copy of a notebook with these texts between its fences, in order; None leaves a gap that says so.

    In the gap of a function stands an error that names it; in a prediction, texts become "?".
    """
    notebook, answers = copy.deepcopy(notebook), list(answers)
    for cell in notebook.cells:
        found = ANSWER.search(cell.source) if cell.cell_type == "code" else None
        if not found:
            continue
        answer = answers.pop(0)
        if answer is None:
            function = re.search(r"^def (.+?)[(]", cell.source, re.M)
            answer = re.sub('".+?"', '"?"', found[2])
            if function:
                answer = f'raise NotImplementedError("{function[1]}")'
        text = textwrap.indent(textwrap.dedent(answer).strip("\n"), found[1])
        fenced = f"# --- your answer\n{text}\n{found[1]}# --- end of your answer"
        cell.source = cell.source[: found.end(1)] + fenced + cell.source[found.end() :]
    return notebook


def make(solutions):
    """solutions.ipynb, read -> exercises.ipynb, not yet run."""
    notebook = fill(solutions, [None] * len(answers(solutions)))
    notebook.cells = [cell for cell in notebook.cells if "solution-only" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def main(argv=None):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--grade", type=Path, metavar="FILE.ipynb", help="a student's notebook")
    student = parser.parse_args(argv).grade
    exercises = make(nbformat.read(FOLDER / "solutions.ipynb", 4))
    if student is None:
        run(exercises)
        nbformat.write(exercises, FOLDER / "exercises.ipynb")
    else:
        grade(student, exercises)


def run(notebook):
    """Run a notebook in its folder; its outputs stay in it."""
    from nbclient import NotebookClient

    metadata = copy.deepcopy(notebook.metadata)  # to which running adds the version of Python
    here = {"metadata": {"path": str(FOLDER)}}
    options = {"kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources=here, **options).execute()
    notebook.metadata = metadata


def grade(student, exercises):
    """A student's answers in fresh exercises, run here."""
    given, gaps = answers(nbformat.read(student, 4)), len(answers(exercises))
    if len(given) != gaps:
        sys.exit(f"{student}: {len(given)} answers between their comment lines; allowed: {gaps}")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no tick shows a question mark
    helpers.plt.show = helpers.plt.close  # no window that waits to be closed
    os.chdir(FOLDER)
    namespace = {}
    for cell in fill(exercises, given).cells:
        if cell.cell_type == "code":
            try:
                exec(compile(cell.source, "cell", "exec"), namespace)
            except (Exception, SystemExit) as e:
                said = f"{type(e).__name__}: {e}"
                if isinstance(e, SyntaxError):
                    said = f"line {e.lineno} of its cell is not Python: {e.msg}"
                check = re.search(r"^helpers[.]check_(\d+)", cell.source, re.M)
                if not check:
                    print(said)
                    continue
                with helpers.exercise(int(check[1])):
                    raise AssertionError(said) from None


if __name__ == "__main__":
    main()
