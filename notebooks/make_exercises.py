#!/usr/bin/env python3
"""The exercises out of the solutions, and the small grader that both notebooks import.

`python notebooks/make_exercises.py` writes exercises.ipynb: solutions.ipynb without its cells tagged
"solution-only" and with a gap where its cells tagged "exercise" have an answer, run once, so that every check
shows what it says of an empty gap. `python notebooks/make_exercises.py --grade FILE.ipynb` puts a student's
answers into fresh exercises and prints their points. It runs what the student wrote.
"""

import argparse
import contextlib
import copy
import os
import re
import sys
import textwrap
import traceback
from pathlib import Path

import nbformat
import torch

FOLDER = Path(__file__).resolve().parent
ANSWER = re.compile(r"^( *)# --- your answer\n(.*?)^ *# --- end of your answer$", re.S | re.M)
RESULTS = {}  # exercise -> (points, points to be had), as last checked


@contextlib.contextmanager
def exercise(n, points):
    """Around the asserts of a check: one line says what came of it, and nothing is raised."""
    RESULTS[n] = 0, points
    try:
        yield
    except Exception as e:
        print(f"✗ exercise {n} (0 of {points} points): {' '.join(_fault(e).split())}")
    else:
        RESULTS[n] = points, points
        print(f"✓ exercise {n} ({points} of {points} points)")


def _fault(e):
    """What a student can do about an exception, in one line."""
    if isinstance(e, NotImplementedError):
        to_do = "Write it between the two comment lines, run its cell, then this one; the hint helps."
        return f"{e or 'the gap'} is still empty. {to_do}"
    if isinstance(e, AssertionError) and str(e):
        return str(e)
    # cells are no files
    own = [f for f in traceback.extract_tb(e.__traceback__) if not os.path.exists(f.filename)]
    where = ""
    if own and own[-1].name != "<module>":
        where = f" in {own[-1].name}, line {own[-1].lineno} of its cell"
        if own[-1].line:
            where += f" ({own[-1].line})"
    return f"{type(e).__name__}{where}: {e}"


def returned(value, *shape):
    """What a student's function returned, once it is a finite tensor of this shape, or an AssertionError."""
    assert value is not None, "your function returns nothing. Is there a `return`?"
    try:
        value = torch.as_tensor(value)  # a tensor stays what it is, with its gradient
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        raise AssertionError(f"a tensor is asked for, but your function returns a {kind}") from None
    found = tuple(value.shape)
    assert found == shape, f"the result has the shape {found}, but {shape} is asked for"
    assert value.isfinite().all(), "the result holds nan or infinity"
    return value


def close(a, b, tolerance=1e-4):
    """Whether all numbers of two tensors agree to the tolerance, whatever their precision."""
    a, b = (torch.as_tensor(x).detach().double() for x in (a, b))
    return bool((a - b).abs().max() <= tolerance)


def total(exercises, points):
    """The points so far, and which checks have not been run."""
    missing = [str(n) for n in range(1, exercises + 1) if n not in RESULTS]
    unchecked = f" (not checked yet: {', '.join(missing)})" if missing else ""
    print(f"total: {sum(got for got, _ in RESULTS.values())} of {points} points{unchecked}")


def answers(notebook):
    """-> what stands between the fences of each cell that has them, in order."""
    found = [ANSWER.search(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    return [answer[2] for answer in found if answer]


def fill(notebook, answers):
    """A copy of a notebook with these texts between its fences, in order; None leaves a gap that says so."""
    notebook, answers = copy.deepcopy(notebook), list(answers)
    for cell in notebook.cells:
        found = ANSWER.search(cell.source) if cell.cell_type == "code" else None
        if not found:
            continue
        answer = answers.pop(0)
        if answer is None:
            answer = f'raise NotImplementedError("{re.search(r"def (.+?)[(]", cell.source)[1]}")'
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
    os.chdir(FOLDER)
    namespace = {}
    for cell in fill(exercises, given).cells:
        if cell.cell_type == "code":
            try:
                exec(compile(cell.source, "cell", "exec"), namespace)
            except SyntaxError as e:  # the check that follows misses the function, and says so
                print(f"line {e.lineno} of an answer is not Python: {e.msg}")


if __name__ == "__main__":
    main()
