"""What the notebooks share, so that a cell shows one idea: style, tables, recorded trainings, pictures.

The first part is for all notebooks; then each has a section of its own, for its figures and checks.
`python notebooks/helpers.py` draws the pictures of README, docs/hero.png and docs/method.png.
"""

import functools
import json
import math
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import drm_min
from support import report
from support.report import METHODS
from support.targets import TRUST
from toy import world

FOLDER = Path(__file__).with_name("recorded")
DOMAINS = tuple(world.DOMAINS)
SHIFTED = DOMAINS[1:]  # OOD means are taken over these three


# -------------------------------------------------------------------------------- what was recorded, and how

SEEDS = range(5)
LAMBDAS = {  # the path; at its ends one head is trained alone
    "erm": 0.0,
    "drm-0.1": 0.1,
    "drm-0.3": 0.3,
    "drm-1": 1.0,
    "drm-3": 3.0,
    "drm-10": 10.0,
    "wrm": math.inf,
}
TRAININGS = {  # name -> (lambda, core targets, descriptions, form of the loss)
    **{name: (lam, "posterior", "toy", "ce") for name, lam in LAMBDAS.items()},
    **{name: (1.0, name, "toy", "ce") for name in ("onehot", "softmax", "normalized", "label", "oracle")},
    **{name: (1.0, "posterior", "toy." + name, "ce") for name in ("shuffled", "context")},
    **{"wrm-" + name: (math.inf, "posterior", "toy." + name, "ce") for name in ("shuffled", "context")},
    "wrm-softmax": (math.inf, "softmax", "toy", "ce"),
    "wrm-oracle": (math.inf, "oracle", "toy", "ce"),
    "flyp": (0.0, None, "toy", "flyp-released"),
}
BETAS = sorted({i / 10 for i in range(11)} | {round(1 / (1 + lam), 6) for lam in LAMBDAS.values()})
ALPHAS = [i / 10 for i in range(10)]  # WiSE-FT; 1 is the training itself
WITH_ALPHAS = ("erm", "drm-1", "flyp")


def beta_of(training):
    """The weight of the default head that belongs to a training; a single head is not mixed."""
    return round(1 / (1 + TRAININGS[training][0]), 6)


@functools.cache
def load(folder=FOLDER):
    """-> {"about": ..., "core_targets": [...], "rows": [{training, alpha, seed, beta, splits}, ...]}.

    `splits` are validation and the four domains, {split: {metric: value}}; accuracies are 0 to 1, log losses
    in nats.
    """
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@functools.cache
def load_predictions(folder=FOLDER):
    """-> {training: {domain: (q_default (N, C), q_concept (N, C))}}, double precision, of the first seed."""
    result = {}
    for key, logarithms in safetensors.torch.load_file(folder / "predictions.safetensors").items():
        name, domain = key.split("/")
        both = logarithms.double().softmax(-1)  # the error of half precision is normalised away
        result.setdefault(name, {})[domain] = tuple(both)
    return result


def pick(rows, training, beta=None, alpha=1.0):
    """The rows of one training, a seed each; at its own beta, 1 / (1 + lambda), if none is given."""
    beta = beta_of(training) if beta is None else round(beta, 6)
    found = []
    for row in rows:
        same_model = (row["training"], row["alpha"]) == (training, alpha)
        if same_model and abs(row["beta"] - beta) < 1e-6:
            found.append(row)
    if not found:
        there = f"betas: {BETAS}; alphas: {ALPHAS} of {WITH_ALPHAS}"
        raise ValueError(f"{training}, alpha {alpha}, beta {beta}: not recorded; {there}")
    return found


def recorded(training, domain, metric="accuracy", beta=None, alpha=1.0):
    """A recorded metric of a domain, or of validation, a seed each: (5,). Accuracies in %, losses in nats."""
    values = [row["splits"][domain][metric] for row in pick(load()["rows"], training, beta, alpha)]
    return torch.tensor(values, dtype=torch.double) * (100 if metric.startswith("accuracy") else 1)


def ood_mean(training, metric="accuracy", beta=None, alpha=1.0):
    """The mean over the three shifted domains, a seed each: (5,)."""
    of_domains = [recorded(training, domain, metric, beta, alpha) for domain in SHIFTED]
    return torch.stack(of_domains).mean(0)


def worst_log_loss(training, beta=None, alpha=1.0):
    """The highest log loss of the four domains in nats, a seed each: (5,)."""
    of_domains = [recorded(training, domain, "log_loss", beta, alpha) for domain in DOMAINS]
    return torch.stack(of_domains).amax(0)


def load_run(name, folder=FOLDER):
    """What was kept of one of record.RUNS: a report, as drm_min.run returns it, with fewer metrics."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def load_trust(folder=FOLDER):
    """-> {(dataset, method): {trust: OOD mean of each seed, in %}}, with what the runs know of its ends."""
    curves = {(dataset, method): {} for dataset in ("toy", "toy-fog") for method in ("drm", "wrm")}
    known = {"normalized": 0.0, "posterior": TRUST, "onehot": 1.0}
    for dataset, run in (("toy", "targets"), ("toy-fog", "targets-fog")):
        for row in load_run(run, folder)["results"]:
            method = "drm" if row["method"] == "dual" else row["method"]
            if row["estimator"] in known and (dataset, method) in curves:
                value = 100 * row["summary"]["ood_mean_accuracy"]
                curves[dataset, method].setdefault(known[row["estimator"]], []).append(value)
    for row in json.loads((folder / "trust.json").read_text(encoding="utf-8")):
        value = 100 * row["ood_mean_accuracy"]
        curves[row["dataset"], row["method"]].setdefault(row["trust"], []).append(value)
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}


# ------------------------------------------------------------------------------------- numbers and pictures


def style():
    """The look of all figures. Letters are large enough to be read at half the size."""
    look = {"font.size": 12, "figure.dpi": 100, "figure.constrained_layout.use": True}
    look |= {"axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "legend.frameon": False}
    plt.rcParams.update(look)


def mean_sd(values, digits=1):
    """Mean ± standard deviation over seeds, as text."""
    values = [float(value) for value in values]
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def mean_se(values, digits=1):
    """Mean ± its standard error over seeds, as text with a sign: for differences paired by seed."""
    values = [float(value) for value in values]
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):+.{digits}f} ± {error:.{digits}f}"


def table(heading, *rows):
    """Print rows of texts under a heading, in columns; all but the first are brought to the right."""
    lines = [[str(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        print("   ".join([first.ljust(widths[0]), *cells]).rstrip())


def plain(axes):
    """Axes that hold a picture: no ticks, no grid."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    return axes


def show_images(rows, titles=(), below=(), labels=(), size=1.35):
    """Rows of images (3, H, W), uint8, side by side; titles above, words below each, a label for each row."""
    height = size * (len(rows) + 0.28 * bool(titles) + 0.3 * len(rows) * bool(below))
    figure, panels = plt.subplots(
        len(rows), len(rows[0]), figsize=(size * len(rows[0]), height), squeeze=False
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            plain(panels[i, j]).imshow(image.permute(1, 2, 0), interpolation="nearest")
            if i == 0 and titles:
                panels[i, j].set_title(titles[j], fontsize=11)
            if below:
                panels[i, j].set_xlabel(below[i][j], fontsize=10)
        if labels:
            panels[i, 0].set_ylabel(labels[i], rotation=0, ha="right", va="center")
    plt.show()


def domain_bars(methods, title="", metric="accuracy"):
    """Bars of recorded trainings in the four domains: mean over five seeds, whiskers one standard deviation.

    methods: recorded training -> key of METHODS (its name and its colour).
    """
    figure, axes = plt.subplots(figsize=(8.5, 3.6))
    width = 0.8 / len(methods)
    for k, (training, method) in enumerate(methods.items()):
        values = torch.stack([recorded(training, domain, metric) for domain in DOMAINS])  # (4, 5)
        x = torch.arange(4) + width * (k - (len(methods) - 1) / 2)
        name, colour, _ = METHODS[method]
        axes.bar(x, values.mean(1), 0.9 * width, yerr=values.std(1), color=colour, label=name, capsize=3)
    unit = "accuracy (%)" if metric.startswith("accuracy") else "log loss (nats)"
    axes.set(xticks=range(4), xticklabels=DOMAINS, ylabel=unit, title=title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(methods))
    plt.show()


# ------------------------------------------------------------------------------ the map of who wins and when


def law(r, v, a):
    """The accuracy of a fixed model in the domain (r, v), from its accuracies a (4, ...) in the four cells.

    Derived in notebook 6: r is the probability of the regular place, v the share of visible objects; the
    cells are visible in and out of the regular place, then hidden in and out of it.
    """
    return v * (r * a[0] + (1 - r) * a[1]) + (1 - v) * (r * a[2] + (1 - r) * a[3])


def four_cells(training, **which):
    """The four accuracies of `law`, in %, of a recorded training: (4, 5), a column for each seed."""
    away = [recorded(training, "place misleads", f"accuracy_{g}", **which) for g in ("visible", "hidden")]
    mostly = [recorded(training, "same site", "accuracy_visible", **which)]
    mostly += [recorded(training, "object hidden", "accuracy_hidden", **which)]
    r = 0.825  # of both these domains
    regular = [(x - (1 - r) * y) / r for x, y in zip(mostly, away)]
    return torch.stack([regular[0], away[0], regular[1], away[1]])


def map_of_winners(axes):
    """Draw which of ERM, DRM and WRM is most accurate in each domain (r, v); stars are our four."""
    grid = torch.linspace(0, 1, 201, dtype=torch.double)
    v, r = torch.meshgrid(grid, grid, indexing="ij")
    accuracy = [law(r, v, four_cells(name).mean(1)) for name in ("erm", "drm-1", "wrm")]
    best = torch.stack(accuracy).argmax(0)
    axes.contourf(r, v, best, levels=[-0.5, 0.5, 1.5, 2.5], colors=["#F6C9A5", "#A9CCE6", "#A5DCC8"])
    axes.contour(r, v, accuracy[1] - accuracy[0], levels=[0], colors="black", linewidths=1.5)
    axes.contour(r, v, accuracy[1] - accuracy[2], levels=[0], colors="black", linewidths=1.5, linestyles="--")
    for text, x, y in (("ERM best", 0.84, 0.4), ("DRM best", 0.44, 0.6), ("WRM\nbest", 0.09, 0.4)):
        axes.text(x, y, text, ha="center", va="center", weight="bold")
    for domain, x, y, ha in (
        ("same site", 0.825, 0.8, "center"),
        ("object hidden", 0.825, 0.2, "center"),
        ("place random", 0.125, 0.8, "left"),
        ("place misleads", 0.0, 0.8, "left"),
    ):
        axes.plot(x, y, "k*", ms=12, clip_on=False)
        axes.text(x + 0.02 * (ha == "left"), y + (-0.09 if x == 0 else 0.04), domain, ha=ha, fontsize=10)
    axes.set(xlabel="how often the place is the regular one, r", ylabel="share of visible objects, v")
    axes.set(xlim=(0, 1), ylim=(0, 1), title="The most accurate of the three")
    axes.grid(False)


@functools.cache
def toy_data(seed=0, dataset="toy"):
    """The toy world of a seed, as drm_min draws it: of the seed 0 are the recorded predictions."""
    return drm_min.load_data(drm_min.Config(dataset=dataset), seed)


def answers(training, domain):
    """What a recorded training of the first seed answers to the test images of a domain: (N,) classes."""
    return drm_min.mix(*load_predictions()[training][domain], beta_of(training)).argmax(1)


# ------------------------------------------------------------------------------------ the pictures of README


def repaired_and_spoiled(domain="place misleads"):
    """Numbers of the test images that DRM gets right and ERM wrong, and the other way round (seed 0)."""
    labels = toy_data().tests[domain].labels
    erm, drm = (answers(training, domain) == labels for training in ("erm", "drm-1"))
    return (drm & ~erm).nonzero()[:, 0], (erm & ~drm).nonzero()[:, 0]


def hero():
    """The top picture: what a moved background does to ERM and DRM, and four methods in four domains."""
    data, names = toy_data(), list(toy_data().classes)
    train, test = data.train, data.tests["place misleads"]
    said = {name: answers(name, "place misleads") for name in ("erm", "drm-1")}
    repaired = [i for i in repaired_and_spoiled()[0].tolist() if test.groups["visible"][i]]
    figure = plt.figure(figsize=(12, 4.4))
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    left.suptitle("The background moves, the class does not", weight="bold")
    panels = left.subplots(2, 4)
    for j, name in enumerate(("boat", "mushroom", "fish", "cactus")):
        c = names.index(name)
        seen = int(((train.labels == c) & train.groups["visible"]).nonzero()[0])
        new = next(i for i in repaired if test.labels[i] == c)
        for i, image in enumerate((train.images[seen], test.images[new])):
            plain(panels[i, j]).imshow(image.permute(1, 2, 0), interpolation="nearest")
        panels[0, j].set_title(name)
        erm, drm = (names[int(said[training][new])] for training in ("erm", "drm-1"))
        panels[1, j].set_xlabel(f"ERM: {erm} ✗\nDRM: {drm} ✓", fontsize=11)
    panels[0, 0].set_ylabel("training")
    panels[1, 0].set_ylabel("new site")
    axes = right.subplots()
    right.suptitle("Accuracy (%), five seeds; the worst is printed", weight="bold")
    rows = report.by_name(load_run("rivals")["results"])
    shown = {"erm": "ERM", "wrm": "WRM", "ensemble": "ERM + zero-shot concept head", "drm": "DRM, lambda 1"}
    for k, (method, row) in enumerate(shown.items()):
        values = [[100 * r["domains"][domain]["accuracy"] for r in rows[row]] for domain in DOMAINS]
        means = [statistics.fmean(of_seeds) for of_seeds in values]
        x = [i + 0.2 * (k - 1.5) for i in range(4)]
        spreads = [statistics.stdev(of_seeds) for of_seeds in values]
        label = "two models *" if method == "ensemble" else METHODS[method][0]
        axes.bar(x, means, 0.18, yerr=spreads, color=METHODS[method][1], label=label, capsize=2)
        worst = min(range(4), key=means.__getitem__)
        axes.text(x[worst], means[worst] + 3, f"{means[worst]:.0f}", ha="center", weight="bold")
    axes.set(xticks=range(4), ylim=(0, 112), yticks=range(0, 101, 20))
    axes.set_xticklabels([domain.replace(" ", "\n") for domain in DOMAINS])
    axes.grid(False, axis="x")
    axes.legend(loc="upper center", ncols=4, columnspacing=1, handlelength=1, fontsize=11)
    return figure


def diagram():
    """DRM in one picture: two heads from two kinds of text, two targets, their sum, and the mixture."""
    erm, wrm, drm = METHODS["erm"][1], METHODS["wrm"][1], METHODS["drm"][1]
    figure, axes = plt.subplots(figsize=(11.5, 5.2))
    axes.set(xlim=(-3, 116), ylim=(-1, 52))
    axes.axis("off")

    def box(x, y, text, colour="#555555", width=19, height=7, face="white"):
        look = {"boxstyle": "round,pad=0.3", "edgecolor": colour, "facecolor": face, "linewidth": 1.8}
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(plt.matplotlib.patches.FancyBboxPatch(corner, width, height, **look))
        axes.text(x, y, text, ha="center", va="center", fontsize=12)

    def arrow(start, end, colour="#555555", style="-"):
        look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "linestyle": style}
        axes.annotate("", end, start, arrowprops=look)

    data = toy_data()
    number = int(((data.train.labels == 0) & data.train.groups["visible"]).nonzero()[3])
    inset = axes.inset_axes((3.5, 20.5, 11, 11), transform=axes.transData)
    plain(inset).imshow(data.train.images[number].permute(1, 2, 0), interpolation="nearest")
    axes.text(9, 18, "image x", ha="center", fontsize=12)
    box(9, 44, "names:\n“a photo of a ski.”", erm)
    box(9, 8, "descriptions: “two\nnarrow boards ...”", wrm)
    box(33, 44, "text encoder", "#555555", 16, face="#eeeeee")
    box(33, 26, "image encoder\n(shared)", "#555555", 16, face="#eeeeee")
    box(33, 8, "text encoder\n(the same)", "#555555", 16, face="#eeeeee")
    box(57, 44, "default head", erm, 16)
    box(57, 8, "concept head", wrm, 16)
    box(57, 26, "embedding f(x)", "#555555", 16)
    box(80, 37, "q_default(y | x)", erm, 17)
    box(80, 15, "q_concept(y | x)", wrm, 17)
    box(80, 48, "target: the label", erm, 17, 5)
    box(80, 3, "target: core\ntargets $p_c$", wrm, 17, 7)
    box(104, 44, "ERM (2)", erm, 14, 6)
    box(104, 8, "WRM (3)", wrm, 14, 6)
    box(
        104,
        26,
        "at test time\n$p = \\beta\\, q_{default}$\n$+ (1-\\beta)\\, q_{concept}$ (4)",
        drm,
        19,
        11,
        "#eaf3fa",
    )
    axes.text(104, 36.3, "training: ERM + λ WRM (1)", ha="center", fontsize=12, color=drm, weight="bold")
    for y, colour in ((44, erm), (8, wrm)):
        arrow((19, y), (24.3, y), colour)
        arrow((41.7, y), (48.3, y), colour)
    arrow((15.5, 26), (24.3, 26))
    arrow((41.7, 26), (48.3, 26))
    for y, into, colour in ((44, 38, erm), (8, 14, wrm)):
        arrow((65.7, y), (70.8, into), colour)
        arrow((65.7, 26), (70.8, into - 2 if y > 26 else into + 2), colour)
        arrow((89.2, into - 1 if y > 26 else into + 1), (96.3, y), colour)
        arrow((89.2, 48 if y > 26 else 3), (96.3, y + 1 if y > 26 else y - 1), colour)
        arrow((89.2, into - 3 if y > 26 else into + 3), (93.6, 29 if y > 26 else 23), drm, ":")
    return figure


# ------------------------------------------------------------------------------------------------ notebook 1


# ------------------------------------------------------------------------------------------------ notebook 2


# ------------------------------------------------------------------------------------------------ notebook 3


# ------------------------------------------------------------------------------------------------ notebook 4


# ------------------------------------------------------------------------------------------------ notebook 5


# ------------------------------------------------------------------------------------------------ notebook 6


# ------------------------------------------------------------------------------------------------- exercises


if __name__ == "__main__":
    style()
    (ROOT / "docs").mkdir(exist_ok=True)
    for draw, name in ((hero, "hero"), (diagram, "method")):
        draw().savefig(ROOT / "docs" / f"{name}.png", dpi=100)
