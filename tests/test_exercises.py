"""The exercises are made of the solutions, and their checks tell right from wrong."""

import contextlib
import copy
import io
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import ROOT
from test_notebooks import code_cells, has_tag, read

import drm_min
from notebooks import count, helpers, make_exercises

FOLDER = ROOT / "notebooks"
POINTS = [2, 3, 3, 3, 4, 3, 3, 3, 3, 3]
NAMES = "head_of dual_risk contrastive mixture estimate predict_present choose broken_descriptions".split()
NAMES += ["best_method", "break_even"]


# ------------------------------------------------------------------------------- exercises from solutions


def test_exercises_have_drifted_from_the_solutions():
    made, kept = make_exercises.make(read("solutions.ipynb")), read("exercises.ipynb")
    for what in ("metadata", "nbformat", "nbformat_minor"):
        assert kept[what] == made[what]

    def parts(notebook):
        return [(cell.id, cell.cell_type, cell.metadata, cell.source) for cell in notebook.cells]

    assert parts(kept) == parts(made), "run python notebooks/make_exercises.py"


def test_an_answer_is_left_in_the_exercises():
    solutions, exercises = read("solutions.ipynb"), read("exercises.ipynb")
    for gap in make_exercises.answers(exercises):
        prediction = r'(\w+ = "\?"(  #.+)?\n)+'
        assert re.fullmatch(rf' *raise NotImplementedError\("\w+"\)\n|{prediction}', gap)
    for cell in solutions.cells:
        with_gap = cell.cell_type == "code" and "# --- your answer" in cell.source
        assert has_tag(cell, "exercise") == with_gap
    assert not [cell for cell in exercises.cells if has_tag(cell, "solution-only")]
    assert len(exercises.cells) < len(solutions.cells)


def test_every_exercise_says_its_points_minutes_and_hint():
    notebook = read("exercises.ipynb")
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    tasks = [source for source in texts if source.startswith("## Exercise")]
    for n, (points, source) in enumerate(zip(POINTS, tasks, strict=True), 1):
        assert re.match(rf"## Exercise {n}: .*\({points} points, \d+ minutes\)\n", source)
    hints = [cell.source for cell in notebook.cells if "<summary>Hint</summary>" in cell.source]
    assert len(hints) == len(POINTS)
    for hint in hints:
        assert re.search(r"<details><summary>Hint</summary>\n\n.+\n\n</details>", hint, re.S)
    code = "\n".join(cell.source for cell in code_cells(notebook))
    checks = re.findall(r"^helpers[.]check_(\d+)[(](\w+)", code, re.M)
    assert checks == [(str(n), name) for n, name in enumerate(NAMES, 1)]
    assert list(helpers.POINTS.values()) == POINTS and sum(POINTS) == 30
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    minutes = [int(re.search(r"(\d+) minutes", task)[1]) for task in tasks]
    for n, (points, of_n) in enumerate(zip(POINTS, minutes), 1):
        row = rf"\| {n} .*\| {points} \| {of_n} \|"
        assert re.search(row, readme) and re.search(row, "\n".join(texts)), row
    assert 170 <= sum(minutes) <= 190 and "take about three hours" in readme


@pytest.mark.parametrize("name", ["exercises.ipynb", "solutions.ipynb"])
def test_exercises_are_longer_or_denser_than_a_student_reads(name):
    notebook = read(name)
    found = count.count(notebook)
    limits = {"code after code": 0, "longest code": 12, "widest code": 80, "asserts": 0, "longest text": 150}
    assert {key: found[key] for key, most in limits.items() if found[key] > most} == {}
    assert name == "solutions.ipynb" or found["minutes"] <= 20
    if name == "exercises.ipynb":
        assert f"bout {-int(-found['minutes'] // 1)} minutes of reading" in notebook.cells[0].source


def test_filling_a_gap_gives_the_solution_back():
    solutions, exercises = read("solutions.ipynb"), read("exercises.ipynb")
    filled = make_exercises.fill(exercises, make_exercises.answers(solutions))
    sources = [cell.source for cell in solutions.cells if not has_tag(cell, "solution-only")]
    assert [cell.source for cell in filled.cells] == sources


# ---------------------------------------------------------------------- answers, right and wrong, checked


@pytest.fixture(scope="module")
def attempt():
    """attempt(n, answer) -> what the check of exercise n prints. The unfilled notebook runs once, here."""
    cells, namespace, said = code_cells(read("exercises.ipynb")), {}, io.StringIO()
    helpers.RESULTS.clear()
    backend = helpers.plt.get_backend()
    helpers.plt.switch_backend("template")  # shows nothing
    in_folder = contextlib.chdir(FOLDER) if hasattr(contextlib, "chdir") else contextlib.nullcontext()
    with in_folder, contextlib.redirect_stdout(said):
        for cell in cells:
            exec(compile(cell.source, f"<{cell.id}>", "exec"), namespace)
    helpers.plt.switch_backend(backend)
    unfilled = namespace.copy()
    namespace |= {"drm_min": drm_min, "np": np, "helpers": helpers}
    namespace["prediction"] = ["ERM", "WRM", "DRM", "ERM", "the place may mislead us"]
    namespace["prediction_10"] = ["above", "falls", "the place may mislead us"]

    def attempt(n, answer):
        [cell] = [cell for cell in cells if f"\nhelpers.check_{n}(" in cell.source]
        with_answer = nbformat.v4.new_notebook(cells=[copy.deepcopy(cell)])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            [cell] = make_exercises.fill(with_answer, [answer]).cells
            exec(compile(cell.source, f"<{cell.id}>", "exec"), namespace)
        return said.getvalue()

    attempt.unfilled, attempt.predictions = said.getvalue(), unfilled
    return attempt


def test_unfilled_exercises_crash_or_give_points(attempt):
    lines = [line for line in attempt.unfilled.splitlines() if "exercise" in line]
    for n, (line, name, points) in enumerate(zip(lines, NAMES, POINTS, strict=True), 1):
        said = "predict first" if n >= 9 else f"{name} is still empty. Write it between"
        assert line.startswith(f"✗ exercise {n} (0 of {points} points): {said}")
    assert attempt.unfilled.rstrip().endswith("total: 0 of 30 points")


@pytest.mark.parametrize("n", range(1, 11))
def test_a_solution_is_rejected(attempt, n):
    solutions = [gap for gap in make_exercises.answers(read("solutions.ipynb")) if "return" in gap]
    said = attempt(n, solutions[n - 1])
    last = f"✓ exercise {n} ({POINTS[n - 1]} of {POINTS[n - 1]} points)"
    assert said.rstrip().splitlines()[-1] == last, said


OTHER_RIGHT = {  # written otherwise than the solutions
    1: [
        """
        e, size = model.encode_text(tokens, normalize=True), int(owner.max()) + 1
        sums = torch.zeros(size, e.shape[1]).index_add(0, owner, e)
        return sums / (sums * sums).sum(1, keepdim=True).sqrt()""",
        """
        e = encode_text(model, tokens)
        rows = []
        for c in range(8):
            mean = sum(e[t] for t in range(len(owner)) if owner[t] == c)
            rows.append(mean / mean.norm())
        return rows""",
        """
        e = encode_text(model, tokens)
        W = F.one_hot(owner).float().T @ e
        return [list(row) for row in F.normalize(W, dim=1)]""",
        """
        rows = {}
        for text, c in zip(encode_text(model, tokens), owner.tolist()):
            rows[c] = rows.get(c, 0) + text
        return tuple(rows[c] / rows[c].norm() for c in sorted(rows))""",
    ],
    2: [
        """
        q_s = (scale * f @ default_head.T).log_softmax(-1)
        q_w = (scale * f @ concept_head.T).log_softmax(-1)
        total = 0
        for i in range(len(f)):
            total = total - q_s[i, labels[i]] - lam * (p_c[i] * q_w[i]).sum()
        return total / len(f)""",
        """
        q_s, q_w = ((scale * f @ W.T).softmax(1) for W in (default_head, concept_head))
        return -(q_s[range(len(f)), labels].log() + lam * (p_c * q_w.log()).sum(1)).mean()""",
        """
        W = torch.cat([default_head, concept_head])
        a, b = (scale * (f @ W.T)).double().chunk(2, dim=1)
        targets = F.one_hot(labels, len(default_head)).double()
        return [F.cross_entropy(a, targets) + lam * F.cross_entropy(b, p_c.double())]""",
    ],
    3: [
        """
        T = torch.as_tensor(targets)
        by_row = T / T.sum(dim=1)[:, None]
        by_column = T / T.sum(dim=0)[None, :]
        a = -(by_row * logits.log_softmax(1)).sum(1).mean()
        b = -(by_column * logits.log_softmax(0)).sum(0).mean()
        return 0.5 * a + 0.5 * b""",
        """
        def half(L, T):
            return sum(-(t / t.sum() * l.log_softmax(0)).sum() for l, t in zip(L, T)) / len(L)
        return (half(logits, targets) + half(logits.T, targets.T)) / 2""",
        """
        log_rows, log_columns = logits - logits.logsumexp(1, keepdim=True), logits - logits.logsumexp(0)
        a = (targets * log_rows).sum(1) / targets.sum(1)
        b = (targets * log_columns).sum(0) / targets.sum(0)
        return [[-0.5 * (a.mean() + b.mean())]]""",
    ],
    4: [
        """
        beta = 1 / (1 + lam)
        return torch.lerp(p_c, p_s, beta), -math.log(1 - beta), -math.log(beta)""",
        """
        both = p_s + lam * p_c
        q = both / both.sum(-1, keepdim=True)
        return q, torch.tensor(1 + 1 / lam).log(), torch.tensor(1.0 + lam).log()""",
        """
        q = [[(a + lam * b) / (1 + lam) for a, b in zip(s, c)] for s, c in zip(p_s.tolist(), p_c.tolist())]
        return [q, [math.log((1 + lam) / lam)], np.float32(math.log1p(lam))]""",
        """
        s, c = p_s.numpy(), p_c.numpy()
        return (s + lam * c) / (1 + lam), np.array([np.log1p(1 / lam)]), np.log(1 + lam)""",
        """
        q = (p_s + lam * p_c) / (1 + lam)
        apart = torch.eye(2).double()  # the dearest case, not the data
        [[over_s, over_c]] = -((apart[:1] + lam * apart[1:]) / (1 + lam)).log()
        return q.float(), over_c, over_s""",
        """
        w = torch.tensor([1, lam]) / (1 + lam)
        return torch.einsum("k,kxc->xc", w.double(), torch.stack([p_s, p_c])), -w[1].log(), -w[0].log()""",
    ],
    5: [
        """
        import numpy as np
        a, y, s = A.double().numpy(), labels.numpy(), float(scale)

        def softmax(z):
            e = np.exp(z - z.max(axis=1, keepdims=True))
            return e / e.sum(axis=1, keepdims=True)

        if estimator == "softmax":
            return softmax(s * a)
        low, high = np.percentile(a, [1, 99], axis=0)
        u = np.minimum(np.maximum((a - low) / (high - low), 0), 1)
        left, right = 0.1, 100.0
        for _ in range(60):  # thirds of an interval, as the loss is convex in k
            third = (right - left) / 3
            ks = left + third, right - third
            loss = [-np.log(softmax(k * u)[np.arange(len(y)), y]).mean() for k in ks]
            left, right = (left, right - third) if loss[0] < loss[1] else (left + third, right)
        return softmax(left * u)""",
        """
        if estimator == "softmax":
            return [[float(p) for p in row] for row in (scale * A).softmax(1)]
        low, high = torch.quantile(A, torch.tensor([0.01, 0.99]), dim=0)
        u = torch.stack([((A[:, c] - low[c]) / (high[c] - low[c])).clip(0, 1) for c in range(A.shape[1])], 1)
        k = torch.ones((), requires_grad=True)
        descent = torch.optim.LBFGS([k], max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            descent.zero_grad()
            loss = F.cross_entropy(k * u, labels)
            loss.backward()
            return loss

        descent.step(closure)
        return (k * u).softmax(1)""",
    ],
    6: [
        """
        p = 0
        for weight, logits in ((beta, default_logits), (1 - beta, concept_logits)):
            p = p + weight * logits.masked_fill(~present, -math.inf).softmax(1)
        return p[:, present]""",
        """
        kept = [logits.softmax(1)[:, present] for logits in (default_logits, concept_logits)]
        a, b = (q / q.sum(1, keepdim=True) for q in kept)  # each head's rows, before mixing
        return beta * a + (1 - beta) * b""",
        """
        import numpy as np
        on = np.flatnonzero(present.numpy())
        p = 0
        for w, z in ((beta, default_logits), (1 - beta, concept_logits)):
            e = np.exp(z.numpy()[:, on].astype(float))
            p = p + w * e / e.sum(1, keepdims=True)
        return p.tolist()""",
        """
        rows, on = [], [c for c in range(len(present)) if present[c]]
        for a, b in zip(default_logits, concept_logits):
            rows.append(beta * a[on].softmax(0) + (1 - beta) * b[on].softmax(0))
        return rows""",
    ],
    7: [
        """
        import numpy as np
        lams = sorted(validation, reverse=True)
        accuracy = np.array([np.mean(validation[lam]) for lam in lams])
        return lams[int(np.argmax(accuracy >= accuracy.max() - 0.01))]""",
        """
        lams = torch.tensor(list(validation))
        mean = torch.tensor([sum(a) / len(a) for a in validation.values()])
        return lams[mean >= mean.max() - 0.01].max()""",
        """
        lams = np.array(list(validation))
        mean = np.array([np.mean(a) for a in validation.values()])
        return lams[mean.max() - mean <= 0.01].max(keepdims=True)""",
        """
        best = max(torch.tensor(a).mean() for a in validation.values())
        within = [lam for lam, a in validation.items() if torch.tensor(a).mean() >= best - 0.01]
        return torch.tensor([within]).max()""",
        """
        chosen = -1.0
        for lam in validation:
            worse = [np.mean(a) - np.mean(validation[lam]) > 0.01 for a in validation.values()]
            if not np.any(worse) and lam > chosen:
                chosen = lam
        return chosen""",
    ],
    8: [
        """
        objects = list(toy.core)
        return {name: [f"a photo of a {objects[i - 2]}."] for i, name in enumerate(objects)}""",
        """
        objects, swapped = list(toy.core), {}
        for a, b in zip(objects[::2], objects[1::2]):
            swapped[a], swapped[b] = tuple(toy.core[b]), tuple(toy.core[a])
        return swapped""",
    ],
    9: [
        """
        def accuracy(method):
            a = np.array(cells[method]).reshape(2, 2)
            return np.array([v, 1 - v]) @ a @ np.array([r, 1 - r])
        return max(cells, key=accuracy)""",
        """
        return max(cells, key=lambda method: helpers.law(r, v, torch.tensor(cells[method])))""",
        """
        names = np.array(list(cells))
        shares = np.outer([v, 1 - v], [r, 1 - r]).flatten()
        return names[np.argmax(np.array(list(cells.values())) @ shares)]""",
    ],
    10: [
        """
        def lead(r):
            return helpers.law(r, v, torch.tensor(erm)) - helpers.law(r, v, torch.tensor(drm))
        low, high = 0.0, 1.0
        if lead(low) * lead(high) > 0:
            return None
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if lead(middle) * lead(low) > 0 else (low, middle)
        return torch.tensor(middle)""",
        """
        d = np.subtract(erm, drm)
        slope = v * (d[0] - d[1]) + (1 - v) * (d[2] - d[3])
        r = -(v * d[1] + (1 - v) * d[3]) / slope
        return np.array([r]) if 0 <= r <= 1 else None""",
        """
        grid = torch.linspace(0, 1, 10001)
        a, b = torch.tensor(erm), torch.tensor(drm)
        lead = v * (grid * (a - b)[0] + (1 - grid) * (a - b)[1])
        lead = lead + (1 - v) * (grid * (a - b)[2] + (1 - grid) * (a - b)[3])
        if lead[0] * lead[-1] > 0:
            return None
        return [grid[lead.abs().argmin()]]""",
    ],
}


@pytest.mark.parametrize("n, answer", [(n, answer) for n, of_n in OTHER_RIGHT.items() for answer in of_n])
def test_a_right_answer_written_otherwise_is_rejected(attempt, n, answer):
    assert f"✓ exercise {n} " in (said := attempt(n, answer)), said


NORMALIZED = """
    if estimator == "softmax":
        return (scale * A).softmax(1)
    a, b = A.quantile({low}, dim={dim}, keepdim=True), A.quantile({high}, dim={dim}, keepdim=True)
    u = ((A - a) / (b - a)){clip}
    k = {k}
    return (k * u).softmax(1)"""
FITTED = "min(torch.logspace(-1, 3, 200), key=lambda k: F.cross_entropy(k * u, labels))"


def normalized(**changes):
    return NORMALIZED.format(**dict(low=0.01, high=0.99, dim=0, clip=".clamp(0, 1)", k=FITTED) | changes)


WRONG = [  # exercise, answer, what the message must say of it
    (
        1,
        """
        e = encode_text(model, tokens)
        return torch.stack([e[owner == c].mean(0) for c in range(8)])""",
        "not brought back to unit length",
    ),
    (
        1,
        """
        e = encode_text(model, tokens)
        return torch.stack([e[owner == c][0] for c in range(8)])""",
        "only the first text",
    ),
    (
        1,
        """
        e = encode_text(model, tokens)
        return F.normalize(e.view(8, -1, e.shape[1]).mean(1), dim=1)""",
        "Use owner",
    ),
    (
        1,
        """
        with torch.no_grad():
            return drm_min.build_head(model, drm_min.Texts(tokens, owner))""",
        "no gradient",
    ),
    (
        1,
        """
        e = model.encode_text(tokens)
        return F.normalize(torch.stack([e[owner == c].mean(0) for c in range(8)]), dim=1)""",
        "unit vectors before the mean",
    ),
    (
        2,
        "return F.cross_entropy(f @ default_head.T, labels) + lam * F.cross_entropy(f @ concept_head.T, p_c)",
        "scale is missing",
    ),
    (
        2,
        """
        wrm = F.cross_entropy(scale * f @ concept_head.T, p_c.argmax(1))
        return F.cross_entropy(scale * f @ default_head.T, labels) + lam * wrm""",
        "made hard",
    ),
    (
        2,
        """
        wrm = F.cross_entropy(scale * f @ default_head.T, p_c)
        return F.cross_entropy(scale * f @ concept_head.T, labels) + lam * wrm""",
        "heads are exchanged",
    ),
    (
        2,
        """
        wrm = F.cross_entropy((scale * f @ concept_head.T).softmax(1), p_c)
        return F.cross_entropy((scale * f @ default_head.T).softmax(1), labels) + lam * wrm""",
        "a softmax is taken twice",
    ),
    (
        2,
        "return drm_min.dual_loss(f, default_head, concept_head, scale, labels, p_c, lam)[0].detach()",
        "no gradient",
    ),
    (3, "return F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))", "only the rows count"),
    (
        3,
        """
        T = targets / targets.sum(1, keepdim=True)
        return (F.cross_entropy(logits, T) + F.cross_entropy(logits.T, T.T)) / 2""",
        "normalised along the rows",
    ),
    (3, "return 2 * drm_min.contrastive_loss(logits, targets)", "take their mean"),
    (
        4,
        "return (lam * p_s + p_c) / (1 + lam), math.log(1 + 1 / lam), math.log(1 + lam)",
        "lambda belongs to p_c",
    ),
    (
        4,
        """
        q = ((p_s.log() + lam * p_c.log()) / (1 + lam)).softmax(1)
        return q, math.log(1 + 1 / lam), math.log(1 + lam)""",
        "logarithms are mixed",
    ),
    (4, "return (p_s + lam * p_c) / (1 + lam), math.log(1 + lam), math.log(1 + 1 / lam)", "exchanged"),
    (4, "return (p_s + lam * p_c) / (1 + lam), 0.1, 0.1", "at lambda = 0.3, 0.100 nats are too few"),
    (4, "return (p_s + lam * p_c) / (1 + lam), 5, 5", "never pays more"),
    (4, "return p_s + lam * p_c, math.log(1 + 1 / lam), math.log(1 + lam)", "do not sum to one"),
    (5, normalized(low=0.0, high=1.0), "minimum and maximum"),
    (5, normalized(dim=1), "map each class over the images"),
    (5, normalized(clip=""), "not clipped"),
    (5, normalized(k="1"), "k is not fitted"),
    (5, normalized(k="scale"), "k is the logit scale"),
    (5, normalized(low=0.05, high=0.95), "the percentiles are 5 and 95"),
    (5, "return A.softmax(1)", "scale is missing"),
    (5, "return (scale * A).softmax(0)", "along the classes"),
    (
        6,
        """
        logits = beta * default_logits + (1 - beta) * concept_logits
        return logits[:, present].softmax(1)""",
        "the logits are mixed, not",
    ),
    (
        6,
        """
        p = beta * default_logits.softmax(1) + (1 - beta) * concept_logits.softmax(1)
        return p[:, present]""",
        "dropped after the softmax",
    ),
    (
        6,
        """
        p = beta * default_logits.softmax(1) + (1 - beta) * concept_logits.softmax(1)
        return p[:, present] / p[:, present].sum(1, keepdim=True)""",
        "each head must sum to one before mixing, not only the mixture",
    ),
    (6, "return drm_min.mix(default_logits.softmax(1), concept_logits.softmax(1), beta)", "shape"),
    (
        6,
        """
        a, b = default_logits[:, present].softmax(1), concept_logits[:, present].softmax(1)
        return beta * b + (1 - beta) * a""",
        "weights are exchanged",
    ),
    (
        7,
        "return max(validation, key=lambda lam: sum(validation[lam]) / len(validation[lam]))",
        "the most accurate",
    ),
    (7, "return max(validation)", "costs"),
    (
        7,
        """
        mean = {lam: sum(a) / len(a) for lam, a in validation.items()}
        return max(lam for lam in mean if mean[lam] > 0.99 * max(mean.values()))""",
        "1: 49.3 %",
    ),
    (
        7,
        """
        last = {lam: accuracies[-1] for lam, accuracies in validation.items()}
        return max(lam for lam in last if last[lam] > max(last.values()) - 0.01)""",
        "1 is larger and within a point",
    ),
    (7, "return 1.0", ", none of the lambdas"),
    (
        7,
        """
        from notebooks.helpers import load, pick
        ood = {}
        for name, lam in helpers.LAMBDAS.items():
            ood[lam] = sum(row["splits"]["place misleads"]["accuracy"] for row in pick(load()["rows"], name))
        return max(ood, key=ood.get)""",
        "reads a file or what was recorded",
    ),
    (
        7,
        """
        mean, chosen = {lam: sum(a) / len(a) for lam, a in sorted(validation.items())}, 0.0
        for lam in mean:
            if mean[lam] < max(mean.values()) - 0.01:
                return chosen
            chosen = lam""",
        "larger and within a point",
    ),
    (8, "return toy.core", "still fit their objects"),
    (8, "return {name: ['a photo of something.'] for name in toy.core}", "of all classes are alike"),
    (
        8,
        """
        from support.texts import load_descriptions
        names = dict(zip(toy.core, toy.core))
        return dict(zip(toy.core, load_descriptions(root / "descriptions/toy.context.json", names)))""",
        "must be sure of a wrong class",
    ),
    (8, "return {name: 'a photo of a fish.' for name in toy.core}", "a list"),
    (8, "return toy.core | {'ski': ['a very ' + 'long ' * 99]}", "tokens"),
]

HEAD = """
    e = encode_text(model, tokens)
    n = int(owner.max()) + 1
    return {}"""
MEANS = "torch.stack([{} for c in range(n)])"
EMPTY = "it is"  # what is said in numbers


def head(row, around="F.normalize({}, dim=1)"):
    return HEAD.format(around.format(MEANS.format(row)))


LOSS = """
    a, b = {a}, {b}
    erm, wrm = {erm}, {wrm}
    return {total}"""


def loss(**changes):
    parts = dict(a="scale * f @ default_head.T", b="scale * f @ concept_head.T")
    parts |= dict(erm="F.cross_entropy(a, labels)", wrm="F.cross_entropy(b, p_c)", total="erm + lam * wrm")
    return LOSS.format(**parts | changes)


CONTRASTIVE = """
    R, K = {R}, {K}
    rows, columns = {rows}, {columns}
    return {total}"""


def contrastive(**changes):
    parts = dict(R="targets / targets.sum(1, keepdim=True)", K="targets / targets.sum(0)")
    parts |= dict(rows="F.cross_entropy(logits, R)", columns="F.cross_entropy(logits.T, K.T)")
    return CONTRASTIVE.format(**parts | dict(total="(rows + columns) / 2") | changes)


def mixture(q="(p_s + lam * p_c) / (1 + lam)", c="math.log(1 + 1 / lam)", s="math.log(1 + lam)"):
    return f"\n    q = {q}\n    return q, {c}, {s}"


def soft(text):
    return "\n    if estimator == 'softmax':\n" + f"        return {text}" + normalized()


def mixed(head="z[:, present].softmax(1)", total="beta * a + (1 - beta) * b"):
    return f"\n    a, b = ({head} for z in (default_logits, concept_logits))\n    return {total}"


def chosen(rule, mean="sum(a) / len(a)"):
    mean = f"mean = {{lam: {mean} for lam, a in validation.items()}}"
    return f"\n    {mean}\n    best = max(mean.values())\n    return {rule}"


def winner(score):
    return f"return max(cells, key=lambda name: (lambda a: {score})(cells[name]))"


NO_CRASH = "at_0 / (at_0 - at_1) if at_0 != at_1 else math.inf"


def meeting(r="at_0 / (at_0 - at_1)", out="r if 0 <= r <= 1 else None", at_0=None, at_1=None):
    at_0 = at_0 or "v * d[1] + (1 - v) * d[3]"
    at_1 = at_1 or "v * d[0] + (1 - v) * d[2]"
    d = "[a - b for a, b in zip(erm, drm)]"
    return f"\n    d = {d}\n    at_0, at_1 = {at_0}, {at_1}\n    r = {r}\n    return {out}"


MORE_WRONG = {
    1: [
        (head("e[owner == c].mean(0)", "{}"), "not brought back to unit length"),
        (head("e[owner == c].sum(0)", "{}"), "long; each must have length 1"),
        (head("e[owner == c].mean(0)", "F.normalize({}, dim=0)"), "long; each must have length 1"),
        (head("e[owner == c].mean(0)", "F.normalize({}, p=1, dim=1)"), "long; each must have length 1"),
        (head("e[owner == c].mean(0)", "{}.softmax(1)"), "long; each must have length 1"),
        (head("e[owner == c].mean(0)", "F.normalize({}, dim=1).T"), "the shape (64, 8)"),
        (head("e[owner == c].mean(0)", "F.normalize({}, dim=1)[:7]"), "the shape (7, 64)"),
        (head("e[owner == c][-1]"), "only the last text"),
        (head("e[owner == c].median(0).values"), "has the cosine"),
        (head("e[owner == c].amax(0)"), "has the cosine"),
        (head("e[owner == c][:2].mean(0)"), "has the cosine"),
        (head("e[owner == 7 - c].mean(0)"), "has the cosine"),
        (head("e.mean(0)"), "all rows are the same"),
        (
            head("e[owner == list(dict.fromkeys(owner.tolist()))[c]].mean(0)"),
            "the order in which classes come",
        ),
        (head("e[owner == c].mean(0).detach()"), "no gradient"),
        (head("e[owner == c].mean(0)", "F.normalize({}, dim=1).tolist()"), "no gradient"),
        (head("e[owner == c].mean(0) / e[owner == c].mean(0).norm().detach()", "{}"), "not its gradient"),
        (head("e[c::8].mean(0)"), "has the cosine"),
        (head("e[3 * c : 3 * c + 3].mean(0)"), "Use owner"),
        (head("model.encode_text(tokens)[owner == c].mean(0)"), "unit vectors before the mean"),
        (head("e[owner == c].mean(0)", "[row for row in {}][0]"), "the shape (64,)"),
        (head("e[owner == c].prod(0)"), "has the cosine"),
        (head("encode_text(toy.model, tokens)[owner == c].mean(0)"), "those of toy.model; use the argument"),
    ],
    2: [
        (loss(total="erm + wrm"), "lambda is forgotten"),
        (loss(total="erm + (1 - lam) * wrm"), "1 - lambda stands in place of lambda"),
        (loss(total="(1 - lam) * erm + lam * wrm"), "R_s is weighted with 1 - lambda"),
        (loss(total="(erm + lam * wrm) / (1 + lam)"), "divided by 1 + lambda"),
        (loss(total="lam * erm + wrm"), "lambda weighs the wrong term"),
        (loss(total="lam * (erm + wrm)"), "lambda weighs both terms"),
        (loss(total="erm"), "this is R_s alone"),
        (loss(wrm="F.cross_entropy(b, p_c.round())"), "but R_s + 0.3 R_w is"),
        (loss(total="lam * wrm"), "this is lambda R_w alone"),
        (loss(total="erm - lam * wrm"), "the sign of R_w is wrong"),
        (loss(total="lam * wrm - erm"), "the sign of R_s is wrong"),
        (loss(total="(erm + lam * wrm) / 2"), "divided by 2"),
        (loss(erm="F.nll_loss(a.softmax(1), labels)"), "the log is missing in R_s"),
        (loss(a="toy.scale * f @ default_head.T", b="toy.scale * f @ concept_head.T"), "that of toy"),
        (loss(total="erm + lam ** 2 * wrm"), "but R_s + 0.3 R_w is"),
        (loss(total="erm * lam * wrm"), "but R_s + 0.3 R_w is"),
        (loss(total="64 * (erm + lam * wrm)"), "summed over the batch"),
        (loss(wrm="F.cross_entropy(b, p_c, reduction='sum')"), "R_w is summed over the batch"),
        (loss(erm="F.cross_entropy(a, labels, reduction='sum')"), "R_s is summed over the batch"),
        (loss(a="f @ default_head.T"), "the scale is missing in R_s"),
        (loss(b="f @ concept_head.T"), "the scale is missing in R_w"),
        (loss(a="f @ default_head.T / scale", b="f @ concept_head.T / scale"), "divided by the scale:"),
        (loss(b="f @ concept_head.T / scale"), "divided by the scale in R_w"),
        (loss(a="scale ** 2 * f @ default_head.T"), "but R_s + 0.3 R_w is"),
        (loss(wrm="F.kl_div(b.log_softmax(1), p_c, reduction='batchmean')"), "a KL divergence"),
        (loss(wrm="F.kl_div(b.log_softmax(1), p_c)"), "a KL divergence, and a mean over the classes"),
        (loss(erm="F.cross_entropy(a, p_c)"), "p_c is the target of both terms"),
        (loss(wrm="F.cross_entropy(b, labels)"), "the labels are the target of both"),
        (loss(erm="F.cross_entropy(a, p_c)", wrm="F.cross_entropy(b, labels)"), "the targets are exchanged"),
        (loss(b="scale * f @ default_head.T"), "the default head is in both"),
        (loss(a="scale * f @ concept_head.T"), "the concept head is in both"),
        (loss(wrm="-(p_c * b.log_softmax(1)).mean()"), "R_w is a mean over the classes too"),
        (loss(total="(erm + lam * wrm) / 8"), "a mean over the classes too"),
        (loss(wrm="F.cross_entropy(b.softmax(1), p_c)"), "a softmax is taken twice in R_w"),
        (loss(wrm="-(b.softmax(1) * p_c.log()).sum(1).mean()"), "R_w has its arguments exchanged"),
        (loss(wrm="-(p_c * b.softmax(1)).sum(1).mean()"), "the log is missing in R_w"),
        (loss(wrm="F.mse_loss(b.softmax(1), p_c)"), "but R_s + 0.3 R_w is"),
        (
            loss(total="F.nll_loss(((a.softmax(1) + lam * b.softmax(1)) / (1 + lam)).log(), labels)"),
            "the loss is taken on the mixture of equation (4)",
        ),
        (
            """
            q_s, q_w = ((scale * f @ W.T).softmax(1) for W in (default_head, concept_head))
            log_q = ((q_s + q_w) / 2).log()
            return F.nll_loss(log_q, labels) - lam * (p_c * log_q).sum(1).mean()""",
            "the loss is taken on a mixture, half and half",
        ),
        (loss(total="-(erm + lam * wrm)"), "the sign is wrong"),
        (loss(total="(erm + lam * wrm).item()"), "no gradient"),
        (loss(total="erm + lam * wrm.detach()"), "no gradient reaches the concept head"),
        (loss(a="scale * f.detach() @ default_head.T"), "not its gradient for the image features"),
        (loss(total="[erm, lam * wrm]"), "has the shape (2,)"),
        (loss(total="(erm + lam * wrm).expand(64)"), "has the shape (64,)"),
    ],
    3: [
        (contrastive(total="columns"), "only the columns count"),
        (contrastive(total="rows + columns"), "the two halves are added"),
        (contrastive(total="(4 * rows + 3 * columns) / 7"), "have the weights B and K"),
        (contrastive(total="-(rows + columns) / 2"), "the sign is wrong"),
        (contrastive(total="rows * columns"), "of 3 (B = 4, K = 3) it is"),
        (contrastive(total="torch.maximum(rows, columns)"), "of 3 (B = 4, K = 3) it is"),
        (contrastive(total="rows / 2 - columns / 2"), "of 3 (B = 4, K = 3) it is"),
        (contrastive(R="targets", K="targets"), "the targets are not normalised"),
        (contrastive(K="targets"), "of the columns are not normalised"),
        (contrastive(R="targets"), "of the rows are not normalised"),
        (contrastive(R="targets / targets.sum(0)"), "the rows are normalised along the columns"),
        (contrastive(R="targets / targets.sum(0)", K="targets / targets.sum(1, keepdim=True)"), "exchanged"),
        (contrastive(R="targets / targets.sum()", K="targets / targets.sum()"), "divided by its sum"),
        (contrastive(R="targets.softmax(1)", K="targets.softmax(0)"), "are a softmax of T"),
        (contrastive(R="F.normalize(targets, dim=1)", K="F.normalize(targets, dim=0)"), "have L2 norm one"),
        (
            contrastive(
                rows="F.cross_entropy(logits, R.argmax(1))", columns="F.cross_entropy(logits.T, K.argmax(0))"
            ),
            "made hard",
        ),
        (
            contrastive(columns="-(K * logits.log_softmax(0)).sum() / len(logits)"),
            "both halves are divided by B",
        ),
        (contrastive(columns="-(K * logits.log_softmax(1)).sum() / K.shape[1]"), "a softmax along the rows"),
        (
            contrastive(
                rows="F.kl_div(logits.log_softmax(1), R, reduction='batchmean')",
                columns="F.kl_div(logits.T.log_softmax(1), K.T, reduction='batchmean')",
            ),
            "KL divergences",
        ),
        (contrastive(R="targets / targets.amax(1, keepdim=True)"), "of 3 (B = 4, K = 3) it is"),
        (
            contrastive(
                rows="F.cross_entropy(logits, R, reduction='sum')",
                columns="F.cross_entropy(logits.T, K.T, reduction='sum')",
            ),
            "sums over the batch",
        ),
        (
            contrastive(
                rows="-(R * logits.log_softmax(1)).mean()", columns="-(K * logits.log_softmax(0)).mean()"
            ),
            "means over all B * K logits",
        ),
        (
            contrastive(
                rows="F.cross_entropy(logits.softmax(1), R)",
                columns="F.cross_entropy(logits.T.softmax(1), K.T)",
            ),
            "a softmax is taken twice",
        ),
        (contrastive(rows="F.cross_entropy(logits, R.argmax(1))"), "of 3 (B = 4, K = 3) it is"),
        (contrastive(columns="F.cross_entropy(logits, K)"), "of 3 (B = 4, K = 3) it is"),
        (
            contrastive(rows="F.binary_cross_entropy_with_logits(logits, R)"),
            "of 3 (B = 4, K = 3) it is",
        ),
        (contrastive(total="((rows + columns) / 2).detach()"), "no gradient"),
        (contrastive(total="(rows.detach() + columns) / 2"), "not its gradient for the logits"),
        (contrastive(total="torch.stack([rows, columns])"), "has the shape (2,)"),
        ("return F.cross_entropy(logits, torch.arange(len(logits)))", "IndexError"),
    ],
    4: [
        (mixture(q="p_s"), "q: p_s alone"),
        (mixture(q="p_c"), "q: p_c alone"),
        (mixture(q="(p_s + p_c) / 2"), "half and half"),
        (mixture(q="(1 - lam) * p_s + lam * p_c"), "the weights are 1 - lambda and lambda"),
        (mixture(q="((p_s + lam * p_c) / (1 + lam)).softmax(1)"), "q is"),
        (mixture(q="(p_s + lam ** 2 * p_c) / (1 + lam ** 2)"), "q is"),
        (mixture(q="torch.maximum(p_s, p_c) / torch.maximum(p_s, p_c).sum(1, keepdim=True)"), "q is"),
        (mixture(q="(p_s + lam * p_c).mean(0)"), "q has the shape (4,)"),
        (mixture(q="((p_s + 1e-9).log() + lam * (p_c + 1e-9).log()).softmax(1)"), "q is"),
        (mixture(q="(p_s + lam * p_c) / (1 - lam)"), "q is"),
        (
            mixture(c="(p_c / q).nan_to_num(0).log().max()"),
            "the bound above p_c changes with the data",
        ),
        (
            mixture(s="torch.where(p_s > 0, (p_s / q).log(), 0).max().item()"),
            "the bound above p_s changes with the data",
        ),
        (
            mixture(c="float(torch.where(p_c > 0, p_c * (p_c / q).log(), 0).sum(1).mean())"),
            "the bound above p_c changes with the data",
        ),
        (mixture(c="(p_c / q).max().log()"), "the bound above p_c changes with the data"),
        (mixture(s="float((p_s.log() - q.log()).max())"), "the bound above p_s changes with the data"),
        (mixture(c="None"), "the bound above p_c is None"),
        (mixture(c="1 + 1 / lam", s="1 + lam"), "the log is missing"),
        (mixture(c="math.log2(1 + 1 / lam)"), "base 2"),
        (mixture(s="math.log2(1 + lam)"), "base 2"),
        (mixture(c="math.log(lam / (1 + lam))"), "the sign is wrong"),
        (mixture(c="math.log(2)", s="math.log(2)"), "right for lambda 1 alone"),
        (mixture(c="math.log(1 + lam)"), "the bound above p_c: it is the other one's"),
        (mixture(c="math.log(1 / lam)"), "are too few"),
        (mixture(s="lam"), "never pays more"),
        (mixture(c="math.log(1 + lam) + math.log(1 + 1 / lam)"), "never pays more"),
        (mixture(c="math.inf"), "the bound above p_c holds nan or infinity"),
        (mixture(c="'log(1 + 1 / lam)'"), "the bound above p_c is a str"),
        ("return (p_s + lam * p_c) / (1 + lam)", "return three"),
        (
            "return math.log(1 + 1 / lam), (p_s + lam * p_c) / (1 + lam), math.log(1 + lam)",
            "q has the shape ()",
        ),
    ],
    5: [
        (soft("(A / scale).softmax(1)"), "softmax: divided by the scale"),
        (soft("scale * A"), "these are logits"),
        (soft("(scale * A).log_softmax(1)"), "these are logarithms"),
        (soft("(scale * A).sigmoid()"), "softmax: image"),
        (soft("F.one_hot(A.argmax(1), 8).float()"), "the most probable class gets all"),
        (soft("F.one_hot(labels, 8)"), "these are the labels"),
        (soft("(scale * A).exp()"), "softmax: image"),
        (soft("(scale * A).softmax(1)[:, :7]"), "softmax: the result has the shape (1000, 7)"),
        (
            normalized().replace("return (k * u)", "return u / u.sum(1, keepdim=True) #"),
            "u is divided by its sum",
        ),
        (normalized().replace("return (k * u).softmax(1)", "return u"), "this is u"),
        (normalized().replace("return (k * u)", "return (k * A)"), "normalized: image"),
        (normalized(low=0.02, high=0.98), "the percentiles are 2 and 98"),
        (normalized(low=0.1, high=0.9), "the percentiles are 10 and 90"),
        (normalized(low=0.3, high=0.7), "normalized: image"),
        (normalized(low=0.99, high=0.01), "the two percentiles are exchanged"),
        (normalized(low=0.01, high=1.0), "normalized: image"),
        (normalized(k="1 / scale"), "u is right, but k = 0.0782 is far too small"),
        (normalized(k="4.0"), "u is right, but k = 4 is far too small"),
        (normalized(k="2 * " + FITTED), "u is right, but k = 25.8 is too large"),
        (normalized(k="100"), "normalized: "),
        (normalized(k=FITTED.replace("min(", "max(")), "normalized: "),
        (normalized(k=FITTED.replace("k * u", "k * A")), "normalized: "),
        (normalized(clip=".clamp(-1, 1)"), "clipped at 1 only"),
        (
            normalized()
            .replace("(A - a) / (b - a)", "(A - A.mean(0)) / A.std(0)")
            .replace(".clamp(0, 1)", ""),
            "mean and standard deviation",
        ),
        (normalized().replace("/ (b - a)", ""), "normalized: "),
        (
            normalized().replace(
                "A.quantile(0.01, dim=0, keepdim=True), A.quantile(0.99, dim=0, keepdim=True)",
                "A.quantile(0.01), A.quantile(0.99)",
            ),
            "one range for all classes",
        ),
        ("return (scale * A).softmax(1)", "this is the softmax of scale * A"),
        (normalized(k=f"1.1 * {FITTED}"), "u is right, but k = 14.2 is too large: the log loss"),
        (normalized(k=f"1.1 * {FITTED}"), "with k near 12.8"),
        (normalized(k=f"scale * {FITTED}"), "is far too large"),
        (normalized(k=FITTED.replace("min", "max")), "is far too large"),
        (normalized(k=f"torch.linspace(0.5, 1.5, 8) * {FITTED}"), "each class has a k of its own"),
        (normalized(clip=".clamp(min=0)"), "clipped at 0 only"),
        (normalized(clip=".clamp(max=1)"), "clipped at 1 only"),
        (
            normalized().replace("(k * u).softmax(1)", "(k * u).log_softmax(1)"),
            "normalized: these are logarithms",
        ),
        (normalized().replace("(k * u).softmax(1)", "k * u"), "this is k u"),
        (
            normalized().replace("== 'softmax'", "!= 'softmax'").replace('== "', '!= "'),
            "softmax: this is the other",
        ),
    ],
    6: [
        (mixed("(z * present).softmax(1)[:, present]"), "absent classes get the logit 0"),
        (
            mixed(
                "(z * present).softmax(1)",
                "(lambda p: p / p.sum(1, keepdim=True))((beta * a + (1 - beta) * b)[:, present])",
            ),
            "absent classes get the logit 0",
        ),
        (mixed("z.masked_fill(~present, 0).softmax(1)[:, present]"), "absent classes get the logit 0"),
        (mixed("(z * present).softmax(1)"), "has the shape (200, 8)"),
        (mixed("z.masked_fill(~present, -1e9).softmax(1)"), "has the shape (200, 8)"),
        (mixed("z[:, ~present].softmax(1)"), "has the shape (200, 3)"),
        (mixed("z[:, present]"), "these are logits"),
        (mixed("z[:, present].sigmoid()"), "p: image"),
        (mixed("z[:, present].log_softmax(1)", "(beta * a + (1 - beta) * b).exp()"), "p: image"),
        (mixed("z[:, present].softmax(0)"), "over the images"),
        (
            mixed(
                "z.softmax(1)[:, present]",
                "(lambda q: q / q.sum(1, keepdim=True))(beta * a + (1 - beta) * b)",
            ),
            "each head must sum to one before mixing",
        ),
        (mixed(total="a"), "the default head alone"),
        (mixed(total="b"), "the concept head alone"),
        (mixed(total="(a + b) / 2"), "half and half"),
        (mixed(total="a + b"), "p: image"),
        (mixed(total="beta * a + b"), "p: image"),
        (mixed(total="torch.maximum(a, b)"), "p: image"),
        (mixed(total="beta * a * (1 - beta) * b"), "p: image"),
        (mixed("z[:, : int(present.sum())].softmax(1)"), "the first columns are kept"),
        (mixed("z[:, present].flip(1).softmax(1)"), "p: image"),
        (mixed("z[:, present].softmax(1).softmax(1)"), "p: image"),
        (
            mixed("z[:, present].exp()", "(lambda p: p / p.sum(1, keepdim=True))(beta * a + (1 - beta) * b)"),
            "p: image",
        ),
        (
            mixed("z", "(beta * a + (1 - beta) * b).softmax(1)[:, present]"),
            "the logits are mixed, and columns",
        ),
        (mixed(total="(beta * a + (1 - beta) * b).argmax(1)"), "has the shape (200,)"),
        (mixed(total="(beta * a + (1 - beta) * b).T"), "has the shape (5, 200)"),
    ],
    7: [
        ("return min(validation)", "it chooses"),
        ("return 'a'", "none of the lambdas"),
        (chosen("str(max(mean))"), "it chooses 'inf', none of the lambdas, which are numbers"),
        (chosen("max(lam for lam in mean if mean[lam] > best - 0.01)"), "0: 2.0 %, 1: 1.0 %, it chooses 0"),
        (
            chosen("max(lam for lam in mean if lam < best - 0.01) / 0"),
            "; given accuracies (means of the seeds) 0",
        ),
        (chosen("[max(mean)]"), "return the number, not a list"),
        (chosen("best").replace("return", "found ="), "Is there a `return`?"),
        ("return list(validation)[-1]", "it chooses"),
        (chosen("mean"), "not a dict"),
        (chosen("best"), "none of the lambdas"),
        (chosen("list(mean).index(max(lam for lam in mean if mean[lam] >= best - 0.01))"), "it chooses"),
        (chosen("[lam for lam in mean if mean[lam] >= best - 0.01]"), "not a list"),
        (chosen("min(lam for lam in mean if mean[lam] >= best - 0.01)"), "is larger and within a point"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 0.1)"), "is the largest within a point"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 0.001)"), "and within a point"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 0.005)"), "and within a point"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 1)"), "is the largest within a point"),
        (chosen("max(lam for lam in mean if mean[lam] <= best - 0.01)"), "it chooses"),
        (chosen("max(lam for lam in mean if lam < math.inf and mean[lam] >= best - 0.01)"), "inf is larger"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 0.01)", "min(a)"), "it chooses"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 0.01)", "max(a)"), "it chooses"),
        (
            chosen("max(lam for lam in mean if mean[lam] >= best - 0.01)", "sorted(a)[len(a) // 2]"),
            "it chooses",
        ),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 0.01)", "a[0]"), "it chooses"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - 0.01)", "sum(a)"), "it chooses"),
        (chosen("max(lam for lam in mean if mean[lam] >= best - np.std(validation[lam]))"), "it chooses"),
        (chosen("max(lam for lam in mean if mean[lam] >= mean[min(mean)] - 0.01)"), "it chooses"),
        (chosen("min(mean, key=lambda lam: abs(mean[lam] - best + 0.01))"), "it chooses"),
        ("return {0.1: 0.3}", "return the number, not a dict"),
        ("return open('solutions.ipynb').read()", "reads a file or what was recorded"),
        (
            "return max(helpers.LAMBDAS.values(), key=lambda lam: helpers.ood_mean('drm-1').mean())",
            "reads a file",
        ),
    ],
    8: [
        ("return list(toy.core.values())", "a dictionary is asked for, not a list"),
        ("return {name: text for name, text in list(toy.core.items())[:7]}", "the keys must be"),
        ("return toy.core | {'dog': ['a dog']}", "the keys must be"),
        ("return dict(enumerate(toy.core.values()))", "the keys must be"),
        ("return toy.core | {'fish': []}", "fish: give it a list"),
        ("return toy.core | {'fish': ['']}", "fish: give it a list"),
        ("return toy.core | {'fish': None}", "fish: give it a list"),
        ("return toy.core | {'fish': [7]}", "fish: give it a list"),
        ("return {name: [f'a photo of a {name}.'] for name in toy.core}", "still fit their objects"),
        ("return {name: [name] for name in toy.core}", "still fit their objects"),
        ("return {name: [name[::-1]] for name in toy.core}", "must be sure of a wrong class"),
        ("return {name: ['x'] for name in toy.core}", "of all classes are alike"),
        (
            "return {name: [f'object {i}'] for i, name in enumerate(toy.core)}",
            "must be sure of a wrong class",
        ),
        ("return {name: ['not ' + text for text in texts] for name, texts in toy.core.items()}", "% of"),
        ("return toy.core | {'ski': toy.core['boat'], 'boat': toy.core['ski']}", "% of"),
        ("return {name: texts + toy.core['fish'] for name, texts in toy.core.items()}", "% of"),
        (
            """
            o = list(toy.core)
            return {a: toy.core[a] if i > 3 else toy.core[o[(i + 1) % 4]] for i, a in enumerate(o)}""",
            "% of",
        ),
        (
            """
            every = [text for texts in toy.core.values() for text in texts]
            return {name: every for name in toy.core}""",
            "of all classes are alike",
        ),
    ],
    9: [
        (winner("-helpers.law(r, v, a)"), "the least accurate"),
        (winner("helpers.law(v, r, a)"), "r and v are exchanged"),
        (winner("helpers.law(1 - r, v, a)"), "r and 1 - r are exchanged"),
        (winner("helpers.law(r, 1 - v, a)"), "v and 1 - v are exchanged"),
        (winner("helpers.law(1 - r, 1 - v, a)"), "it says"),
        (winner("helpers.law(r, v, [a[0], a[2], a[1], a[3]])"), "the second and third cell"),
        (winner("r * a[0] + (1 - r) * a[1]"), "only visible objects count"),
        (winner("v * a[0] + (1 - v) * a[2]"), "only regular places count"),
        (winner("sum(a) / 4"), "the four cells weigh the same"),
        (winner("max(a)"), "the best cell alone"),
        (winner("min(a)"), "the worst cell alone"),
        (winner("a[(2 if v < 0.5 else 0) + (1 if r < 0.5 else 0)]"), "the most frequent cell alone"),
        (winner("helpers.law(r + (1 - r) / 8, v, a)"), "r is taken for rho"),
        (winner("helpers.law((8 * r - 1) / 7, v, a)"), "r is turned into rho"),
        (winner("(r + v) * a[0] + (1 - r + v) * a[1] + (1 - v + r) * a[2] + (2 - r - v) * a[3]"), "it says"),
        (winner("v * (r * a[0] + (1 - r) * a[1]) + r * a[2] + (1 - r) * a[3]"), "it says"),
        (winner("r * a[0] + a[1] + a[2] + v * a[3]"), "it says"),
        (winner("math.prod(a)"), "it says"),
        (winner("r * v * a[0]"), "it says"),
        ("return max(cells, key=cells.get)", "it says"),
        ("return 'DRM'", "it says DRM, but"),
        ("return 'ERM' if r > 0.5 else 'WRM'", "it says"),
        ("return list(cells)[0]", "it says"),
        ("return max(helpers.law(r, v, a) for a in cells.values())", "return the name of a method"),
        (
            "return int(np.argmax([helpers.law(r, v, a) for a in cells.values()]))",
            "return the name of a method",
        ),
        ("return {name: helpers.law(r, v, a) for name, a in cells.items()}", "return the name of a method"),
        (
            "return sorted(cells, key=lambda name: helpers.law(r, v, cells[name]))",
            "return the name of a method",
        ),
    ],
    10: [
        (meeting(out="r"), "not an r beyond"),
        (meeting(out="min(max(r, 0), 1)"), "not 0 or 1"),
        (meeting(out="1 - r if 0 <= r <= 1 else None"), "this is 1 - r"),
        (meeting(out="(8 * r - 1) / 7 if 0 <= r <= 1 else None"), "this is rho, not r"),
        (meeting(out="None"), "None even where there is such an r"),
        (meeting(out="0.83"), "for v ="),
        (meeting(out="round(r, 1) if 0 <= r <= 1 else None"), "they are equal"),
        (meeting(out="r if 0 < r < 0.5 else None"), "they are equal"),
        (meeting(out="r if 0 <= r else None"), "None is asked for"),
        (meeting(out="abs(r) if abs(r) <= 1 else None"), "None is asked for"),
        (meeting(r="at_0 / (at_1 - at_0)"), "the sign is wrong"),
        (meeting(r="at_0 / (at_0 + at_1)"), "for v ="),
        (meeting(r="at_1 / (at_1 - at_0)"), "this is 1 - r"),
        (meeting(r="at_1 - at_0"), "for v ="),
        (meeting(r="(at_0 - at_1) / at_0"), "for v ="),
        (
            meeting(at_0="(1 - v) * d[1] + v * d[3]", at_1="(1 - v) * d[0] + v * d[2]"),
            "v and 1 - v are exchanged",
        ),
        (meeting(at_0="d[1] + d[3]", at_1="d[0] + d[2]"), "v is not used"),
        (meeting(at_0="d[1]", at_1="d[0]"), "only visible objects count"),
        (meeting(at_0="d[3]", at_1="d[2]"), "only hidden objects count"),
        (
            meeting(at_0="v * d[2] + (1 - v) * d[3]", at_1="v * d[0] + (1 - v) * d[1]"),
            "the second and third cell",
        ),
        (meeting(at_0="v * d[1] + d[3]", at_1="v * d[0] + d[2]"), "for v ="),
        (meeting(out="[0, r]"), "has the shape (2,)"),
        (meeting(out="'never'"), "is a str; asked for is one number"),
        (meeting(out="math.nan if r < 0 else r"), "return None, not nan"),
        (meeting(out="100 * r if 0 <= r <= 1 else None"), "r is a share, 0 to 1"),
        (meeting(r="at_0 / (at_0 - at_1)"), "the lines are parallel: None is asked for"),
        (meeting(r=NO_CRASH, out="(r if 0 <= r <= 1 else None) or None"), "meet at r = 0, and 0 and 1 count"),
        (meeting(r=NO_CRASH, out="r if 0 < r < 1 else None"), "meet at r = 0, and 0 and 1 count"),
        (meeting(r=NO_CRASH, out="r if 0 <= r < 1 else None"), "meet at r = 1"),
    ],
}
WRONG += [(n, *wrong) for n, of_n in MORE_WRONG.items() for wrong in of_n]


@pytest.mark.parametrize("n, answer, message", WRONG)
def test_a_wrong_answer_is_accepted_or_not_explained(attempt, n, answer, message):
    [line] = attempt(n, answer).splitlines()
    assert line.startswith(f"✗ exercise {n} (0 of {POINTS[n - 1]} points): ") and message in line, line


@pytest.mark.parametrize(
    "n, prediction, message",
    [
        (9, ["?"] * 5, "predict first"),
        (9, ["ERM", "WRM", "DRM", "FLYP", "the place may mislead us"], "'FLYP' is none of ERM, WRM, DRM"),
        (9, ["ERM", "WRM", "DRM", "?", "?"], "costs nothing; fill in the cell above and run it again"),
        (9, ["ERM", "WRM", "DRM", "ERM", "?"], "say why: `because` has 1 word; write at least four"),
        (9, ["ERM", "WRM", "DRM", "ERM", "because of place"], "has 3 words; write at least four"),
        (10, ["above", "?", "the place may mislead us"], "'?' is none of rises, falls"),
        (10, ["0.8", "falls", "the place may mislead us"], "'0.8' is none of above, below"),
    ],
)
def test_an_exercise_gives_points_without_a_prediction(capsys, n, prediction, message):
    check = getattr(helpers, f"check_{n}")
    check(lambda *of: None, prediction)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"✗ exercise {n} ") and message in line


def test_a_wrong_prediction_costs_points(capsys):
    def best_method(r, v, cells):
        return max(cells, key=lambda name: helpers.law(r, v, cells[name]))

    helpers.check_9(best_method, ["WRM", "ERM", "ERM", "WRM", "I have no idea at all"])
    head, *sites, last = capsys.readouterr().out.splitlines()
    assert last == "✓ exercise 9 (3 of 3 points)"
    assert [line[-13:] for line in sites] == [f"you said {m})" for m in ("WRM", "ERM", "ERM", "WRM")]
    assert "± s.d." in head and "± its s.e." in head, "two kinds of ± are mixed without a word"
    leads = [re.search("; (.+ - .+?) ", line)[1] for line in sites]
    assert leads == ["ERM - DRM", "WRM - DRM", "DRM - ERM", "ERM - DRM"], "not the winner's lead"


def test_a_prediction_in_other_letters_is_rejected():
    said = ["erm", "WRM ", " Drm", "ERM", "four words or more"]
    assert helpers._predicted(said, [("ERM", "WRM", "DRM")] * 4) == ["ERM", "WRM", "DRM", "ERM"]


def test_descriptions_pass_that_leave_drm_as_good_as_erm(attempt, monkeypatch):
    monkeypatch.setattr(helpers, "short_run", lambda texts, lam: helpers.short_erm() - 0.01)
    objects = list(helpers.start().core)
    wrong = f"return dict(zip(toy.core, (toy.core[name] for name in {objects[3:] + objects[:3]})))"
    assert ": 2. DRM has" in (said := attempt(8, wrong)) and "not two points worse" in said
    assert "what would make it sure?" in said


def test_a_prediction_is_given_away_in_the_exercises():
    for gap in make_exercises.answers(read("exercises.ipynb")):
        assert not re.search('= "(?![?]")', gap)


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize(
    "answer, message",
    [
        ("pass", ""),
        ("return no_such_name", "NameError in"),
        ("return 'text'", ""),
        ("return {'a': [1]}", ""),
        ("raise KeyError('lost')", "lost"),
        ("return 0.5 + None", "line"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_a_fault_in_an_answer_crashes_the_check(attempt, n, answer, message):
    lines = attempt(n, answer).splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"✗ exercise {n} (0 of") and message in lines[0], lines
    assert len(lines[0]) < 300 and lines[0].split("points): ")[1]


def test_wrong_answers_are_too_few():
    for n in range(1, 11):
        assert sum(wrong[0] == n for wrong in WRONG) >= 15 and OTHER_RIGHT[n]


@pytest.mark.slow
def test_grading_stops_at_an_answer_that_is_no_python(tmp_path):
    given = make_exercises.answers(read("solutions.ipynb"))
    given[1], given[7] = "return f @ (", None
    nbformat.write(make_exercises.fill(read("exercises.ipynb"), given), tmp_path / "student.ipynb")
    done = subprocess.run(
        [sys.executable, FOLDER / "make_exercises.py", "--grade", tmp_path / "student.ipynb"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        # a screen, on which this backend cannot show a figure, and says so
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "DISPLAY": ":0", "MPLBACKEND": "agg"},
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "non-interactive" not in done.stderr, "a figure waits for a window"
    assert re.search(r"✗ exercise 2 .0 of 3 points.: line \d+ of its cell is not Python", done.stdout)
    assert done.stdout.rstrip().endswith("total: 24 of 30 points")


def test_grading_takes_a_notebook_with_other_exercises(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "student.ipynb")
    with pytest.raises(SystemExit, match="0 answers between their comment lines; allowed: 12"):
        make_exercises.main(["--grade", str(tmp_path / "student.ipynb")])


def test_a_check_that_has_not_been_run_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(helpers, "RESULTS", {})
    monkeypatch.setattr(helpers, "POINTS", {1: 2, 2: 3, 3: 3, 4: 2})
    with helpers.exercise(2):
        pass
    with helpers.exercise(3):
        raise AssertionError("not quite")
    helpers.total()
    assert capsys.readouterr().out.splitlines() == [
        "✓ exercise 2 (3 of 3 points)",
        "✗ exercise 3 (0 of 3 points): not quite",
        "total: 3 of 10 points (not checked yet: 1, 4)",
    ]
