"""What the notebooks share, so that a cell shows one idea: style, tables, recorded trainings, pictures.

The first part is for all notebooks; then each has a section of its own, for its figures and checks.
`python notebooks/helpers.py` draws the pictures of README, docs/hero.png and docs/method.png.
"""

import contextlib
import copy
import functools
import inspect
import io
import json
import math
import numbers
import os
import statistics
import sys
import traceback
import types
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import matplotlib.pyplot as plt
import safetensors.torch
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import drm_min
from support.report import METHODS, by_name, column
from support.targets import TRUST
from support.texts import load_descriptions, prompts_of
from support.weights import load_clip
from support.wording import check
from toy import world
from toy.probe import sensitivity

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
    width = size * len(rows[0]) + 0.09 * max(map(len, labels), default=0)  # labels stand on the left
    figure, panels = plt.subplots(len(rows), len(rows[0]), figsize=(width, height), squeeze=False)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            plain(panels[i, j]).imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
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
        ("same site", 0.825, 0.8, "right"),
        ("object hidden", 0.825, 0.2, "center"),
        ("place random", 0.125, 0.8, "center"),
        ("place misleads", 0.0, 0.8, "left"),
    ):
        axes.plot(x, y, "k*", ms=12, clip_on=False)
        aside = {"left": 0.02, "right": -0.02}.get(ha, 0)
        axes.text(x + aside, y + (-0.09 if x == 0 else 0.035), domain, ha=ha, fontsize=10)
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


@functools.cache
def pictures_of(domain):
    """The 2000 test images of a domain, of the first seed, with what load_data leaves out: their places."""
    stream = 2 + DOMAINS.index(domain)  # as drm_min.toy_data draws them
    return world.draw(2000, domain, torch.Generator().manual_seed(stream))


def objects_of_places(domain):
    """The object that regularly stands at the place of each test image of the first seed: (N,) classes."""
    return torch.tensor([world.CAMERA.index(place) for place in range(world.C)])[pictures_of(domain).places]


@functools.cache
def regular_images():
    """-> [images (M, 3, 32, 32) of each class]: first training images, visible and at the regular place."""
    drawn = world.draw(1000, DOMAINS[0], torch.Generator().manual_seed(0))
    regular = drawn.visible & (drawn.places == torch.tensor(world.CAMERA)[drawn.objects])
    return [drawn.images[regular & (drawn.objects == c)] for c in range(world.C)]


def repaired_and_spoiled(domain="place misleads"):
    """Numbers of the test images that DRM gets right and ERM wrong, and the other way round (seed 0)."""
    labels = toy_data().tests[domain].labels
    erm, drm = (answers(training, domain) == labels for training in ("erm", "drm-1"))
    return (drm & ~erm).nonzero()[:, 0], (erm & ~drm).nonzero()[:, 0]


def hero():
    """The top picture: what a moved background does to ERM and DRM, and four methods in four domains."""
    domain, names = "place misleads", world.OBJECTS
    test, of_place = toy_data().tests[domain], objects_of_places(domain)
    erm, drm = (answers(training, domain) for training in ("erm", "drm-1"))
    misled = test.groups["visible"] & (drm == test.labels) & (erm == of_place)
    figure = plt.figure(figsize=(12, 4.4))
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    left.suptitle("The background moves, the class does not", weight="bold")
    panels = left.subplots(2, 4)
    for j, name in enumerate(("boat", "tent", "umbrella", "cactus")):
        c = names.index(name)
        new = int((misled & (test.labels == c)).nonzero()[0])
        seen = regular_images()[c][0]
        for i, image in enumerate((seen, test.images[new])):
            plain(panels[i, j]).imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        panels[0, j].set_title(name)
        panels[1, j].set_xlabel(f"ERM: {names[erm[new]]} ✗\nDRM: {name} ✓", fontsize=11)
    panels[0, 0].set_ylabel("training")
    panels[1, 0].set_ylabel("new site")
    axes = right.subplots()
    right.suptitle("Accuracy (%), five seeds; the worst is printed", weight="bold")
    rows = by_name(load_run("rivals")["results"])
    shown = {"erm": "ERM", "wrm": "WRM", "ensemble": "ERM + zero-shot concept head", "drm": "DRM, lambda 1"}
    for k, (method, row) in enumerate(shown.items()):
        values = [[100 * r["domains"][domain]["accuracy"] for r in rows[row]] for domain in DOMAINS]
        means = [statistics.fmean(of_seeds) for of_seeds in values]
        x = [i + 0.2 * (k - 1.5) for i in range(4)]
        spreads = [statistics.stdev(of_seeds) for of_seeds in values]
        label = "two models *" if method == "ensemble" else METHODS[method][0]
        axes.bar(x, means, 0.18, yerr=spreads, color=METHODS[method][1], label=label, capsize=2)
        worst = min(range(4), key=means.__getitem__)
        at = x[worst] + (0.03 if method == "drm" else 0)
        axes.text(at, means[worst] + 3, f"{means[worst]:.0f}", ha="center", weight="bold", fontsize=10)
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
    plain(inset).imshow(data.train.images[number].permute(1, 2, 0).numpy(), interpolation="nearest")
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

KINDS = [f"{core}, {place}" for core in ("boards", "hull", "unclear") for place in ("snow", "sea")]


def show_repaired(domain, numbers):
    """Test images, by their numbers, each above two training images at the regular places.

    Below each stand ERM's and DRM's answers. The first training image has the same class, the second the
    class that ERM answers.
    """
    split = toy_data().tests[domain]
    erm, drm = answers("erm", domain)[numbers], answers("drm-1", domain)[numbers]
    labels = split.labels[numbers]

    def trained_on(classes):
        return [regular_images()[c][2] for c in classes]

    names = [[world.OBJECTS[c] for c in classes] for classes in (labels, erm, drm)]
    rows = [split.images[numbers], trained_on(labels), trained_on(erm)]
    below = [[f"ERM: {e}\nDRM: {d}" for _, e, d in zip(*names)], *names[:2]]
    titles = ("test images", "training images, the same class", "training images, ERM's answer")
    figure = plt.figure(figsize=(1.8 * len(numbers), 7.4))
    for part, images, words, title in zip(
        figure.subfigures(3, 1, height_ratios=(1.2, 1, 1)), rows, below, titles
    ):
        part.suptitle(title, fontsize=12, weight="bold")
        for axes, image, word in zip(part.subplots(1, len(numbers)), images, words):
            plain(axes).imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xlabel(word, fontsize=12)
    plt.show()


def show_domains(joint, rhos):
    """How often each kind of image comes with each label, out of 600, in some domains of two places.

    joint: rho -> p_rho(x_c, x_n, y), (3, 2, 2); rhos: rho -> the name of the domain.
    """
    figure, panels = plt.subplots(1, len(rhos), figsize=(10, 3.9), sharey=True)
    for axes, (rho, name) in zip(panels, rhos.items()):
        counts = (600 * joint(rho)).view(6, 2)
        axes.imshow(counts, cmap="Blues", vmin=0, vmax=400, aspect="auto")
        for i in range(6):
            for j in range(2):
                axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center")
        axes.set(title=f"ρ = {rho:g}: {name}", xticks=(0, 1), xticklabels=("ski", "boat"))
        axes.grid(False)
    panels[0].set_yticks(range(6), KINDS)
    panels[0].set_ylabel("what one sees, x")
    figure.supxlabel("label y (number of images out of 600)", fontsize=12)
    plt.show()


def show_tables(predictors):
    """What predictors, tables (3, 2, 2) by method, answer to the six kinds of image."""
    figure, axes = plt.subplots(figsize=(8.5, 3.8))
    for method, q in predictors.items():
        name, colour, marker = METHODS[method]
        axes.plot(q[..., 0].flatten(), range(6), marker, color=colour, markersize=10, label=name)
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set(xlim=(-0.03, 1.03), xlabel="probability of ski, q(ski | x)")
    axes.set(title="ERM follows the place, $p_c$ the shape")
    axes.set_yticks(range(6), KINDS)
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def show_minimax(rivals, tuned, flat):
    """Risk of predictors over rho, straight lines between the risks (N, 2) at -1 and 1; p_c's is flat.

    rivals are thin, and tuned, the best of some domain each, dashed.
    """
    _, colour, _ = METHODS["wrm"]
    figure, axes = plt.subplots(figsize=(8.5, 4.4))
    axes.plot((-1, 1), rivals.T, color="#777777", linewidth=0.8, alpha=0.45)
    axes.plot((-1, 1), tuned.T, "k--", linewidth=1.5)
    axes.plot((-1, 1), (flat, flat), color=colour, linewidth=4)
    axes.plot(0, flat, "o", color="black", markersize=8, zorder=5)
    frame = {"color": "white", "pad": 2}
    text = "at ρ = 0 every line is here or above"
    arrow = {"arrowstyle": "->"}
    axes.annotate(text, (0, flat), (0, 0.08), ha="center", arrowprops=arrow, bbox=frame)
    axes.text(1.04, flat, "$p_c$", color=colour, va="center", weight="bold", fontsize=14)
    axes.set(xlim=(-1, 1), ylim=(0, 2.4), xlabel="domain ρ", ylabel="risk (nats)")
    axes.set(title="No predictor's line stays below $p_c$'s everywhere")
    plt.show()


def show_proxy(proxies, worst, named):
    """R_w against the worst-case risk: many predictors (N,) each; named: method -> (R_w, worst case)."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    axes.plot(proxies, worst, ".", color="#aaaaaa", markersize=3, label="random")
    axes.plot((0, 3), (0, 3), "k-", linewidth=1.2, label="equal")
    for method, (x, y) in named.items():
        name, colour, marker = METHODS[method]
        axes.plot(x, y, marker, color=colour, markersize=11, markeredgecolor="white", label=name)
    axes.set(xlim=(0.4, 1.5), ylim=(0.3, 2.6), xlabel="$R_w$, on source images (nats)")
    axes.set(ylabel="worst-case risk over all ρ (nats)", title="Other values, the same lowest point: $p_c$")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def show_targets(targets):
    """Cross-entropy of one kind of image over q(ski | x), for targets p(ski | x) by method."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    t = torch.linspace(0.005, 0.995, 400, dtype=torch.double)
    for method, goal in targets.items():
        name, colour, marker = METHODS[method]
        axes.plot(t, -goal * t.log() - (1 - goal) * (1 - t).log(), color=colour)
        low = -(torch.xlogy(goal, goal) + torch.xlogy(1 - goal, 1 - goal))
        axes.plot(goal, low, marker, color=colour, markersize=11, label=f"{name}, lowest at {goal:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 2.5), xlabel="q(ski | boards, sea)", ylabel="cross-entropy (nats)")
    axes.set(title="One kind of image, three targets: boards at sea")
    axes.legend(loc="upper center")
    plt.show()


def show_cases(cases):
    """Log losses and accuracies in four panels: (title, {method: (nats, accuracy in %)}) each, row by row."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 5), sharex=True)
    for axes, (title, of_method) in zip(panels.flat, cases):
        for i, (method, (nats, percent)) in enumerate(of_method.items()):
            axes.barh(i, nats, color=METHODS[method][1], height=0.6)
            axes.text(nats + 0.08, i, f"{nats:.2f} ({percent:.0f} %)", va="center")
        names = [METHODS[method][0] for method in of_method]
        axes.set(yticks=range(3), yticklabels=names, ylim=(2.6, -0.6), xlim=(0, 4), title=title)
        axes.grid(False)
    figure.supxlabel("log loss (nats), with accuracy in %; shorter is better", fontsize=12)
    plt.show()


def _risk_line(axes, method, ends, label=False):
    """The risk of a predictor over rho: a straight line between its `ends`, the risks at -1 and 1."""
    name, colour, marker = METHODS[method]
    axes.plot((-1, 1), ends, color=colour, marker=marker, markersize=9, linewidth=2, clip_on=False)
    if label:
        look = {"textcoords": "offset points", "va": "center", "weight": "bold", "annotation_clip": False}
        axes.annotate(name, (1, ends[1]), (11, 0), color=colour, **look)


def show_risks(ends):
    """The risks of predictors in all domains; ends: method -> its risks at rho = -1 and 1 (two_risks.png)."""
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for method, of_method in ends.items():
        _risk_line(axes, method, of_method, label=True)
    axes.axvline(0.9, color="black", linestyle=":", linewidth=1)
    axes.text(0.87, 2.12, "source: ρ = 0.9", ha="right", va="top")
    words = ("place always\nmisleads", "place\nrandom", "place always\nreliable")
    ticks = [f"{rho}\n{text}" for rho, text in zip((-1, 0, 1), words)]
    axes.set_xticks((-1, -0.5, 0, 0.5, 1), (ticks[0], "-0.5", ticks[1], "0.5", ticks[2]))
    axes.set_yticks((0, 0.5, 1, 1.5, 2))
    axes.set(xlim=(-1, 1), ylim=(0, 2.15), xlabel="domain ρ", ylabel="risk: log loss (nats)")
    axes.set(title="Two risks and their compromise, in every domain")
    plt.show()


def print_bands(measured):
    """Print where DRM is the best of three, in % of images with the regular place, by log loss and accuracy.

    measured: % of images with the regular place -> (log loss, accuracy) of ERM, WRM and DRM, in this order.
    """
    for k, (name, sign) in enumerate((("log loss", -1), ("accuracy", 1))):
        won = []
        for share, scores in measured.items():
            erm, wrm, drm = (sign * score[k] for score in scores)
            if drm > max(erm, wrm) + 1e-9:  # a tie is no win
                won.append(share)
        print(f"{name}: DRM is best where {won[0]:.0f} to {won[-1]:.0f} % of the places are regular")


def show_bounds(ends, of_lambda):
    """The two log bounds. ends: risks of "erm" and "wrm" at rho = -1 and 1; of_lambda: lambda -> DRM's."""
    figure, panels = plt.subplots(1, len(of_lambda), figsize=(10.5, 4.6), sharey=True)
    for axes, (lam, drm) in zip(panels, of_lambda.items()):
        for method, of_method in (*ends.items(), ("drm", drm)):
            _risk_line(axes, method, of_method)
        rho = torch.linspace(-1, 1, 201, dtype=torch.double)
        bounds = []
        for method, constant, style in (("wrm", 1 + 1 / lam, "--"), ("erm", 1 + lam, ":")):
            low, high = (float(value) for value in ends[method])
            bounds.append(low + (high - low) * (rho + 1) / 2 + math.log(constant))
            axes.plot(rho, bounds[-1], style, color=METHODS[method][1], linewidth=2)
        lowest = torch.minimum(*bounds)
        axes.fill_between(rho, lowest, 3.6, color="#bbbbbb", alpha=0.4, linewidth=0)
        axes.text(0.95, 3.5, "DRM cannot be here", ha="right", va="top", fontsize=11)
        axes.set(xlim=(-1, 1), ylim=(0, 3.6), xticks=(-1, 0, 1), title=f"λ = {lam:g}", xlabel="domain ρ")
    panels[0].set_ylabel("risk (nats)")
    figure.get_layout_engine().set(wspace=0.06)  # the numbers of neighbours stay apart
    known = ((METHODS[method], "-") for method in ("erm", "wrm", "drm"))
    keys = [plt.Line2D([], [], ls=s, label=name, color=c, marker=m) for (name, c, m), s in known]
    keys.append(plt.Line2D([], [], ls="--", lw=2, label="WRM + log(1 + 1/λ)", color=METHODS["wrm"][1]))
    keys.append(plt.Line2D([], [], ls=":", lw=2, label="ERM + log(1 + λ)", color=METHODS["erm"][1]))
    figure.legend(handles=keys, loc="outside lower center", ncols=5, fontsize=11)
    plt.show()


def show_price(shown, path, frontier=None):
    """The trade-off of lambda. shown: lambda -> (source risk, worst case); path, frontier: (N, 2) of them."""
    figure, axes = plt.subplots(figsize=(8, 4.6))
    axes.plot(path[:, 1], path[:, 0], color=METHODS["drm"][1], linewidth=2)
    if frontier is not None:
        axes.plot(frontier[:, 1], frontier[:, 0], "k--", linewidth=1.5, label="frontier")
        axes.legend(loc="lower left")
    for lam, (source, worst) in shown.items():
        name, colour, marker = METHODS[{0.0: "erm", math.inf: "wrm"}.get(lam, "drm")]
        axes.plot(worst, source, marker, color=colour, markersize=10)
        label = f"λ = {lam:g}" if 0 < lam < math.inf else name
        axes.annotate(label, (worst, source), (9, 6), textcoords="offset points")
    axes.set(xlim=(0.35, 2.25), ylim=(0.12, 0.49), xlabel="worst-case risk over all ρ (nats)")
    axes.set(ylabel="risk in the source (nats)", title="The price of λ: lower left is better")
    plt.show()


# ------------------------------------------------------------------------------------------------ notebook 2


HEADS = {  # head -> its name, the colour of the method that trains it, and a hatch for the colour-blind
    "default": ("default head", METHODS["erm"][1], ""),
    "concept": ("concept head", METHODS["wrm"][1], "//"),
    "places": ("texts of places", "#56B4E9", ""),
    "shuffled": ("shuffled texts", "#777777", ""),
}


def paint(objects, places, seed, visible=True):
    """Objects before places -> images (N, 3, 32, 32), uint8, as in pre-training, with little noise.

    Both are class numbers (N,), or one name each. The same seed gives the same pose, light and noise.
    """
    if isinstance(objects, str):
        objects = torch.tensor([world.OBJECTS.index(objects)])
        places = torch.tensor([world.PLACES.index(places)])
    chance, seen = torch.Generator().manual_seed(seed), torch.full((len(objects),), visible)
    return world.paint(objects, places, seen, chance, noise=0.04, light=0.1)


def write_above(axes, bars, digits, error=None):
    """Write the value of each bar above it, and above its whisker, if it has one: error (K,)."""
    for k, bar in enumerate(bars):
        x, y = bar.get_x() + bar.get_width() / 2, bar.get_height()
        top = y if error is None else y + float(error[k])
        axes.annotate(
            f"{y:.{digits}f}", (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=10
        )


def head_bars(axes, values, labels, digits=None):
    """Bars side by side, a colour a head: values head -> (K,), or (seeds, K) with whiskers of one sd.

    With `digits` each bar has its value written above it.
    """
    width = 0.8 / len(values)
    for k, (head, of_head) in enumerate(values.items()):
        name, colour, hatch = HEADS[head]
        of_head = torch.as_tensor(of_head)
        mean, sd = (of_head.mean(0), of_head.std(0)) if of_head.ndim == 2 else (of_head, None)
        x = torch.arange(len(labels)) + width * (k - (len(values) - 1) / 2)
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": name, "capsize": 3}
        drawn = axes.bar(x, mean, 0.94 * width, yerr=sd, **look)
        if digits is not None:
            write_above(axes, drawn, digits, sd)
    axes.set(xticks=range(len(labels)), xticklabels=labels)
    axes.grid(False, axis="x")


def legend_below(figure, axes):
    """One legend of a figure with several panels, under them."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))


def show_world():
    """A column an object: in nature's place and the camera's, visible and hidden, as the camera sees it."""
    objects, g = torch.arange(world.C), torch.Generator().manual_seed(4)
    rows = []
    for visible in (True, False):
        for regular in (world.NATURE, world.CAMERA):
            seen = torch.full((world.C,), visible)
            rows.append(world.paint(objects, torch.tensor(regular), seen, g, noise=0.08, light=0.25))
    labels = ("nature's place", "camera's place", "nature's, hidden", "camera's, hidden")
    show_images(rows, titles=world.OBJECTS, labels=labels, size=1.05)


def show_softmax(image, cosine, p):
    """An image (3, H, W), its cosines (C,) to the texts of the classes, and its probabilities (C,)."""
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), width_ratios=(0.9, 1.2, 1.2))
    plain(panels[0]).imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    panels[0].set_title("image x")
    for axes, values, name in zip(panels[1:], (cosine, p), ("cosine", "probability")):
        axes.barh(world.OBJECTS, values, color=HEADS["default"][1])
        axes.invert_yaxis()
        axes.set(xlabel=name, xlim=(min(0, 1.25 * float(values.min())), 1.2 * float(values.max())))
        for k, value in enumerate(values.tolist()):
            at = max(value, 0), k
            axes.annotate(f"{value:.2f}", at, (3, 0), textcoords="offset points", va="center", fontsize=10)
    panels[1].set_title("cosines to eight texts")
    panels[2].set_title("softmax of scale × cosine")
    plt.show()


def show_both_heads(images, q_default, q_concept, titles=("object visible", "object hidden")):
    """A row an image (N, 3, H, W): the picture, and what both heads (N, C) say of it; titles (N,)."""
    n = len(images)
    figure, panels = plt.subplots(n, 2, figsize=(10, 2.8 * n), width_ratios=(1, 3.2), squeeze=False)
    for i, (left, right) in enumerate(panels):
        plain(left).imshow(images[i].permute(1, 2, 0).numpy(), interpolation="nearest")
        right.axhline(1 / world.C, color="black", ls=":", lw=1, label=f"1/C = {1 / world.C}")
        head_bars(right, {"default": q_default[i], "concept": q_concept[i]}, world.OBJECTS)
        right.set(ylim=(0, 1), ylabel="probability", title=titles[i])
        right.tick_params(axis="x", labelsize=11)
    legend_below(figure, panels[0, 1])
    plt.show()


@functools.cache
def out_of_place(seed, n=200):
    """Objects before places that are not nature's, each picture with its object and without it.

    -> objects (n,), places (n,), and float images (n, 3, 32, 32) from 0 to 255, visible and hidden.
    """
    g = torch.Generator().manual_seed(seed)
    objects = torch.randint(0, world.C, (n,), generator=g)
    places = (objects + torch.randint(1, world.C, (n,), generator=g)) % world.C
    return objects, places, paint(objects, places, seed).float(), paint(objects, places, seed, False).float()


def show_fading(blends, curves):
    """A picture whose object fades, and the mean probabilities of the object's class and of the place's.

    blends (K,): 0 is hidden, 1 visible; curves: head -> (seeds, K, 2), the object's class and the place's.
    """
    strips, below = plt.figure(figsize=(10, 5.4)).subfigures(2, 1, height_ratios=(1, 2.6))
    shown, hidden = (paint("cactus", "sea", 9, visible)[0].float() for visible in (True, False))
    for axes, a in zip(strips.subplots(1, 6), (0, 0.2, 0.4, 0.6, 0.8, 1)):
        image = torch.lerp(hidden, shown, a).round().to(torch.uint8)
        plain(axes).imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(f"a = {a:g}", fontsize=11)
    panels = below.subplots(1, 2, sharey=True)
    where = {"default": ((0.98, 0.63), (0.02, 0.89)), "concept": ((0.98, 0.74), (0.98, 0.16))}
    for axes, (head, curve) in zip(panels, curves.items()):
        name, colour, _ = HEADS[head]
        (x, y), (x_place, y_place) = where[head]
        axes.axhline(1 / world.C, color="black", ls=":", lw=1)
        for k, look in enumerate(("o-", "x--")):
            mean, sd = curve.mean(0)[:, k], curve.std(0)[:, k]
            axes.errorbar(blends, mean, sd, fmt=look, color="black" if k else colour, capsize=3)
        axes.text(x, y, "the object's class", ha="right", color=colour)
        axes.text(x_place, y_place, "the place's class", ha="left" if head == "default" else "right")
        axes.set(xlabel="a: from hidden (0) to visible (1)", ylim=(0, 1), title=name)
    panels[0].set_ylabel("mean probability")
    plt.show()


class Swap(NamedTuple):
    """n pictures, the same before other places, and other objects in the same pictures, of the same seed."""

    objects: torch.Tensor  # (n,)
    places: torch.Tensor  # (n,)
    new_objects: torch.Tensor  # (n,)
    new_places: torch.Tensor  # (n,)
    images: torch.Tensor  # (3, n, 3, 32, 32) uint8: as before, place swapped, object swapped


@functools.cache
def swap(seed, n=2000):
    """Pictures as of toy.probe.sensitivity, for each seed others -> Swap."""
    g = torch.Generator().manual_seed(2 * seed)
    objects, places, shift = (torch.randint(low, world.C, (n,), generator=g) for low in (0, 0, 1))
    new_objects, new_places = (objects + shift) % world.C, (places + shift) % world.C
    shown = ((objects, places), (objects, new_places), (new_objects, places))
    images = torch.stack([paint(*both, seed=2 * seed + 1) for both in shown])
    return Swap(objects, places, new_objects, new_places, images)


def features_of(model, images):
    """Images (..., 3, 32, 32), any number of them -> unit embeddings (..., D)."""
    parts = [drm_min.image_features(model, part) for part in images.flatten(0, -4).split(500)]
    return torch.cat(parts).unflatten(0, images.shape[:-3])


def show_swaps(model, heads, n=4):
    """The first n pictures in nature's place, both swaps, and below them the cosine of the first object."""
    drawn = swap(0)
    chosen = (drawn.objects == drawn.places).nonzero()[:n, 0]
    images = drawn.images[:, chosen]  # (3, n, 3, 32, 32)
    f = features_of(model, images)  # (3, n, D)
    own = {head: (f * rows[drawn.objects[chosen]]).sum(2) for head, rows in heads.items()}  # (3, n)
    below = []
    for i in range(3):
        below.append(
            [f"default {own['default'][i, j]:.2f}\nconcept {own['concept'][i, j]:.2f}" for j in range(n)]
        )
    titles = [world.OBJECTS[drawn.objects[j]] for j in chosen]
    labels = ("before", "place swapped", "object swapped")
    show_images(images, titles=titles, below=below, labels=labels, size=1.7)


def show_sensitivity(change, flips):
    """Both heads side by side under both swaps: head -> (seeds, 2), of the cosine, and of answers in %."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.9))
    swaps = ("place swapped", "object swapped")
    head_bars(panels[0], change, swaps, digits=2)
    head_bars(panels[1], flips, swaps, digits=0)
    panels[0].set(ylabel="mean |change of cosine|", title="how far the cosine moves", ylim=(0, 0.52))
    panels[1].set(ylabel="answers that change (%)", title="how many answers change", ylim=(0, 110))
    legend_below(figure, panels[0])
    plt.show()


def table_of_domains():
    """A table of the four domains: how often the place is the regular one, how many objects are visible."""
    rows = []
    for domain, (rho, visible) in world.DOMAINS.items():
        regular = 0.0 if rho < 0 else rho + (1 - rho) / world.C
        rows.append((domain, f"{regular:.1%}", f"{visible:.0%}"))
    table(("domain", "place is the camera's regular one", "object visible"), *rows)


def zero_shot(head, domain, metric):
    """A recorded metric of a zero-shot head, "default" or "concept", a seed each: (5,); see `recorded`."""
    return recorded("zero-shot", domain, metric, beta=float(head == "default"), alpha=0.0)


def show_zero_shot():
    """The accuracies of both zero-shot heads in the four domains, visible and hidden objects apart."""
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.2))
    for axes, group in zip(panels, ("visible", "hidden")):
        values = {}
        for head in ("default", "concept"):
            columns = [zero_shot(head, domain, f"accuracy_{group}") for domain in DOMAINS]
            values[head] = torch.stack(columns, 1)  # (5, 4)
        axes.axhline(100 / world.C, color="black", ls=":", lw=1, label="chance")
        head_bars(axes, values, [domain.replace(" ", "\n") for domain in DOMAINS], digits=0)
        axes.set(ylabel="accuracy (%)", title=f"object {group}", ylim=(0, 100 if group == "visible" else 25))
    legend_below(figure, panels[0])
    plt.show()


def show_texts(change, right):
    """What heads of four sets of texts look at, and what they know.

    change: head -> (seeds, 2), mean |change of cosine| by a swapped place and object; right: head ->
    (seeds,), in %.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4))
    head_bars(panels[0], change, ("place swapped", "object swapped"), digits=2)
    panels[0].set(ylabel="mean |change of cosine|", title="what each head looks at", ylim=(0, 0.52))
    for k, (head, values) in enumerate(right.items()):
        _, colour, hatch = HEADS[head]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "capsize": 3}
        drawn = panels[1].bar(k, values.mean(), 0.75, yerr=values.std(), **look)
        write_above(panels[1], drawn, 0, [values.std()])
    panels[1].axhline(100 / world.C, color="black", ls=":", lw=1)
    names = [HEADS[head][0].replace(" ", "\n", 1) for head in right]
    panels[1].set(xticks=range(len(right)), xticklabels=names, ylabel="accuracy (%)", ylim=(0, 100))
    panels[1].set(title="what each head knows")
    panels[1].grid(False, axis="x")
    legend_below(figure, panels[0])
    plt.show()


@functools.cache
def same_site(seed, n=2000):
    """The test images of `same site` of a seed, as drm_min.toy_data draws them -> drm_min.Split."""
    drawn = world.draw(n, "same site", torch.Generator().manual_seed(1000 * seed + 2))
    groups = {"visible": drawn.visible, "hidden": ~drawn.visible}
    return drm_min.Split(drawn.images, drawn.objects, drawn.oracle, groups)


def distances(q, split):
    """How far predictions q (N, C) are from the true p_c -> (3,).

    What the true class gets where the object is visible (p_c: 1); what the likeliest class gets where it is
    hidden (p_c: 1/C); and the mean KL(p_c || q) in nats.
    """
    visible, hidden = split.groups["visible"], split.groups["hidden"]
    true_class = q[visible].gather(1, split.labels[visible, None]).mean()
    surest = q[hidden].amax(1).mean()
    p_c = split.oracle.to(q)
    kl = (torch.xlogy(p_c, p_c) - torch.xlogy(p_c, q)).sum(1).mean()
    return torch.stack([true_class, surest, kl])


def show_distances(found):
    """Both heads held against the true p_c: head -> (seeds, 3), as of `distances`."""
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 4))
    for k, (axes, truth) in enumerate(zip(panels, (1, 1 / world.C, 0))):
        axes.axhline(truth, color="black", lw=3, label="the true $p_c$")
        head_bars(axes, {head: values[:, k : k + 1] for head, values in found.items()}, [""], digits=2)
        axes.set_xticks([])
    panels[0].set(title="object visible:\nthe true class gets", ylabel="probability", ylim=(0, 1.1))
    panels[1].set(title="object hidden:\nthe likeliest class gets", ylabel="probability", ylim=(0, 1.1))
    panels[2].set(title="distance from $p_c$:\nKL($p_c$ || q)", ylabel="nats", ylim=(-0.02, 1.35))
    legend_below(figure, panels[0])
    plt.show()


@functools.cache
def faded_swaps(seed, blends, n=200):
    """The swaps of a seed while the object fades -> objects (n,), images (blends, 3, n, 3, 32, 32) uint8."""
    drawn = swap(seed, n)
    shown = (
        (drawn.objects, drawn.places),
        (drawn.objects, drawn.new_places),
        (drawn.new_objects, drawn.places),
    )
    hidden = torch.stack([paint(*both, 2 * seed + 1, visible=False) for both in shown]).float()
    visible = drawn.images.float()
    mixed = [torch.lerp(hidden, visible, a).round().to(torch.uint8) for a in blends]
    return drawn.objects, torch.stack(mixed)


def crossing(blends, curve):
    """Where a swapped object moves the cosine as much as a swapped place: (seeds, K, 2) -> (seeds,), a.

    Of blends (K,), where the object first moves it more and the one before, on the straight line between.
    """
    ahead = curve[:, :, 1] - curve[:, :, 0]  # (seeds, K), below 0 at the first blend
    right = (ahead > 0).int().argmax(1, keepdim=True)  # (seeds, 1)
    low, high = ahead.gather(1, right - 1), ahead.gather(1, right)
    a = torch.tensor(blends)
    return torch.lerp(a[right - 1], a[right], -low / (high - low))[:, 0]


def show_crossing(blends, curves):
    """What moves the cosine while the object fades: head -> (seeds, K, 2), by a swapped place and object."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axes, (head, curve) in zip(panels, curves.items()):
        name, colour, _ = HEADS[head]
        for k, (look, what) in enumerate((("x--", "place swapped"), ("o-", "object swapped"))):
            mean, sd = curve.mean(0)[:, k], curve.std(0)[:, k]
            axes.errorbar(blends, mean, sd, fmt=look, color=colour if k else "black", capsize=3, label=what)
        where = mean_sd(crossing(blends, curve), 2)
        axes.set(title=f"{name}: crossing at a = {where}", ylim=(0, 0.5))
        axes.set(xlabel="a: from hidden (0) to visible (1)")
        axes.legend(loc="upper left")
    panels[0].set_ylabel("mean |change of cosine|")
    plt.show()


# ------------------------------------------------------------------------------------------------ notebook 3

ESTIMATORS = ("softmax", "normalized", "bootstrap", "posterior", "label", "onehot", "oracle")
AIR = {"clear air": ("toy", "#56B4E9"), "fog": ("toy-fog", "#7F7F7F")}  # -> data set, colour
KEY = {"the object in the image": "#0072B2", "the others": "#BBBBBB"}


class ConceptView(NamedTuple):
    """Images of the toy world, and all that an estimator of p_c may know of them."""

    images: torch.Tensor  # (N, 3, 32, 32) uint8
    labels: torch.Tensor  # (N,)
    visible: torch.Tensor  # (N,) bool
    usual: torch.Tensor  # (N,) the object that the camera usually has in this place
    oracle: torch.Tensor  # (N, C) p(y | x_c)
    features: torch.Tensor  # (N, D) of the zero-shot model, unit length
    head: torch.Tensor  # (C, D) its concept head
    scale: torch.Tensor  # its logit scale

    def targets(self, estimator):
        """What one of ESTIMATORS makes of these images: (N, C), rows that sum to one."""
        known = (self.features, self.labels, self.head, self.scale, self.oracle)
        return drm_min.core_targets(estimator, *known)(torch.arange(len(self.labels)))


@functools.cache
def zero_shot_concept():
    """-> (zero-shot model, its concept head (C, D))."""
    model, tokenizer = load_clip(drm_min.Config().model)
    texts = load_descriptions(ROOT / "descriptions" / "toy.json", {name: name for name in world.OBJECTS})
    with torch.no_grad():
        return model, drm_min.build_head(model, drm_min.tokenize(tokenizer, texts))


@functools.cache
def concept_view(dataset="toy", seed=0, n=6000, domain="same site", stream=0):
    """The first n training images of a seed, as drm_min draws them, seen by the zero-shot model.

    Other streams are of other images: those of 9 are in no training and no test.
    """
    model, head = zero_shot_concept()
    generator = torch.Generator().manual_seed(1000 * seed + stream)
    p = world.draw(n, domain, generator, camera=dataset)
    features = drm_min.encode_images(model, drm_min.Split(p.images, p.objects))
    usual = torch.tensor(world.CAMERA).argsort()[p.places]
    scale = drm_min.logit_scale(model).detach()
    return ConceptView(p.images, p.objects, p.visible, usual, p.oracle, features, head, scale)


def three_images(view):
    """Numbers (3,) of images in the forest, where the camera usually has skis: a ski read rightly, another
    object that is misread, a hidden ski. The first of each kind."""
    forest, usual = view.usual == 0, view.labels == 0
    right = view.targets("softmax").argmax(1) == view.labels
    umbrella = view.labels == world.OBJECTS.index("umbrella")
    kinds = view.visible & usual & right, view.visible & umbrella & ~right, ~view.visible & usual & ~right
    return torch.stack([(kind & forest).nonzero()[k, 0] for kind, k in zip(kinds, (2, 0, 0))])


def colours_of(view, number):
    """A colour for each class: of the object in an image, and of the others."""
    own, other = KEY.values()
    return [own if c == view.labels[number] else other for c in range(len(world.OBJECTS))]


def target_bars(view, numbers, targets, rows):
    """Images in rows, beside each a panel of bars for each of some targets: name -> (N, C)."""
    shape = (len(numbers), 1 + len(targets))
    ratios = [0.62, *[1] * len(targets)]
    figure, panels = plt.subplots(*shape, figsize=(11, 6.6), sharey="col", width_ratios=ratios)
    for i, (number, row) in enumerate(zip(numbers.tolist(), rows)):
        plain(panels[i, 0]).imshow(view.images[number].permute(1, 2, 0).numpy(), interpolation="nearest")
        panels[i, 0].set_xlabel(row, fontsize=12)
        for axes, (name, p) in zip(panels[i, 1:], targets.items()):
            axes.bar(range(8), p[number], color=colours_of(view, number))
            axes.set(ylim=(0, 1.04), yticks=(0, 0.5, 1), xticks=range(8), xticklabels=[])
            axes.grid(axis="x", visible=False)
            if i == 0:
                axes.set_title(name)
            if i == len(numbers) - 1:
                axes.set_xticklabels(world.OBJECTS, rotation=90)
        panels[i, 1].set_ylabel("probability")
    keys = [plt.matplotlib.patches.Patch(color=colour, label=text) for text, colour in KEY.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=3)
    plt.show()


def binned(p, oracle, bins=10):
    """Confidence and rightness of predictions (N, C) by bins of equal width, of 20 images or more -> (2, M).

    Right is what the oracle (N, C) gives the class that the prediction prefers.
    """
    confidence, answer = p.max(1)
    right = oracle.gather(1, answer[:, None])[:, 0]
    which = (confidence * bins).long().clamp(max=bins - 1)
    found = [which == b for b in range(bins) if (which == b).sum() >= 20]
    return torch.tensor([[float(v[some].mean()) for some in found] for v in (confidence, right)])


def fog_and_reliability(views, number):
    """The images (3,) in clear air and in fog, and how far `softmax` may be believed in each."""
    figure, panels = plt.subplot_mosaic(
        [["0 0", "0 1", "0 2", "curve"], ["1 0", "1 1", "1 2", "curve"]],
        figsize=(11, 4.1),
        width_ratios=(1, 1, 1, 2.3),
    )
    curve = panels["curve"]
    curve.plot((0, 1), (0, 1), color="black", lw=1)
    for i, ((air, view), marker) in enumerate(zip(views.items(), "os")):
        for j, image in enumerate(number.tolist()):
            axes = plain(panels[f"{i} {j}"])
            axes.imshow(view.images[image].permute(1, 2, 0).numpy(), interpolation="nearest")
        panels[f"{i} 0"].set_ylabel(air)
        confidence, right = binned(view.targets("softmax"), view.oracle)
        curve.plot(confidence, right, marker=marker, color=AIR[air][1], lw=2, ms=8, label=air)
    curve.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the preferred class", ylabel="how often right")
    curve.set_title("softmax: how sure, and how often right?")
    curve.text(0.24, 0.92, "not sure enough", ha="center")
    curve.text(0.8, 0.1, "too sure", ha="center")
    curve.legend(loc="upper left", bbox_to_anchor=(0, 0.85))
    plt.show()


def misread_lead(view):
    """-> how many visible objects zero-shot reads rightly, in %, and its mean lead on the others.

    The lead is that of the class it prefers over the object's, a difference of cosines.
    """
    affinity = (view.features @ view.head.T)[view.visible]
    of_object = affinity.gather(1, view.labels[view.visible, None])[:, 0]
    lead = affinity.max(1).values - of_object  # 0 where it is right
    return float(100 * (lead == 0).float().mean()), float(lead[lead > 0].mean())


def before_and_after(before, after, pair):
    """Histograms of two classes' affinities over all images, before and after they are brought to one range.

    before, after: (N, C); pair: the names of the classes.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.5))
    for axes, values, edges in zip(panels, (before, after), ((-0.65, 0.8), (-0.02, 1.02))):
        for name, colour, line in zip(pair, ("#0072B2", "#D55E00"), ("-", "--")):
            of_class = values[:, world.OBJECTS.index(name)]
            look = dict(bins=40, range=edges, histtype="step", color=colour, ls=line, lw=2.2, label=name)
            axes.hist(of_class, **look)
            if axes is panels[0]:
                for q in (0.01, 0.99):
                    axes.axvline(of_class.quantile(q), color=colour, ls=line, lw=1)
        axes.set_ylabel("images")
    panels[0].set(title="before: two ranges", xlabel="affinity (cosine)")
    panels[1].set(title="after: one range", xlabel="share of the class's range")
    panels[0].legend()
    plt.show()


def trust_figure(view, numbers, trusts, targets):
    """How the targets of images move with the trust: targets (T, M, C) for T trusts and M images."""
    own, other = KEY.values()
    figure, panels = plt.subplots(1, len(numbers), figsize=(11, 3.8), sharey=True)
    for m, (axes, number) in enumerate(zip(panels, numbers.tolist())):
        label, curves = int(view.labels[number]), targets[:, m]
        others = curves.clone()
        others[:, label] = -1
        second = int(others[0].argmax())
        name, answer = world.OBJECTS[label], world.OBJECTS[second]
        axes.plot(trusts, curves[:, label], color=own, lw=3, label=f"the label ({name})")
        look = dict(color="#D55E00", ls="--", lw=2.5, label=f"zero-shot's answer ({answer})")
        axes.plot(trusts, curves[:, second], **look)
        rest = 1 - curves[:, label] - curves[:, second]
        axes.plot(trusts, rest / 6, color=other, lw=2.5, ls="-.", label="each of the others (mean)")
        truth = float(view.oracle[number, label])
        axes.axhline(truth, color="black", ls=":", lw=2.5, label="truth for the label", clip_on=False)
        axes.axvline(TRUST, 0, 0.6, color="black", lw=1)
        axes.text(TRUST + 0.015, 0.57, "default", fontsize=11)
        axes.set(xlabel="trust t in the label", ylim=(0, 1), xlim=(0, 1))
        inset = plain(axes.inset_axes((0.03, 0.66, 0.24, 0.32)))
        inset.imshow(view.images[number].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=11)
    panels[0].set(ylabel="target", title="visible, misread")
    panels[1].set(title="hidden")
    plt.show()


def seven_maps(view, numbers, targets, titles):
    """A heat map for each image: a row an estimator, a column a class; targets: estimator -> (N, C)."""
    figure, panels = plt.subplots(2, len(numbers), figsize=(11.5, 5.4), height_ratios=(0.7, 1), sharey="row")
    for (above, axes), number, title in zip(panels.T, numbers.tolist(), titles):
        plain(above).imshow(view.images[number].permute(1, 2, 0).numpy(), interpolation="nearest")
        above.set_title(title)
        values = torch.stack([p[number] for p in targets.values()])  # (7, C)
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
        for (i, j), value in zip(((i, j) for i in range(7) for j in range(8)), values.flatten().tolist()):
            colour = "white" if value > 0.6 else "black"
            axes.text(
                j,
                i,
                f"{100 * value:.0f}" if value > 0.005 else "",
                ha="center",
                va="center",
                color=colour,
                fontsize=10.5,
            )
        axes.set_xticks(range(8), world.OBJECTS, rotation=90)
        axes.set_yticks(range(7), targets)
        axes.axhline(5.5, color="black", lw=1.5)
        axes.grid(False)
        axes.get_xticklabels()[int(view.labels[number])].set_weight("bold")
    plt.show()


def rows_of_estimator(estimator, dataset="toy", method="drm"):
    """The recorded rows of a method with an estimator, a seed each. DRM on labels is the method `dual`."""
    if (method, estimator) == ("drm", "onehot"):
        method = "dual"
    results = load_run("targets" if dataset == "toy" else "targets-fog")["results"]
    return [row for row in results if (row["method"], row["estimator"]) == (method, estimator)]


def kl_of(estimator, dataset="toy"):
    """KL(oracle || targets) of the training images in nats, a seed each: (5,). Infinite for `onehot`."""
    found = [row["core_targets"]["kl_from_oracle"] for row in rows_of_estimator(estimator, dataset)]
    return torch.tensor([math.inf if kl is None else kl for kl in found], dtype=torch.double)


def ood_of(dataset, method="drm", estimator=None):
    """OOD mean accuracy in %, a seed each: (5,). The estimator is None for a method that has no targets."""
    found = rows_of_estimator(estimator, dataset, method)
    if method == "zero-shot":
        found = [row for row in found if row["beta"] == 0]  # the concept head alone
    return 100 * torch.tensor([row["summary"]["ood_mean_accuracy"] for row in found], dtype=torch.double)


def kl_bars():
    """How far each estimator's targets are from the truth, in clear air and in fog, five seeds."""
    figure, axes = plt.subplots(figsize=(9.5, 3.7))
    for shift, (air, (dataset, colour)) in zip((-0.2, 0.2), AIR.items()):
        values = torch.stack([kl_of(name, dataset) for name in ESTIMATORS])  # (7, 5)
        height = values.mean(1).clamp(max=1.6)
        x = torch.arange(7) + shift
        axes.bar(x, height, 0.38, yerr=values.std(1).nan_to_num(0), color=colour, label=air, capsize=3)
        for at, value in zip(x.tolist(), values.mean(1).tolist()):
            text = "∞" if math.isinf(value) else f"{value:.2f}"
            axes.text(at, min(value, 1.6) + 0.04, text, ha="center", fontsize=11)
    axes.set(xticks=range(7), xticklabels=ESTIMATORS, ylim=(0, 1.85))
    axes.set(ylabel="KL(oracle ‖ targets) (nats)", title="How far from the truth? Lower is nearer")
    axes.legend(loc="upper left")
    plt.show()


BESIDE = {  # where the names stand in kl_and_accuracy, in points, and how they are aligned
    "clear air": {
        "posterior": (-9, -14, "right"),
        "bootstrap": (-9, 4, "right"),
        "softmax": (-9, 6, "right"),
        "normalized": (9, -13, "left"),
    },
    "fog": {"bootstrap": (-9, -14, "right"), "posterior": (-9, -5, "right"), "normalized": (9, -14, "left")},
}


def kl_and_accuracy():
    """Each estimator's DRM: nearness of its targets to the truth against what the training is worth."""
    figure, panels = plt.subplots(1, 2, figsize=(11.5, 4.2))
    for axes, (air, (dataset, _)), infinity in zip(panels, AIR.items(), (0.8, 1.65)):
        for name in ESTIMATORS:
            x, y = kl_of(name, dataset).clamp(max=infinity), ood_of(dataset, "drm", name)
            _, colour, marker = METHODS["dual" if name == "onehot" else "drm"]
            look = dict(color="black", marker="*", ms=14) if name == "oracle" else dict(color=colour, ms=9)
            axes.errorbar(x.mean(), y.mean(), y.std(), **{"marker": marker, "capsize": 3, **look})
            dx, dy, side = BESIDE[air].get(name, (9, 4, "left"))
            axes.annotate(name, (x.mean(), y.mean()), (dx, dy), textcoords="offset points", ha=side)
        erm = ood_of(dataset, "erm").mean()
        axes.axhline(erm, color=METHODS["erm"][1], ls="--", lw=1.5)
        axes.text(1.25 * infinity, erm + 0.06, "ERM", color=METHODS["erm"][1], ha="right")
        ticks = [t for t in (0, 0.2, 0.4, 0.6, 1.0, 1.4) if t < infinity - 0.15]
        axes.set_xticks([*ticks, infinity], [*map(str, ticks), "∞"])
        axes.set(xlim=(-0.06 * infinity, 1.28 * infinity), title=air)
        axes.set_xlabel("KL(oracle ‖ targets) (nats)")
    panels[0].set_ylabel("OOD mean of DRM (%)")
    figure.suptitle("Left: nearer to the truth. Up: the better model")
    plt.show()


def leads_of_posterior():
    """Print by how much DRM with `posterior` leads other estimators and ERM, in points of OOD mean."""
    rows = []
    for name in ESTIMATORS + ("ERM",):
        of = ("erm",) if name == "ERM" else ("drm", name)
        leads = [ood_of(dataset, "drm", "posterior") - ood_of(dataset, *of) for dataset, _ in AIR.values()]
        if name != "posterior":
            rows.append((name, *(mean_se(lead, 2) for lead in leads)))
    table(("posterior leads", *AIR), *rows)


def concept_heads():
    """Concept heads after DRM: hidden objects in training's domain, visible ones where the place misleads."""
    trainings = {name: name for name in ESTIMATORS if name != "bootstrap"}  # it has no record of single heads
    trainings = {"zero-shot": "zero-shot"} | trainings | {"posterior": "drm-1"}
    colours = ["#777777", *[METHODS["wrm"][1]] * 6]
    figure, panels = plt.subplots(1, 2, figsize=(11.5, 4), sharey=True)
    asked = ("same site", "hidden"), ("place misleads", "visible")
    for axes, (domain, group) in zip(panels, asked):
        found = []
        for training in trainings.values():
            alpha = 0.0 if training == "zero-shot" else 1.0
            found.append(recorded(training, domain, f"accuracy_{group}", beta=0, alpha=alpha))
        values = torch.stack(found)  # (7, 5)
        axes.bar(range(7), values.mean(1), yerr=values.std(1), color=colours, capsize=3)
        for x, (mean, sd) in enumerate(zip(values.mean(1).tolist(), values.std(1).tolist())):
            axes.text(x, max(mean + sd + 2, 15), f"{mean:.0f}", ha="center")
        axes.axhline(100 / 8, color="black", ls="--", lw=1.5, label="chance")
        axes.set_xticks(range(7), trainings, rotation=35, ha="right", rotation_mode="anchor")
        axes.set(ylim=(0, 100), title=f"{group} objects, {domain}")
    panels[0].set_ylabel("accuracy of the concept head (%)")
    panels[0].legend(loc="upper left")
    plt.show()


def wrm_alone():
    """Print what the concept head is worth in the domains: untouched, and trained alone on two targets."""
    trained = {"zero-shot": {"beta": 0, "alpha": 0.0}, "wrm-softmax": {}, "wrm": {}}
    rows = []
    for name, which in trained.items():
        values = *(recorded(name, domain, **which) for domain in DOMAINS), ood_mean(name, **which)
        rows.append((name, *map(mean_sd, values)))
    table(("concept head", *DOMAINS, "OOD mean"), *rows)


def trust_curves():
    """OOD mean of DRM and of WRM alone against the trust, in clear air and in fog, and what needs no WRM.

    The means that both methods have are printed as well.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.3))
    curves = load_trust()
    for axes, (air, (dataset, _)) in zip(panels, AIR.items()):
        for method, title in (("drm", "DRM"), ("wrm", "WRM alone")):
            curve, (_, colour, marker) = curves[dataset, method], METHODS[method]
            v = torch.tensor(list(curve.values()))  # (trusts, seeds)
            look = dict(color=colour, marker=marker, capsize=3, lw=2, ms=8, label=title)
            axes.errorbar(list(curve), v.mean(1), v.std(1), **look)
        for method, line in (("erm", "--"), ("ensemble", "-."), ("zero-shot", ":")):
            title, colour, _ = METHODS[method]
            title = "zero-shot concept head" if method == "zero-shot" else title
            axes.axhline(ood_of(dataset, method).mean(), color=colour, ls=line, lw=2, label=title)
        axes.set(title=air, xlabel="trust t in the label", xticks=(0, 0.2, 0.5, 0.8, 1))
        axes.yaxis.set_major_locator(plt.matplotlib.ticker.MaxNLocator(6, integer=True))
    panels[0].set_ylabel("OOD mean accuracy (%)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    plt.show()
    trusts, rows = (0, TRUST, 0.5, 0.8), []
    for (dataset, method), curve in curves.items():
        air = next(air for air, (of_air, _) in AIR.items() if of_air == dataset)
        rows.append((f"{method.upper()}, {air}", *(mean_sd(curve[t]) for t in trusts)))
    table(("trust t", *trusts), *rows)


def three_rivals():
    """Print three ways to one OOD mean in clear air: WRM alone with much trust, DRM, and two models."""
    trusted = json.loads((FOLDER / "trust.json").read_text(encoding="utf-8"))
    wanted = ("toy", "wrm", 0.8)
    found = {
        "WRM alone, t = 0.8": [r for r in trusted if (r["dataset"], r["method"], r["trust"]) == wanted],
        "DRM, t = 0.2": [row["summary"] for row in rows_of_estimator("posterior")],
        "two models": [row["summary"] for row in rows_of_estimator(None, method="ensemble")],
    }
    rows = []
    for name, of_seeds in found.items():
        mean, worst = ([100 * row[f"ood_{key}_accuracy"] for row in of_seeds] for key in ("mean", "worst"))
        losses = [row["worst_log_loss"] for row in of_seeds]
        rows.append((name, mean_sd(mean), mean_sd(worst), mean_sd(losses, 2)))
    table(("clear air", "OOD mean", "worst domain", "worst log loss"), *rows)


def fit_head(view, targets):
    """The linear head (C, D) and bias (C,) on frozen features, fitted by cross-entropy to targets (N, C).

    It starts at the concept head.
    """
    w, b = (view.scale * view.head).clone().requires_grad_(), torch.zeros(len(view.head), requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(view.features @ w.T + b, targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach(), b.detach()


def frozen_features(estimators, places, n=1000):
    """Heads fitted to targets on frozen zero-shot features, five seeds -> {estimator: accuracies (5,) in %}.

    places: a domain, or (rho, share of visible objects). Accuracies are those of visible objects where the
    place misleads.
    """
    found = {name: [] for name in estimators}
    for seed in SEEDS:
        view = concept_view(seed=seed, n=n, domain=places, stream=0 if places == "same site" else 9)
        test = concept_view(seed=seed, n=1000, domain="place misleads", stream=5)
        for name, accuracies in found.items():
            w, b = fit_head(view, view.targets(name))
            right = (test.features @ w.T + b).argmax(1) == test.labels
            accuracies.append(100 * right[test.visible].double().mean())
    return {name: torch.stack(accuracies) for name, accuracies in found.items()}


def frozen_bars(usual, fair):
    """Bars of what frozen_features gives, for training images of two kinds."""
    figure, axes = plt.subplots(figsize=(8.5, 3.8))
    kinds = (usual, "#D55E00", "place as in training"), (fair, "#56B4E9", "place random")
    for shift, (found, colour, title) in zip((-0.2, 0.2), kinds):
        values = torch.stack([*found.values()])  # (names, 5)
        x = torch.arange(len(values)) + shift
        axes.bar(x, values.mean(1), 0.38, yerr=values.std(1), color=colour, label=title, capsize=3)
        for at, mean, sd in zip(x.tolist(), values.mean(1).tolist(), values.std(1).tolist()):
            axes.text(at, mean + sd + 1.5, f"{mean:.0f}", ha="center", fontsize=11)
    axes.set(xticks=range(len(usual)), xticklabels=usual, ylim=(0, 100))
    axes.set(ylabel="accuracy (%)", title="Heads on frozen features: visible objects, place misleads")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    plt.show()


# ------------------------------------------------------------------------------------------------ notebook 4


def body(function):
    """The source of a function without its docstring, as text."""
    head, _, rest = inspect.getsource(function).partition('"""')
    return head.rstrip() + rest.partition('"""')[2].rstrip()


def number_map(axes, values, form, rows=(), columns=(), **look):
    """A table (n, m) as a map of colours with the number in each field; words beside it and below it."""
    drawn = axes.imshow(values, aspect="auto", **look)
    low, high = drawn.get_clim()
    for i, row in enumerate(values.tolist()):
        for k, value in enumerate(row):
            colour = "white" if (value - low) / (high - low) > 0.6 else "black"
            axes.text(k, i, format(value, form), ha="center", va="center", fontsize=11, color=colour)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(False)


def show_batch(images, names, logits, targets):
    """Images (B, 3, H, W) with their names, beside their logits to the two heads and, below, their targets.

    logits and targets: a pair (B, C) each, of the default and of the concept head.
    """
    layout = {"width_ratios": [1, 5, 5]}
    figure, panels = plt.subplots(2, 3, figsize=(11, 7.6), gridspec_kw=layout)
    stack = images.permute(0, 2, 3, 1).flatten(0, 1)  # one above the other
    titles = ("logits, default head", "logits, concept head"), ("targets: one-hot", "targets: $p_c$")
    middle = [images.shape[2] * (i + 0.5) for i in range(len(names))]
    for row, values, of_row, form, high in (
        (panels[0], logits, titles[0], ".1f", 9),
        (panels[1], targets, titles[1], ".2f", 1),
    ):
        row[0].imshow(stack, interpolation="nearest", aspect="auto")
        row[0].set(xticks=[], yticks=middle, yticklabels=names)
        row[0].tick_params(length=0)
        row[0].grid(False)
        for axes, of_head, title, cmap in zip(row[1:], values, of_row, ("Oranges", "Greens")):
            number_map(axes, of_head, form, (), world.OBJECTS, cmap=cmap, vmin=0, vmax=high)
            axes.set_title(title)
    plt.show()


def term_bars(names, erm, wrm):
    """What each image of a batch adds to the two terms, in nats: erm and wrm (B,)."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    x = torch.arange(len(names))
    for shift, values, method, label in (
        (-0.2, erm, "erm", "ERM: $-\\log q_{default}(y\\,|\\,x)$"),
        (0.2, wrm, "wrm", "WRM: $-\\sum_k p_c\\,\\log q_{concept}$"),
    ):
        drawn = axes.bar(x + shift, values, 0.38, color=METHODS[method][1], label=label)
        axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=11)
    axes.set_xticks(x, names)
    axes.set(ylabel="cross-entropy (nats)", title="What each image adds to the two terms", ylim=(0, 4.6))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def floor_curves(one_hot, hidden_ski, kite):
    """Cross-entropy against the probability of the label, for three pairs (target (C,), label).

    The rest of the probability is shared out as in the target, so the lowest point is the target's entropy.
    """
    figure, axes = plt.subplots(figsize=(8, 3.8))
    q = torch.linspace(0.005, 0.995, 199)
    for (target, c), name, colour, line, at in (
        (one_hot, "one-hot", METHODS["erm"][1], "-", (0.3, 0.2)),
        (hidden_ski, "$p_c$ of the hidden ski", "black", "-.", (0.12, 2.75)),
        (kite, "$p_c$ of the kite", METHODS["wrm"][1], "--", (0.3, 1.58)),
    ):
        t = float(target[c])
        rest = torch.cat([target[:c], target[c + 1 :]])
        entropy = abs(float(torch.special.xlogy(target, target).sum()))
        shares = rest / rest.sum().clamp(min=1e-9)
        of_rest = -float(torch.special.xlogy(rest, shares).sum())
        curve = -t * q.log() - (1 - t) * (1 - q).log() + of_rest
        axes.plot(q, curve, line, color=colour, lw=2)
        axes.plot(t, entropy, "o", color=colour, ms=9, clip_on=False, zorder=3)
        axes.text(*at, f"{name}: floor {entropy:.2f}", color=colour, weight="bold")
    axes.set(xlabel="$q(y\\,|\\,x)$, the probability of the label", ylabel="cross-entropy (nats)")
    axes.set(
        xlim=(0, 1), ylim=(0, 4), title="A soft target has a floor above 0, and a best confidence below 1"
    )
    plt.show()


def show_targets_of(tables):
    """Tables of targets side by side, rows are images: title -> ((B, K), names of the columns)."""
    widths = [len(columns) for _, columns in tables.values()]
    layout = {"width_ratios": widths}
    figure, panels = plt.subplots(1, len(tables), figsize=(11, 3.4), sharey=True, gridspec_kw=layout)
    for axes, (title, (values, columns)) in zip(panels, tables.items()):
        rows = [f"image {i}" for i in range(len(values))]
        number_map(axes, values, ".2f", rows, columns, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title, fontsize=12)
    plt.show()


def unit(*degrees):
    """Angles -> unit vectors (n, 2)."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def show_pulls(images, cases):
    """Where the contrastive loss pulls unit embeddings (B, 2), beside its texts; and print how strongly.

    cases: title -> (texts (K, 2), pulls on the logits (B, K), pulls on the images (B, 2)).
    """
    figure, panels = plt.subplots(1, len(cases), figsize=(11, 4.1), sharey=True)
    orange = METHODS["erm"][1]
    rows = []
    for axes, (title, (texts, at_logits, at_images)) in zip(panels, cases.items()):
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="#BBBBBB"))
        for text in texts.tolist():
            axes.plot([0, text[0]], [0, text[1]], color=orange, lw=1.5)
            axes.plot(*text, "s", color=orange, ms=9)
        for name, *place in ("ski", 0.2, 0.45), ("kite", -0.42, -0.02), ("fish", 0.43, -0.22):
            axes.text(*place, name, color=orange)
        along = at_images - (at_images * images).sum(1, keepdim=True) * images  # what turns the embedding
        for i, (at, pull) in enumerate(zip(images, along)):
            axes.plot(*at.tolist(), "o", color="black", ms=5, zorder=3)
            axes.text(*(1.2 * at).tolist(), str(i), ha="center", va="center", weight="bold")
            if pull.norm() > 0.02:
                end = at + 2 * pull
                look = {"arrowstyle": "-|>", "color": "#0072B2", "lw": 3, "mutation_scale": 20, "shrinkA": 0}
                axes.annotate("", end.tolist(), at.tolist(), arrowprops=look, zorder=4)
        axes.set(xlim=(-1.35, 1.35), ylim=(-1.2, 1.4), aspect="equal", title=title, xlabel="first number")
        largest = at_logits[:2].abs().max(), along[:2].norm(dim=1).max()
        rows.append([title, *(f"{value:.3f}" for value in largest)])
    panels[0].set_ylabel("second number")
    plt.show()
    table(["largest pull on a ski", "at a logit", "along the circle"], *rows)


def loss_curves(losses, alone, floors, reference):
    """The dual loss and its two terms over the steps of a training, in nats, and a table of the terms.

    losses: a (loss, ERM term, WRM term) each step; alone: the same of a training with ERM alone; floors (of
    the WRM term) and reference (the loss): a number each step.
    """
    losses, alone, floors = torch.tensor(losses), torch.tensor(alone), torch.tensor(floors)
    steps = range(1, len(losses) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9))
    left.plot(steps, reference, color=METHODS["drm"][1], lw=2.5, label="drm_min.train")
    left.plot(steps, losses[:, 0], "o", mfc="none", color="black", label="our loop")
    left.set(title="The dual loss: the same, step by step", ylim=(0, None))
    for values, look, colour, label in (
        (losses[:, 1], "s-", METHODS["erm"][1], "ERM term"),
        (losses[:, 2] - floors, "^-", METHODS["wrm"][1], "WRM term - floor"),
        (alone[:, 2] - floors, "^:", "black", "the same, ERM trained alone"),
    ):
        right.plot(steps, values, look, ms=4, color=colour, label=label)
    right.set(title="The WRM term holds the concept head", ylim=(0, 1.9))
    left.legend(loc="lower left")
    right.legend(loc="upper right", fontsize=11)
    for axes in (left, right):
        axes.set(xlabel="step of the training", ylabel="loss of the batch (nats)")
    plt.show()
    rows = []
    for name, k, floor in (("ERM term", 1, 0), ("WRM term - floor", 2, floors)):
        drm, erm = losses[:, k] - floor, alone[:, k] - floor
        rows.append([name, *(f"{value:.2f}" for value in (drm[0], drm[-8:].mean(), erm[-8:].mean()))])
    table(["nats", "first step", "last 8 steps, DRM", "last 8 steps, ERM alone"], *rows)


def probe(split, numbers, size=64):
    """Of some images of a split: the numbers of `size` whose object is visible, and of as many hidden."""
    numbers = torch.tensor(list(numbers))
    return {name: numbers[members[numbers]][:size] for name, members in split.groups.items()}


def watch(training, cosine, probe, kinds, runs=5, steps=(0, 1, 4, 16, 32)):
    """Stop trainings at some steps and measure -> {(targets, group, step): a cosine for each run}.

    training: run -> (model, iterator over its steps); cosine: (model, numbers of images, core targets) ->
    float; probe: group -> numbers of images; kinds: name -> core targets, a function of numbers.
    """
    found = {}
    for run in range(runs):
        model, rest = training(run)
        for step in range(max(steps) + 1):
            for name, targets_of in kinds.items() if step in steps else ():
                for group, members in probe.items():
                    values = found.setdefault((name, group, step), [])
                    known = step == 0 and run > 0  # all runs start from one model
                    values.append(values[0] if known else cosine(model, members, targets_of(members)))
            next(rest, None)
    return found


def cosine_curves(found):
    """The cosine of the two terms' gradients over training: (targets, group, step) -> a cosine each run."""
    looks = {
        "onehot": (METHODS["dual"][1], "D", "--"),
        "oracle": ("black", "*", ":"),
        "posterior": (METHODS["drm"][1], "o", "-"),
    }
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    steps = sorted({step for _, _, step in found})
    for axes, group in zip(panels, ("visible", "hidden")):
        for name, (colour, marker, line) in looks.items():
            values = torch.tensor([found[name, group, step] for step in steps])  # (steps, runs)
            mean, sd = values.mean(1), values.std(1)
            axes.plot(steps, mean, color=colour, marker=marker, ls=line, label=f"{name} targets", ms=8)
            axes.fill_between(steps, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
        axes.axhline(0, color="#555555", lw=1)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(steps, steps)
        axes.set_xlim(-0.2, 38)
        axes.set(xlabel="step of the training", title=f"object {group}", ylim=(-1, 1.05))
    panels[0].set_ylabel("cosine of the gradients")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    plt.show()


def cosine_table(found):
    """Print the cosines of `cosine_curves`, over the runs: at the start, and at the last step."""
    heading = ["targets", "object", "at step 0", "at the end, mean ± sd", "below 0"]
    rows = []
    for name, group in dict.fromkeys((name, group) for name, group, _ in found):
        start = found[name, group, 0][0]
        end = found[name, group, max(step for _, _, step in found)]
        below = f"{sum(value < 0 for value in end)} of {len(end)}"
        rows.append([name, group, f"{start:+.2f}", mean_sd(end, 2), below])
    table(heading, *rows)


def accuracies(*trainings, beta=None):
    """Print recorded accuracies in %, mean ± standard deviation over five seeds."""
    names = {"erm": "ERM", "onehot": "dual one-hot", "drm-1": "DRM"}
    rows = []
    for training in trainings:
        values = [recorded(training, domain, beta=beta) for domain in DOMAINS]
        values.append(ood_mean(training, beta=beta))
        rows.append([names.get(training, f"{training}, beta {beta}"), *map(mean_sd, values)])
    table(["accuracy (%)", *DOMAINS, "OOD mean"], *rows)


def two_mixtures(image, default, concept, probabilities, logits):
    """One image, what its two heads and two mixtures of them say (C,). The most probable class is dark."""
    layout = {"width_ratios": [1.1, 2, 2, 2, 2]}
    figure, panels = plt.subplots(1, 5, figsize=(11, 3.3), gridspec_kw=layout)
    plain(panels[0]).imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    titles = "$q_{default}$", "$q_{concept}$", "probabilities mixed", "logits mixed"
    for axes, title, p in zip(panels[1:], titles, (default, concept, probabilities, logits)):
        best = int(p.argmax())
        colours = ["#333333" if c == best else "#9BBAD3" for c in range(len(p))]
        drawn = axes.barh(range(len(p)), p, color=colours)
        texts = [f"{v:.2f}" if v > 0.08 else "" for v in p.tolist()]
        axes.bar_label(drawn, texts, padding=2, fontsize=10)
        axes.set_yticks(range(len(p)), world.OBJECTS if axes is panels[1] else [""] * len(p))
        axes.set(xlim=(0, 0.88), title=title, xlabel="probability")
        axes.invert_yaxis()
        axes.grid(False)
    plt.show()


def bound_scatter(concept, probabilities, logits):
    """Losses of two mixtures against those of the concept head, and the bound log 2 above it; (N,), nats."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.9), sharex=True, sharey=True)
    for axes, title, values in (
        (panels[0], "probabilities mixed", probabilities),
        (panels[1], "logits mixed", logits),
    ):
        over = values > concept + math.log(2)
        axes.plot(concept[~over], values[~over], ".", color=METHODS["drm"][1], ms=4, alpha=0.6)
        axes.plot(concept[over], values[over], "x", color=METHODS["erm"][1], ms=5)
        axes.plot([0, 8], [math.log(2), 8 + math.log(2)], color="black", lw=1.5)
        axes.text(0.25, 8.2, f"over the line: {int(over.sum())} of {len(over)}", weight="bold")
        axes.set(title=title, xlabel="$-\\log q_{concept}(y\\,|\\,x)$ (nats)", xlim=(0, 6), ylim=(0, 9))
    panels[0].set_ylabel("$-\\log p(y\\,|\\,x)$ (nats)")
    plt.show()


def wise_curves(methods):
    """WiSE-FT as recorded: accuracy over alpha, and what the best alpha gains; training -> key of METHODS.

    Also printed: the alphas at which DRM has a lower mean than every other.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    alphas = [*ALPHAS, 1.0]
    titles = ("OOD mean of three shifted domains", "same site (as in training)")
    curves = {}  # title -> mean accuracies (methods, alphas)
    for training, method in methods.items():
        name, colour, marker = METHODS[method]
        series = (
            [ood_mean(training, alpha=a) for a in alphas],
            [recorded(training, "same site", alpha=a) for a in alphas],
        )
        for axes, values, title in zip(panels, series, titles):
            mean, sd = torch.stack(values).mean(1), torch.stack(values).std(1)
            curves.setdefault(title, []).append(mean)
            axes.plot(alphas, mean, color=colour, marker=marker, label=name)
            axes.fill_between(alphas, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
            axes.set(title=title, xlabel="α (0: zero-shot weights, 1: fine-tuned)", ylabel="accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    plt.show()
    rows = []
    for training, method in methods.items():
        means = [ood_mean(training, alpha=a) for a in alphas]
        best = max(range(len(alphas)), key=lambda k: means[k].mean())
        gain = mean_se(means[best] - means[-1])
        rows.append([METHODS[method][0], f"{alphas[best]:g}", mean_sd(means[best]), mean_sd(means[-1]), gain])
    table(["OOD mean (%)", "best alpha", "there", "at alpha 1", "gain ± s.e."], *rows)
    for title, means in curves.items():
        lowest = torch.stack(means).argmin(0) == list(methods.values()).index("drm")
        print(f"DRM lowest, {title}: alpha", *(f"{a:g}" for a, low in zip(alphas, lowest) if low))


def resting_bars(default, concept, mixed, one):
    """Where predictions (C,) stop that slide down a loss: two heads, their mixture, and one head."""
    figure, axes = plt.subplots(figsize=(8.5, 3.4))
    for j, (name, q, colour) in enumerate(
        (
            ("default head", default, METHODS["erm"][1]),
            ("concept head", concept, METHODS["wrm"][1]),
            ("both, mixed", mixed, METHODS["drm"][1]),
            ("one head, both terms", one, "#777777"),
        )
    ):
        axes.bar(torch.arange(len(q)) + 0.2 * (j - 1.5), q, 0.18, color=colour, label=name)
    axes.set_xticks(range(len(one)), [f"class {c}" for c in range(len(one))])
    axes.set(ylabel="probability at rest", title="Two heads, mixed, end where one head does")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


# ------------------------------------------------------------------------------------------------ notebook 5

FINITE = tuple(LAMBDAS)[:-1]  # the lambdas at which the default head is trained
NAMES_OF_LAMBDAS = ("0\nERM", "0.1", "0.3", "1\nDRM", "3", "10", "∞\nWRM")
OF_DOMAINS = {  # colour, line and marker of a domain (Tol's muted colours, none of them a method's)
    "same site": ("#332288", "-", "o"),
    "object hidden": ("#999933", "--", "s"),
    "place random": ("#777777", "-.", "^"),
    "place misleads": ("#882255", ":", "D"),
}


def colour_of(training):
    """Of a training on the path of lambda: from dark (0) to light (infinity)."""
    return plt.cm.viridis(tuple(LAMBDAS).index(training) / 6.5)


def tradeoff_picture():
    """`same site` against the OOD mean along the path of lambda: five seeds, their mean and deviation."""
    inside = torch.stack([recorded(name, "same site") for name in LAMBDAS])  # (7, 5)
    outside = torch.stack([ood_mean(name) for name in LAMBDAS])
    figure, axes = plt.subplots(figsize=(8.5, 4.6))
    axes.plot(inside, outside, color="#BBBBBB", linewidth=1)
    axes.plot(inside.mean(1), outside.mean(1), color="black", linewidth=2)
    methods = {"erm": "erm", "drm-1": "drm", "wrm": "wrm"}
    for k, (name, lam) in enumerate(LAMBDAS.items()):
        method, colour, marker = METHODS[methods[name]] if name in methods else ("", "black", "o")
        at, inner = (inside[k].mean(), outside[k].mean()), 11 if method else 6
        spread = {"xerr": inside[k].std(), "yerr": outside[k].std(), "elinewidth": 1.5}
        axes.errorbar(*at, **spread, fmt=marker, color=colour, markersize=inner, zorder=3)
        words = f"λ = {lam:g}".replace("inf", "∞") + f"  {method}" * bool(method)
        places = {"drm-3": ((0, 32), "center"), "drm-10": ((-12, 18), "right"), "wrm": ((38, -18), "left")}
        offset, ha = places.get(name, ((48, -5), "left"))
        look = {"textcoords": "offset points", "ha": ha, "weight": "bold" if method else "normal"}
        axes.annotate(words, at, offset, color=colour, **look)
    axes.text(76, 68.5, "grey lines: the five seeds", color="#777777", va="center")
    axes.set(xlim=(75, 96), ylim=(56, 70), title="λ from ERM to WRM: the best OOD mean lies between")
    axes.set(xlabel="accuracy in the same site (%)", ylabel="OOD mean accuracy (%)")
    axes.set_xticks(range(76, 97, 4))
    plt.show()


def draw_curve(axes, x, values, name, colour, line="-", marker="", **look):
    """A curve of values (len(x), 5), a column a seed: their mean, and a band of one standard deviation."""
    mean, sd = values.mean(1), values.std(1)
    axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, mean, linestyle=line, marker=marker, color=colour, label=name, **look)


def lambda_axis(axes, names=tuple(LAMBDAS)):
    """The seven lambdas, or the first of them, at equal distances."""
    axes.set_xticks(range(len(names)), NAMES_OF_LAMBDAS[: len(names)])
    axes.set(xlabel="λ in training")


def over_lambda(metric, summary):
    """A metric of the four domains along the path of lambda, each at beta 1/(1 + lambda).

    summary: a name and its values (7, 5), a row for each lambda, a column a seed: a thick black curve, or
    rings for log losses, whose worst domain changes between two lambdas.
    """
    losses = metric == "log_loss"
    figure, axes = plt.subplots(figsize=(8.5, 4.4))
    label_of, values = summary
    if losses:
        ring = {"markerfacecolor": "none", "markersize": 17, "markeredgewidth": 2}
        axes.plot(range(7), values.mean(1), "o", color="black", **ring)
    else:
        draw_curve(axes, range(7), values, label_of, "black", linewidth=7, alpha=0.25)
    ends = {label_of: values[0].mean()}
    for domain, (colour, line, marker) in OF_DOMAINS.items():
        values = torch.stack([recorded(name, domain, metric) for name in LAMBDAS])
        draw_curve(axes, range(7), values, domain, colour, line, marker)
        ends[domain] = values[0].mean()
    for name, end in ends.items():
        colour = OF_DOMAINS.get(name, ("black",))[0]
        nudge = {"worst of the four": 8, "place misleads": -8}.get(name, 0) if losses else 0
        look = {"textcoords": "offset points", "ha": "right", "va": "center", "color": colour}
        axes.annotate(name, (0, end), (-13, nudge), weight="bold" if colour == "black" else "normal", **look)
    lambda_axis(axes)
    unit = "log loss (nats), lower is better" if losses else "accuracy (%)"
    title = "The worst case is best inside" if losses else "Two domains gain, two lose"
    axes.set(ylabel=unit, title=title, xlim=(-2.1, 6.3))
    plt.show()


def pairs_picture(names, reference):
    """Why pairs. Left: OOD means, a line for each training, over the seeds. Right: differences to `reference`
    with two standard errors, as if the seeds were others, and paired by seed.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), width_ratios=(1, 1.15))
    for name in names:
        values, label = ood_mean(name), f"λ = {LAMBDAS[name]:g}"
        left.plot(SEEDS, values, "o-", color=colour_of(name))
        nudge = {"drm-3": -6, "drm-1": 7}.get(name, 0)
        look = {"textcoords": "offset points", "va": "center", "color": colour_of(name)}
        left.annotate(label, (4, values[-1]), (8, nudge), **look)
    left.set(xlabel="seed", ylabel="OOD mean accuracy (%)", xlim=(-0.3, 5.3), xticks=SEEDS)
    left.set(title="The seeds' lines run side by side")
    own, others = ood_mean(reference), [name for name in names if name != reference]
    for k, name in enumerate(others):
        other = ood_mean(name)
        errors = {"unpaired": ((own.var() + other.var()) / len(own)).sqrt()}
        errors["paired"] = (own - other).std() / math.sqrt(len(own))
        for j, (kind, error) in enumerate(errors.items()):
            at, y = (own - other).mean(), -k - 0.3 * j
            colour = "black" if j else "#999999"
            right.errorbar(at, y, xerr=error, fmt="o", color=colour, capsize=5, linewidth=2)
            words = f"{kind}:\n{at:.2f} ± {error:.2f}"
            right.text(at + error + 0.12, y, words, va="center", color=colour, fontsize=11)
    right.axvline(0, color="black", linewidth=1)
    names = [f"λ {LAMBDAS[reference]:g} minus λ {LAMBDAS[name]:g}" for name in others]
    right.set_yticks([-k - 0.15 for k in range(len(others))], names)
    right.set(ylim=(-len(others) + 0.45, 0.4), xlim=(-0.5, 3.4), xlabel="difference in OOD mean (points)")
    right.set(title="Pairing shrinks the error")
    plt.show()


def over_beta(names=("erm", "drm-0.3", "drm-1", "drm-3", "drm-10")):
    """Accuracies over beta. Left: the OOD mean of each training, a diamond at beta = 1/(1 + lambda). Right:
    the four domains at lambda 1.
    """
    lines = dict(zip(names, ("-", "--", "-", "-.", ":")))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4))
    for name in names:
        values = torch.stack([ood_mean(name, beta=beta).mean() for beta in BETAS])
        look = {"color": colour_of(name), "linewidth": 2.5, "label": f"λ = {LAMBDAS[name]:g}"}
        left.plot(BETAS, values, lines[name], **look)
        look = {"color": colour_of(name), "markeredgecolor": "black", "markersize": 10, "zorder": 4}
        left.plot(beta_of(name), values[BETAS.index(beta_of(name))], "D", **look)
    for domain, (colour, line, _) in OF_DOMAINS.items():
        values = torch.stack([recorded("drm-1", domain, beta=beta) for beta in BETAS])
        draw_curve(right, BETAS, values, domain, colour, line, linewidth=2.5)
        nudge = 8 if domain in ("same site", "place random") else -8
        look = {"textcoords": "offset points", "ha": "right", "color": colour}
        look["va"] = "bottom" if nudge > 0 else "top"
        right.annotate(domain, (1, values[-1].mean()), (0, nudge), **look)
    for axes in (left, right):
        axes.set(xlabel="β (weight of the default head)", ylabel="accuracy (%)")
    left.set(title="OOD mean: best near the middle")
    right.set(title="λ = 1: two domains rise with β, two fall", ylim=(45, 98))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    plt.show()


@functools.cache
def source_targets():
    """Labels (N,) and `posterior` core targets (N, C) of the first seed's `same site` test images."""
    config, data = drm_min.Config(), toy_data()
    zero_shot, tokenizer = load_clip(config.model)
    texts, unseen = prompts_of(config, data.classes), data.tests["same site"]
    with torch.no_grad():
        head = drm_min.build_head(zero_shot, drm_min.tokenize(tokenizer, texts["concept"].values()))
        features, scale = drm_min.encode_images(zero_shot, unseen), drm_min.logit_scale(zero_shot)
    targets = drm_min.core_targets("posterior", features, unseen.labels, head, scale)
    return unseen.labels, targets(torch.arange(len(unseen))).double()


def risk_over_beta(betas, risks):
    """The dual risk over beta above its lowest value, in nats: {training: risks (len(betas),)}."""
    figure, axes = plt.subplots(figsize=(8.5, 3.9))
    for name, risk in risks.items():
        above = torch.tensor(risk) - min(risk)
        lam, colour = LAMBDAS[name], colour_of(name)
        axes.plot(betas, above, color=colour, linewidth=2.5, label=f"λ = {lam:g}")
        axes.plot(beta_of(name), -0.012, "D", color=colour, markeredgecolor="black", markersize=10, zorder=4)
        lowest = betas[int(above.argmin())]
        axes.plot(lowest, 0, "|", color=colour, markersize=20, markeredgewidth=2.5)
    axes.set(ylim=(-0.03, 0.3), xlabel="β (weight of the default head)", ylabel="nats above its minimum")
    axes.set(title="The dual risk on source images is least near β = 1/(1 + λ)")
    axes.legend(loc="upper center")
    plt.show()


def cost_and_gain(training, beta=None, alpha=1.0, domain="OOD mean"):
    """Points that a model loses to ERM in `same site`, and gains in a domain or the OOD mean: (5,) each."""
    cost = recorded("erm", "same site") - recorded(training, "same site", beta=beta, alpha=alpha)
    if domain == "OOD mean":
        return cost, ood_mean(training, beta=beta, alpha=alpha) - ood_mean("erm")
    return cost, recorded(training, domain, beta=beta, alpha=alpha) - recorded("erm", domain)


def paths_picture():
    """Gain against cost, both paired with ERM: the path of lambda, that of beta alone, and WiSE-FT from two
    trainings.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 5))
    alphas = (1.0, *reversed(ALPHAS))
    ways = []  # models (training, beta, alpha), their name, colour, marker, line; k -> text beside a point
    for training, method in (("erm", "erm"), ("drm-1", "drm")):
        name, colour, marker = METHODS[method]
        models = [(training, None, alpha) for alpha in alphas]
        noted = {6: "α 0.4"} if method == "erm" else {4: "α 0.6"}
        ways.append((models, f"{name}, α from 1 down", colour, marker, ":", noted))
    models = [("drm-1", beta, 1.0) for beta in (0.5, 0.4, 0.3, 0.25, 0.2, 0.1)]
    ways.append((models, "λ = 1, β from 0.5 down", "#AA3377", "D", "--", {}))
    models = [(name, None, 1.0) for name in LAMBDAS]
    noted = {k: f"λ {lam:g}" for k, lam in enumerate(LAMBDAS.values()) if 0 < lam < math.inf}
    ways.append((models, "λ from 0 up, β = 1/(1 + λ)", "black", "o", "-", noted))
    for axes, domain in zip(panels, ("OOD mean", "place misleads")):
        for models, label, colour, marker, line, noted in ways:
            both = torch.stack([torch.stack(cost_and_gain(*model, domain)) for model in models])  # (M, 2, 5)
            (x, y), (dx, dy) = both.mean(2).T, both.std(2).T / math.sqrt(5)
            look = {"linestyle": line, "color": colour, "marker": marker, "label": label}
            look["markerfacecolor"] = colour if line == "-" else "white"
            axes.errorbar(x, y, dy, dx, linewidth=2.5 if line == "-" else 1.5, **look)
            for k, words in noted.items():
                offset, ha = ((-8, 1), "right") if x[k] < 1 else ((3, 10), "left")
                offset = (-3, -18) if line == ":" else offset
                ha = "right" if line == ":" else ha
                axes.annotate(words, (x[k], y[k]), offset, textcoords="offset points", ha=ha, color=colour)
        axes.axhline(0, color="black", linewidth=1)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(xlim=(-1.9, 10.6), xlabel="cost: points lost in the same site")
    panels[0].set(ylim=(-6, 5), ylabel="gain over ERM (points)", title="Gain in the OOD mean")
    panels[1].set(ylim=(-2, 14), title="Gain where the place misleads")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    plt.show()


@functools.cache
def rival_rows():
    """The rows of the table of rivals at alpha 1: {(method, beta): its rows, a seed each}."""
    rows = {}
    for row in load_run("rivals")["results"]:
        if row["alpha"] == 1 or row["method"] == "zero-shot":
            rows.setdefault((row["method"], row["beta"]), []).append(row)
    return rows


def rival(method, measure="OOD mean", beta=None):
    """A method of METHODS, as the table of rivals has it, a seed each: (5,).

    measure: `OOD mean` or a domain (accuracies in %), or `worst log loss` (nats). beta only tells the
    heads of the zero-shot model apart.
    """
    [rows] = [rows for (name, at), rows in rival_rows().items() if name == method and beta in (None, at)]
    if measure == "worst log loss":
        values = [row["summary"]["worst_log_loss"] for row in rows]
    elif measure == "OOD mean":
        values = [100 * row["summary"]["ood_mean_accuracy"] for row in rows]
    else:
        values = [100 * row["domains"][measure]["accuracy"] for row in rows]
    return torch.tensor(values, dtype=torch.double)


def ablation_picture(methods):
    """Each method against ERM, paired by seed: OOD mean and worst log loss, with standard errors."""
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
    units = {
        "OOD mean": "lead over ERM in OOD mean (points)",
        "worst log loss": "worst log loss minus ERM's (nats)",
    }
    for axes, (measure, unit) in zip(panels, units.items()):
        for k, method in enumerate(methods):
            _, colour, marker = METHODS[method]
            lead = rival(method, measure) - rival("erm", measure)
            error = lead.std() / math.sqrt(len(lead))
            axes.plot([0, lead.mean()], [-k, -k], color=colour, linewidth=2, alpha=0.5)
            axes.errorbar(lead.mean(), -k, xerr=error, fmt=marker, color=colour, markersize=10, capsize=5)
            digits = 1 if measure == "OOD mean" else 2
            words = f"{lead.mean():+.{digits}f}"
            look = {"textcoords": "offset points", "ha": "center", "zorder": 5}
            look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            axes.annotate(words, (lead.mean(), -k), (0, 10), **look)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(xlabel=unit, ylim=(-len(methods) + 0.4, 0.8))
        axes.margins(x=0.1)
    panels[0].set_yticks([-k for k in range(len(methods))], [METHODS[method][0] for method in methods])
    panels[0].set(title="Accuracy: right is better")
    panels[1].set(title="Worst domain: left is better")
    plt.show()


def choice_picture(price=1.0):
    """Validation accuracy and OOD mean along the path of lambda, with what is within `price` of the best."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8.5, 5.6), sharex=True)
    for axes, unit, values in (
        (top, "validation (%)", [recorded(name, "validation") for name in LAMBDAS]),
        (bottom, "OOD mean (%)", [ood_mean(name) for name in LAMBDAS]),
    ):
        values = torch.stack(values)
        draw_curve(axes, range(7), values, unit, "black", marker="o", linewidth=2.5)
        axes.plot(range(7), values, color="#BBBBBB", linewidth=1)
        axes.set(ylabel=unit)
        if axes is top:
            best = values.mean(1).max()
            axes.axhspan(best - price, best, color="#009E73", alpha=0.2, linewidth=0)
            axes.text(
                6.2, best + 0.7, "green: within one point of the best mean", ha="right", color="#00664A"
            )
    best = int(torch.stack([recorded(name, "validation") for name in LAMBDAS]).mean(1).argmax())
    for k, words in ((best, "best on\nvalidation"), (tuple(LAMBDAS).index("drm-1"), "best\nhere")):
        at = (k, ood_mean(tuple(LAMBDAS)[k]).mean())
        bottom.plot(*at, "o", color="#D55E00", markersize=10, zorder=4)
        bottom.annotate(
            words, at, (0, -14), textcoords="offset points", ha="center", va="top", color="#D55E00"
        )
    top.set(title="What validation sees (above) and what it cannot see (below)", ylim=(75, 94))
    lambda_axis(bottom)
    plt.show()


def validation_of(seed, metric="accuracy"):
    """{lambda: validation accuracy in %, or log loss in nats} of one seed."""
    return {lam: recorded(name, "validation", metric)[seed].item() for name, lam in LAMBDAS.items()}


def ood_of_lambdas(lams):
    """The OOD means of five choices of lambda, one for each seed: (5,)."""
    names = {lam: name for name, lam in LAMBDAS.items()}
    return torch.stack([ood_mean(names[lam])[seed] for seed, lam in enumerate(lams)])


def dials_map():
    """All lambdas and betas as two maps, mean over five seeds; a frame marks beta = 1/(1 + lambda)."""
    betas = [b for b in BETAS if b not in (0.1, 0.8, 0.9)]  # these have a derived value beside them
    inside = [[recorded(name, "same site", beta=b).mean() for b in betas] for name in LAMBDAS]
    outside = [[ood_mean(name, beta=b).mean() for b in betas] for name in LAMBDAS]
    figure, panels = plt.subplots(2, 1, figsize=(9.5, 6.6))
    for axes, name, values in zip(panels, ("Same site", "OOD mean"), map(torch.tensor, (inside, outside))):
        low = values.quantile(0.16)  # the worst sixth is left out of the colours, so that the rest differ
        bright = ((values - low) / (values.max() - low)).clamp(0, 1)
        axes.imshow(bright, cmap="cividis", aspect="auto")
        for i, training in enumerate(LAMBDAS):
            for j, value in enumerate(values[i].tolist()):
                colour = "white" if bright[i, j] < 0.45 else "black"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour)
            corner = betas.index(beta_of(training)) - 0.46, i - 0.45
            axes.add_patch(plt.Rectangle(corner, 0.92, 0.9, fill=False, color="#D55E00", linewidth=2.5))
        axes.set(title=f"{name}: accuracy (%)", xlabel="β (weight of the default head)", ylabel="λ")
        axes.set_xticks(range(len(betas)), [f"{b:.2g}" for b in betas])
        axes.set_yticks(range(7), [f"{lam:g}".replace("inf", "∞") for lam in LAMBDAS.values()])
        axes.grid(False)
    plt.show()


def dials():
    """Two sliders, lambda and beta, and the accuracies in the four domains as bars: a widget."""
    import ipywidgets as widgets
    from matplotlib.figure import Figure

    options = [(f"{lam:g}".replace("inf", "∞"), name) for name, lam in LAMBDAS.items()]
    lam = widgets.SelectionSlider(options=options, value="drm-1", description="λ")
    beta = widgets.SelectionSlider(options=[i / 10 for i in range(11)], value=0.5, description="β")
    picture = widgets.Image(format="png")

    def turn(_=None):
        figure, png = Figure(figsize=(7, 3), dpi=80, layout="constrained"), io.BytesIO()
        axes = figure.subplots()
        values = [recorded(lam.value, domain, beta=beta.value).mean().item() for domain in DOMAINS]
        axes.bar(DOMAINS, values, 0.6, color=[OF_DOMAINS[domain][0] for domain in DOMAINS])
        for k, value in enumerate(values):
            axes.text(k, value + 1, f"{value:.1f}", ha="center")
        mean, worst = (
            ood_mean(lam.value, beta=beta.value).mean(),
            worst_log_loss(lam.value, beta.value).mean(),
        )
        axes.set(ylim=(0, 100), ylabel="accuracy (%)")
        axes.set(title=f"OOD mean {mean:.1f} %, worst log loss {worst:.2f} nats")
        figure.savefig(png, format="png")
        picture.value = png.getvalue()

    for slider in (lam, beta):
        slider.observe(turn, "value")
    turn()
    return widgets.VBox([widgets.HBox([lam, beta]), picture])


def bound_picture():
    """Log loss of ERM, WRM and DRM (lambda 1) in the four domains, and the better of two plus log 2."""
    figure, axes = plt.subplots(figsize=(8.5, 3.9))
    loss = {
        name: torch.stack([recorded(name, domain, "log_loss") for domain in DOMAINS])
        for name in ("erm", "drm-1", "wrm")
    }
    for k, (name, method) in enumerate((("erm", "erm"), ("drm-1", "drm"), ("wrm", "wrm"))):
        label, colour, _ = METHODS[method]
        x, values = torch.arange(4) + 0.26 * (k - 1), loss[name]
        axes.bar(x, values.mean(1), 0.24, yerr=values.std(1), color=colour, label=label, capsize=3)
    bound = torch.minimum(loss["erm"], loss["wrm"]).mean(1) + math.log(2)
    for k, height in enumerate(bound):
        axes.plot([k - 0.42, k + 0.42], [height, height], "k--", label="bound on DRM" if k == 0 else None)
    axes.set(xticks=range(4), xticklabels=DOMAINS, ylabel="log loss (nats)", ylim=(0, 2.1))
    axes.set(title="DRM stays under the better of the two + log 2")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)
    plt.show()


def more_ablations():
    """Print DRM with other targets, texts and single heads: OOD mean, worst log loss, DRM's paired lead."""
    which = {"DRM": ("drm-1", 0.5)}
    which |= {f"targets {name}": (name, 0.5) for name in ("softmax", "normalized", "label", "oracle")}
    which |= {f"texts {name}": (name, 0.5) for name in ("shuffled", "context")}
    which |= {"DRM, default head alone": ("drm-1", 1.0), "DRM, concept head alone": ("drm-1", 0.0)}
    which |= {"ERM": ("erm", 1.0), "ERM, concept head alone": ("erm", 0.0)}
    which |= {"zero-shot, default head": ("zero-shot", 1.0), "zero-shot, concept head": ("zero-shot", 0.0)}
    rows = []
    for words, (name, beta) in which.items():
        alpha = 0.0 if name == "zero-shot" else 1.0
        mean = ood_mean(name, beta=beta, alpha=alpha)
        misled = recorded(name, "place misleads", beta=beta, alpha=alpha)
        lead = "" if words == "DRM" else mean_se(ood_mean("drm-1") - mean)
        worst = mean_sd(worst_log_loss(name, beta, alpha), 2)
        rows.append([words, mean_sd(misled), mean_sd(mean), lead, worst])
    table(["", "place misleads", "OOD mean", "DRM's lead", "worst log loss"], *rows)


# ------------------------------------------------------------------------------------------------ notebook 6


TRIO = ("erm", "drm-1", "wrm")  # recorded trainings, in the order of their regions on the map
CELLS = ("visible,\nregular place", "visible,\nelsewhere", "hidden,\nregular place", "hidden,\nelsewhere")


def look(training):
    """The name, colour and marker of a recorded ERM, DRM or WRM."""
    return METHODS[training.split("-")[0]]


def spoilt_and_repaired(found, each=2):
    """The first spoilt and repaired images of each domain whose object is visible, with counts of all.

    found: domain -> (spoilt, repaired), (N,) bool each. Below an image: the truth, and the answer of the
    model that is wrong.
    """
    figure = plt.figure(figsize=(11, 5.4), layout="none")
    blocks = figure.subfigures(2, len(found))
    kinds = (("spoilt", "drm-1", METHODS["erm"][1]), ("repaired", "erm", METHODS["drm"][1]))
    for j, (domain, of_kinds) in enumerate(found.items()):
        pictures = pictures_of(domain)
        for row, (kind, wrong, colour) in enumerate(kinds):
            block, chosen = blocks[row, j], of_kinds[row]
            panels = block.subplots(1, each)
            block.subplots_adjust(left=0.03, right=0.97, top=0.78, bottom=0.18, wspace=0.08)
            title = f"{domain}:\n{int(chosen.sum())} {kind}"
            block.suptitle(title, fontsize=13, color=colour, weight="bold")
            numbers = (chosen & pictures.visible).nonzero()[:each, 0].tolist()
            for axes in panels:
                plain(axes).set_frame_on(False)
            for axes, i in zip(panels, numbers):
                axes.imshow(pictures.images[i].permute(1, 2, 0).numpy(), interpolation="nearest")
                said = world.OBJECTS[answers(wrong, domain)[i]]
                axes.set_xlabel(f"{world.OBJECTS[pictures.objects[i]]},\nnot {said}", fontsize=11)
    plt.show()


def cell_bars(counts, sizes):
    """Repaired images upwards and spoilt ones downwards, by cell, in % of its images.

    counts (4, 2): spoilt, repaired; sizes (4,): images.
    """
    figure, axes = plt.subplots(figsize=(8.5, 3.8))
    for kind, side, colour in (("spoilt", -1, METHODS["erm"][1]), ("repaired", 1, METHODS["drm"][1])):
        number = counts[:, int(side > 0)]
        share = 100 * number / sizes
        bars = axes.bar(range(4), side * share, color=colour)
        words = [f"{n:.0f} {kind} ({x:.1f} %)" for n, x in zip(number, share)]
        axes.bar_label(bars, words, padding=2, fontsize=11)
    axes.axhline(0, color="black", lw=1)
    axes.set(xticks=range(4), xticklabels=CELLS, ylabel="images of the cell (%)", ylim=(-4.5, 11))
    axes.set_title("DRM repairs what is visible and elsewhere (seed 0)")
    plt.show()


def pull_figure(follows):
    """How often a visible object gets the name of the object that belongs to the place. For each place.

    follows: recorded training -> (N,) bool, of the images of `place misleads`. Below each place stands how
    much more often ERM does it than DRM, paired by image.
    """
    pictures = pictures_of("place misleads")
    erm, drm = (100 * follows[training].double() for training in TRIO[:2])
    belongs = torch.tensor(world.CAMERA).argsort()  # the object that regularly stands in each place
    figure, axes = plt.subplots(figsize=(10, 3.8))
    for shift, (training, of_images) in zip((-0.2, 0, 0.2), follows.items()):
        name, colour, marker = look(training)
        for k in range(world.C):
            some = of_images[pictures.visible & (pictures.places == k)].double()
            y, error = 100 * some.mean(), 100 * some.std() / len(some) ** 0.5
            label = name if k == 0 else None
            axes.errorbar(k + shift, y, error, fmt=marker, ms=9, color=colour, capsize=3, label=label)
    labels = []
    for k, place in enumerate(world.PLACES):
        gap = mean_se((erm - drm)[pictures.visible & (pictures.places == k)])
        labels.append(f"{place}\n({world.OBJECTS[belongs[k]]})\n{gap}")
    axes.set_xticks(range(world.C), labels, fontsize=11)
    axes.set(ylabel="answers that name it\n(% of visible objects)", ylim=(0, None))
    axes.set(xlabel="place (its regular object); below: ERM - DRM, paired by image, points ± s.e.")
    axes.set_title("Every place pulls towards its regular object (seed 0, ± s.e.)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def cells_figure(cells):
    """The accuracies in the four cells. cells: recorded training -> (4, 5), in %, a column for each seed."""
    figure, axes = plt.subplots(figsize=(9, 3.6))
    for shift, (training, a) in zip((-0.27, 0, 0.27), cells.items()):
        name, colour, _ = look(training)
        x = torch.arange(4) + shift
        bars = axes.bar(x, a.mean(1), 0.25, yerr=a.std(1), color=colour, label=name, capsize=3)
        axes.bar_label(bars, [f"{value:.1f}" for value in a.mean(1)], fontsize=10, padding=2)
    axes.set(xticks=range(4), xticklabels=CELLS, ylabel="accuracy (%)", ylim=(0, 115))
    axes.set_title("Four numbers describe a method (five seeds, ± s.d.)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def behind_the_best(cells):
    """Two panels: points behind the best of the three in our four domains, and over the whole map.

    cells: recorded training -> (4, 5), as of four_cells. Prints the numbers of the map.
    """
    measured = torch.stack([torch.stack([recorded(t, d).mean() for d in DOMAINS]) for t in cells])  # (3, 4)
    behind = measured.amax(0) - measured
    figure, axes = plt.subplots(figsize=(9, 3.6))
    for shift, training, values in zip((-0.27, 0, 0.27), cells, behind):
        name, colour, _ = look(training)
        bars = axes.bar(torch.arange(4) + shift, values, 0.25, color=colour, label=name)
        axes.bar_label(bars, [f"{value:.1f}" for value in values], fontsize=10, padding=2)
    axes.set(xticks=range(4), xticklabels=DOMAINS, ylabel="points of accuracy", ylim=(0, 44))
    axes.set_title("How far behind the best of the three? (means of five seeds)")
    axes.legend(loc="upper right")
    plt.show()


def over_the_map(cells):
    """Print on how much of the map each method is best, and how far behind the best it is, in points."""
    grid = torch.linspace(0, 1, 201, dtype=torch.double)
    v, r = torch.meshgrid(grid, grid, indexing="ij")
    accuracy = torch.stack([law(r, v, a.mean(1)) for a in cells.values()])  # (3, 201, 201)
    rows, best = [], accuracy.argmax(0)
    for k, training in enumerate(cells):
        share, behind = (best == k).double().mean(), accuracy.amax(0) - accuracy[k]
        row = f"{share:.0%}", f"{behind.mean():.1f}", f"{behind.max():.1f}"
        rows.append([look(training)[0], *row])
    table(["the whole map", "best on", "points behind the best: mean", "at most"], *rows)


def rivals_table(*rivals):
    """Print OOD mean and worst log loss of rows of README's first table, and DRM's lead, paired by seed."""
    grouped, drm, rows = by_name(load_run("rivals")["results"]), "DRM, lambda 1", []
    means, losses = {}, {}
    for name in (*rivals, drm):
        means[name] = 100 * torch.tensor(column(grouped[name], "ood_mean_accuracy"))
        losses[name] = torch.tensor(column(grouped[name], "worst_log_loss"))
    for name, mean in means.items():
        ahead = mean_se(means[drm] - mean, 2) if name in rivals else ""
        rows.append([name, f"{mean.mean():.1f}", ahead, f"{losses[name].mean():.2f}"])
    table(["five seeds", "OOD mean, %", "DRM ahead (± s.e.)", "worst log loss"], *rows)


def bad_texts_figure(leads):
    """DRM - ERM in OOD mean, a dot for each seed. leads: texts -> (of the mixture, of its default head)."""
    figure, axes = plt.subplots(figsize=(8.5, 3.6))
    drm, erm = METHODS["drm"][1], METHODS["erm"][1]
    for x, of_heads in enumerate(leads.values()):
        looks = ((-0.15, "o", drm, "DRM"), (0.15, "o", "white", "DRM, its default head alone"))
        for values, (shift, marker, face, label) in zip(of_heads, looks):
            spread = x + shift + torch.linspace(-0.06, 0.06, len(values))
            label = label if x == 0 else None
            axes.plot(spread, values, marker, ms=8, color=drm, mfc=face, label=label)
            axes.plot([x + shift - 0.1, x + shift + 0.1], [values.mean()] * 2, color="black", lw=1.5)
    axes.axhline(0, color=erm, lw=2, ls="--")
    axes.text(2.45, 0.25, "ERM", color=erm, ha="right", weight="bold")
    axes.set(xticks=range(len(leads)), xticklabels=leads, xlim=(-0.5, 2.5), ylabel="DRM - ERM (points)")
    axes.set(xlabel="descriptions", title="Bad descriptions are worse than none (OOD mean, five seeds)")
    axes.legend(loc="upper right")
    plt.show()


def bad_texts_table(leads, trained):
    """Print leads, as of bad_texts_figure, and the accuracy of DRM on validation images of the training site.

    trained: texts -> recorded training.
    """
    rows = []
    for texts, (mixture, default_head) in leads.items():
        validation = mean_sd(recorded(trained[texts], "validation"))
        rows.append([texts, mean_se(mixture), mean_se(default_head), validation])
    heading = ["OOD mean, points (± s.e.)", "DRM - ERM", "its default head - ERM"]
    table([*heading, "DRM on validation, % (± s.d.)"], *rows)


def path_of(texts):
    """The description file of the toy world with core, shuffled or context texts."""
    name = "toy" if texts == "core" else f"toy.{texts}"
    return ROOT / "descriptions" / f"{name}.json"


CHECKS = ("", "words of places", "place swapped", "object swapped", "zero-shot right")


def checks_without_labels(path, classes):
    """Of a description file: words of places, and how far a swap of place or object moves a picture's cosine.

    The cosine is that of its features and of its class's texts (toy.probe.sensitivity). Returns texts for
    the second to fourth column of a table with the heading CHECKS.
    """
    words = sum(problem.kind == "context word" for problem in check(path, classes))
    moved = sensitivity(path)
    return [str(words), *(f"{moved[what]:.2f}" for what in ("background", "foreground"))]


def average_answers(panels):
    """What the zero-shot concept head says of the training images of each class. texts -> (8, 8) averages."""
    figure, grid = plt.subplots(1, len(panels), figsize=(11, 4.4), sharey=True)
    for axes, (texts, matrix) in zip(grid, panels.items()):
        drawn = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=0.7)
        axes.scatter(matrix.argmax(1), range(world.C), marker="x", color="#D55E00", s=60, linewidths=2)
        axes.set_xticks(range(world.C), world.OBJECTS, rotation=90)
        axes.set_yticks(range(world.C), world.OBJECTS)
        axes.set(title=texts, xlabel="texts of class")
        axes.grid(False)
    grid[0].set_ylabel("images of class")
    figure.colorbar(drawn, ax=grid, label="average probability", shrink=0.8)
    plt.show()


def reliability(p):
    """Accuracy at each confidence, where the place is reliable and where it misleads.

    p: recorded training -> domain -> probabilities (N, C). Bins of a tenth; those of 30 images or more.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True)
    for axes, domain in zip(panels, ("same site", "place misleads")):
        truth = pictures_of(domain).objects
        axes.plot([0.1, 1], [0.1, 1], color="grey", ls=":")
        for training, of_domains in p.items():
            confidence, said = of_domains[domain].max(1)
            number, points = (10 * confidence).long().clamp(max=9), []
            for some in (number == b for b in range(10)):
                if some.sum() >= 30:
                    right = (said == truth)[some].double()
                    error = (right.mean() * (1 - right.mean()) / len(right)) ** 0.5
                    points.append((confidence[some].mean(), right.mean(), error))
            name, colour, marker = look(training)
            axes.errorbar(*zip(*points), color=colour, marker=marker, ms=8, label=name, capsize=3)
        axes.set(xlabel="confidence", title=domain, xlim=(0.1, 1.02), ylim=(0, 1.05))
    panels[0].set_ylabel("share that is right")
    panels[0].text(0.22, 0.13, "dotted: calibrated", fontsize=11)
    panels[1].legend(loc="lower right")
    figure.suptitle("Are the probabilities to be believed? (seed 0, ± s.e. of a bin)")
    plt.show()


def log_losses(measured):
    """Domain -> metrics: the log loss in `same site`, and the highest of the four domains."""
    values = {domain: metrics["log_loss"] for domain, metrics in measured.items()}
    return values["same site"], max(values.values())


def temperature_figure(measure, p):
    """Log loss in `same site` against the highest of the four domains, for temperatures from 0.4 to 4.

    measure: (probabilities by domain, T) -> metrics by domain; p: recorded training -> such probabilities.
    """
    temperatures = torch.linspace(math.log(0.4), math.log(4), 25).exp().tolist()
    figure, axes = plt.subplots(figsize=(7.5, 4.4))
    for (training, of_domains), at in zip(p.items(), ((16, -4), (-12, -24), (4, -18))):
        name, colour, marker = look(training)
        path = [log_losses(measure(of_domains, t)) for t in temperatures]
        axes.plot(*zip(*path), color=colour, lw=2)
        place = log_losses(measure(of_domains, 1.0))
        axes.plot(*place, marker, color=colour, ms=11)
        axes.annotate(f"{name}, T = 1", place, at, textcoords="offset points", color=colour, weight="bold")
        axes.annotate("", path[-1], path[-2], arrowprops={"color": colour, "arrowstyle": "-|>", "lw": 2})
        end = (4, -14) if training == "erm" else (6, -4)
        axes.annotate("T = 4", path[-1], end, textcoords="offset points", color=colour)
    axes.set(xlabel="log loss in same site (nats)", ylabel="worst log loss\nof the four domains (nats)")
    axes.set(xlim=(0.25, 1.4), ylim=(0.95, 2.4), title="Temperatures 0.4 to 4 (seed 0; lower left is better)")
    plt.show()


def temperature_table(measure, p, pairs):
    """Print what methods lose at some temperatures. pairs: [(recorded training, T), ...], DRM's is last."""
    _, of_drm = log_losses(measure(p[pairs[-1][0]], pairs[-1][1]))
    rows = []
    for training, t in pairs:
        measured = measure(p[training], t)
        same, worst = log_losses(measured)
        right = measured["place misleads"]["accuracy"]
        losses = [f"{loss:.2f}" for loss in (same, worst, worst - of_drm)]
        rows.append([f"{look(training)[0]}, T = {t:.2f}", *losses, f"{right:.1%}"])
    table(["seed 0", "log loss: same site", "worst", "above DRM's", "right in place misleads"], *rows)


def heads_right(found):
    """Print how often each head of DRM, and neither of them, is right in visible spoilt and repaired images.

    found: domain -> (spoilt, repaired), (N,) bool each.
    """
    rows = []
    for row, kind in enumerate(("spoilt", "repaired")):
        right = []
        for domain, of_kinds in found.items():
            pictures = pictures_of(domain)
            chosen = of_kinds[row] & pictures.visible
            heads = torch.stack(load_predictions()["drm-1"][domain])  # (2, N, C)
            right.append((heads.argmax(2) == pictures.objects)[:, chosen])
        right = torch.cat(right, 1)  # (2, images)
        shares = [*right.double().mean(1), 1 - right.any(0).double().mean()]
        rows.append([kind, right.shape[1], *(f"{share:.0%}" for share in shares)])
    table(["visible objects", "images", "default head right", "concept head right", "neither"], *rows)


def heads_apart():
    """Print how often DRM's heads agree in each domain, and which of them is right if they differ."""
    rows = []
    for domain in DOMAINS:
        heads = load_predictions()["drm-1"][domain]
        default, concept = (head.argmax(1) for head in heads)
        differ, truth = default != concept, pictures_of(domain).objects
        row = [domain, f"{1 - differ.double().mean():.0%}", f"{heads[1].amax(1).mean():.2f}"]
        right = [(said == truth)[differ].double().mean() for said in (default, concept)]
        rows.append(row + [f"{share:.0%}" for share in right])
    heading = ["seed 0", "heads agree", "concept head's confidence"]
    table([*heading, "if they differ: default right", "concept right"], *rows)


TWO_MODELS = "ERM + zero-shot concept head"


def clip_means():
    """-> (data set, method) -> the recorded OOD mean, in %, on each of the three CLIPs: (3,)."""
    means = {}
    for row in load_run("clips"):
        means.setdefault((row["dataset"], row["row"]), []).append(100 * row["ood_mean_accuracy"])
    return {key: torch.tensor(values) for key, values in means.items()}


def clips_figure():
    """One scene before both cameras, and DRM's lead over ERM and two models, a dot for each CLIP."""
    means, places = clip_means(), {"clear air": "toy", "fog": "toy-fog"}
    drawn = world.draw(1000, DOMAINS[0], torch.Generator().manual_seed(0))
    image = drawn.images[drawn.visible][:1]
    figure = plt.figure(figsize=(10, 3.8))
    left, right = figure.subfigures(1, 2, width_ratios=[1, 4])
    for axes, (air, dataset) in zip(left.subplots(2, 1), places.items()):
        seen = world.in_fog(image, *world.CAMERAS[dataset])[0]
        plain(axes).imshow(seen.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(air)
    axes, labels = right.subplots(), []
    for air, dataset in reversed(places.items()):
        for rival, method in ((TWO_MODELS, "ensemble"), ("ERM", "erm")):
            _, colour, marker = METHODS[method]
            y = len(labels)
            lead = means[dataset, "DRM, lambda 1"] - means[dataset, rival]
            axes.plot(lead, [y + 0.2, y, y - 0.2], marker, color=colour, ms=11)
            labels.append(f"{air}:\n{'ERM' if rival == 'ERM' else 'two models'}")
    axes.axvline(0, color="black", lw=1)
    axes.set(yticks=range(4), yticklabels=labels, ylim=(-0.5, 3.5))
    axes.set(xlabel="DRM's lead in OOD mean (points; each dot a CLIP)")
    axes.set_title("In fog the lead over ERM is gone, on all three CLIPs")
    plt.show()


def fog_table():
    """Print what the untouched concept head knows in both airs, and DRM's lead in fog, on each CLIP.

    Of CLIP 0 the seeds are recorded one by one, so its leads in fog have standard errors.
    """
    means, rows = clip_means(), []
    for air, dataset in (("clear air", "toy"), ("fog", "toy-fog")):
        knows = means[dataset, "zero-shot, concept head"]
        rows.append([f"zero-shot concept head, {air}, %", *(f"{value:.1f}" for value in knows)])
    of_seeds = {}
    for name, runs in by_name(load_run("targets-fog")["results"]).items():
        of_seeds[name] = 100 * torch.tensor(column(runs, "ood_mean_accuracy"))
    drm = of_seeds["DRM, lambda 1, posterior"]
    for rival in ("ERM", TWO_MODELS):
        others = means["toy-fog", "DRM, lambda 1"] - means["toy-fog", rival]
        first = mean_se(drm - of_seeds[rival])
        rows.append([f"fog, DRM - {rival}", first, *(f"{value:+.1f}" for value in others[1:])])
    truth = mean_se(of_seeds["DRM, lambda 1, oracle"] - of_seeds["ERM"])
    rows.append(["fog, DRM with the true targets - ERM", truth, "", ""])
    table(["OOD mean (± s.e.)", *(f"CLIP {clip}" for clip in range(3))], *rows)


# ------------------------------------------------------------------------------------------------- exercises
# Each check prints one line, with the points or with what is wrong, and never stops the notebook. A mistake
# is named only where the answer gives the very numbers that it gives; else a check says which it expected.

POINTS = {1: 2, 2: 3, 3: 3, 4: 3, 5: 4, 6: 3, 7: 3, 8: 3, 9: 3, 10: 3}
RESULTS = {}  # exercise -> its points, as last checked


@contextlib.contextmanager
def exercise(n):
    """Around a check: one line says what came of it, and nothing is raised."""
    RESULTS[n] = 0
    try:
        yield
    except (Exception, SystemExit) as e:
        print(f"✗ exercise {n} (0 of {POINTS[n]} points): {' '.join(_fault(e).split())}")
    else:
        RESULTS[n] = POINTS[n]
        print(f"✓ exercise {n} ({POINTS[n]} of {POINTS[n]} points)")


def _fault(e):
    """What a student can do about an exception, in one line."""
    if isinstance(e, NotImplementedError):
        return f"{e or 'the gap'} is still empty. Write it between the two comment lines; the hint helps."
    if isinstance(e, AssertionError) and str(e):
        return str(e)
    # cells are no files
    own = [f for f in traceback.extract_tb(e.__traceback__) if not os.path.exists(f.filename)]
    where = ""
    if own and own[-1].name != "<module>":
        where = f" in {own[-1].name}, line {own[-1].lineno} of its cell"
        if own[-1].line:
            where += f" ({own[-1].line})"
    return f"{type(e).__name__}{where}: {e}{getattr(e, 'given', '')}"


def total():
    """Print the points so far, and which checks have not been run."""
    missing = [str(n) for n in POINTS if n not in RESULTS]
    unchecked = f" (not checked yet: {', '.join(missing)})" if missing else ""
    print(f"total: {sum(RESULTS.values())} of {sum(POINTS.values())} points{unchecked}")


def _tensor(value):
    """Numbers, arrays, tensors, and lists of all these, nested -> a tensor, with its gradient."""
    if isinstance(value, (list, tuple)) and value:
        return torch.stack([_tensor(part) for part in value])
    if isinstance(value, numbers.Real):
        return torch.tensor(float(value), dtype=torch.double)
    return torch.as_tensor(value)


def _plain(value):
    """A number in an array or tensor of one -> the number; all else stays what it is."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError):
        return value


def returned(value, *shape, name="the result"):
    """What a student's function returned, once it is a finite tensor of this shape, or an AssertionError."""
    assert value is not None, f"{name} is None" + ". Is there a `return`?" * (name == "the result")
    wanted = f"a tensor of the shape {shape}" if shape else "one number"
    try:
        value = _tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise AssertionError(f"{name} is a {type(value).__name__}; asked for is {wanted}") from None
    if not shape and value.numel() == 1:
        value = value.reshape(())
    found = tuple(value.shape)
    assert found == shape, f"{name} has the shape {found}; asked for is {wanted}"
    assert value.isfinite().all(), f"{name} holds nan or infinity"
    return value


def close(a, b, tolerance=1e-4):
    """Whether all numbers of two tensors, or lists of tensors, agree; from 1 on the tolerance is relative."""
    parts = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
    pairs = [(torch.as_tensor(x).detach().double(), torch.as_tensor(y).detach().double()) for x, y in parts]
    return all(bool(((x - y).abs() <= tolerance * y.abs().clamp(min=1)).all()) for x, y in pairs)


def explain(got, right, mistakes, otherwise, tolerance=1e-4):
    """Nothing where got, a list of tensors, is right. Else an AssertionError that names the mistake.

    mistakes: name -> the list of tensors that it gives; where none gives these, `otherwise` is said.
    """
    if close(got, right, tolerance):
        return
    for name, wrong in mistakes.items():
        assert not close(got, wrong, tolerance), name
    raise AssertionError(otherwise)


def explain_gradient(got, right, inputs):
    """An AssertionError where a scalar has no gradient, or a wrong one; inputs: name -> leaf."""
    without = "avoid detach, item, no_grad and numpy"
    assert got.requires_grad, f"the value is right, but no gradient comes from it; {without}"
    found = torch.autograd.grad(got, list(inputs.values()), allow_unused=True)
    for name, gradient in zip(inputs, found):
        assert gradient is not None, f"the value is right, but no gradient reaches {name}; {without}"
    wanted = torch.autograd.grad(right, list(inputs.values()))
    for name, a, b in zip(inputs, found, wanted):
        size = b.abs().max()
        assert close(a / size, b / size, 1e-3), f"the value is right, but not its gradient for {name}"


@functools.cache
def start():
    """What the exercises start from: the tiny CLIP, not fine-tuned, and 1000 pictures of `same site`.

    core: object -> its texts; features (N, D), labels (N,); default_head, concept_head (C, D); scale.
    """
    model, tokenizer = load_clip("local-dir:toy/clip")
    names = {name: name for name in world.OBJECTS}
    core = dict(zip(names, load_descriptions(ROOT / "descriptions/toy.json", names)))
    default = drm_min.tokenize(tokenizer, [[f"a photo of a {name}."] for name in names])
    prompts = drm_min.Prompts(default, drm_min.tokenize(tokenizer, core.values()))
    split = _drawn(1000, "same site", seed=1)
    with torch.no_grad():
        heads = [drm_min.build_head(model, texts) for texts in prompts]
        scale = drm_min.logit_scale(model)
    found = dict(model=model, tokenizer=tokenizer, core=core, prompts=prompts, split=split, scale=scale)
    found |= dict(features=drm_min.encode_images(model, split), labels=split.labels)
    return types.SimpleNamespace(**found, default_head=heads[0], concept_head=heads[1])


def _drawn(n, domain, seed):
    pictures = world.draw(n, domain, _stream(seed))
    return drm_min.Split(pictures.images, pictures.objects, crop=1.0)


def _stream(seed=0):
    return torch.Generator().manual_seed(seed)


def _copies(*tensors, gradient=False):
    """Copies, so that an answer that changes its arguments does no harm."""
    return [tensor.detach().clone().requires_grad_(gradient) for tensor in tensors]


def check_1(head_of):
    """Exercise 1: head_of(model, tokens, owner) -> head (C, D)."""
    with exercise(1):
        toy, C = start(), world.C
        more = [0, 1, 2, 0, 1, 2, 0, 2]  # how many further texts a class has: 24 in all, shuffled
        texts = [
            own + [f"a photo of a {name}.", f"a drawing of a {name}."][:n]
            for (name, own), n in zip(toy.core.items(), more)
        ]
        tokens, owner = drm_min.tokenize(toy.tokenizer, texts)
        order = torch.randperm(len(owner), generator=_stream())
        tokens, owner = tokens[order], owner[order]
        model = copy.deepcopy(toy.model)  # another one, so that an answer has to use its argument
        with torch.no_grad():
            weight = model.token_embedding.weight
            weight += weight.std() * torch.randn(weight.shape, generator=_stream()) / 2
        got = returned(head_of(model, tokens.clone(), owner.clone()), C, toy.features.shape[1])

        raw = model.encode_text(tokens)  # of any length
        unit = F.normalize(raw, dim=1)
        numbers_of = [(owner == c).nonzero()[:, 0] for c in range(C)]
        mean = torch.stack([unit[own].mean(0) for own in numbers_of])
        right = F.normalize(mean, dim=1)
        first, last = (torch.stack([unit[own[i]] for own in numbers_of]) for i in (0, -1))
        of_raw = torch.stack([raw[own].mean(0) for own in numbers_of])
        lengths, owner_order = got.norm(dim=1), list(dict.fromkeys(owner.tolist()))
        mistakes = {
            "the mean is not brought back to unit length": mean,
            "only the first text of each class is used": first,
            "only the last text of each class is used": last,
            "the embeddings have to be unit vectors before the mean as well": F.normalize(of_raw, dim=1),
            "texts are taken in order, three a class. Use owner": F.normalize(
                unit.view(C, 3, -1).mean(1), dim=1
            ),
            "all rows are the same, the mean of all texts. Use owner": F.normalize(
                unit.mean(0), dim=0
            ).expand(C, -1),
            "the rows are in the order in which classes come; row c is class c": right[owner_order],
            "the texts are those of toy.model; use the argument, model": drm_min.build_head(
                toy.model, drm_min.Texts(tokens, owner)
            ),
        }
        cosines = (F.normalize(got.detach().double(), dim=1) * right.detach()).sum(1)
        worst = int(cosines.argmin())
        otherwise = (
            f"row {worst} has the cosine {cosines[worst]:.3f}, not 1, with the mean of its class's texts"
        )
        if (lengths - 1).abs().max() > 1e-3:
            otherwise = (
                f"the rows are {lengths.min():.2f} to {lengths.max():.2f} long; each must have length 1"
            )
        explain([got], [right], {name: [wrong] for name, wrong in mistakes.items()}, otherwise, 1e-5)
        direction = torch.randn(right.shape, generator=_stream())
        towers = {"the text encoder": model.token_embedding.weight}
        explain_gradient((got * direction).sum(), (right * direction).sum(), towers)


def check_2(dual_risk):
    """Exercise 2: dual_risk(f, default_head, concept_head, scale, labels, p_c, lam) -> R_s + lam R_w."""
    with exercise(2):
        toy, C, lams, ce = start(), world.C, (0.3, 3.0), F.cross_entropy
        heads = toy.default_head, toy.concept_head
        f, default_head, concept_head = _copies(toy.features[:64], *heads, gradient=True)
        s, y, p_c = (
            1.25 * toy.scale,
            toy.labels[:64],
            (3 * torch.randn(64, C, generator=_stream())).softmax(1),
        )
        got = []
        for lam in lams:
            loss = dual_risk(f, default_head, concept_head, *_copies(s, y, p_c), lam)
            got.append(returned(loss))

        a, b = s * f @ default_head.T, s * f @ concept_head.T
        erm, wrm = ce(a, y), ce(b, p_c)
        p, q, kl = a.softmax(1), b.softmax(1), wrm - torch.special.entr(p_c).sum(1).mean()
        half = ((p + q) / 2).log()
        terms = {  # (x, z): the loss x + lambda z
            "this is R_s alone": (erm, 0 * wrm),
            "this is lambda R_w alone": (0 * erm, wrm),
            "the sign is wrong: a loss is minus a log": (-erm, -wrm),
            "the sign of R_w is wrong: R_w is minus a log, and is added": (erm, -wrm),
            "the sign of R_s is wrong: R_s is minus a log": (-erm, wrm),
            "divided by 2; the loss is the plain sum": (erm / 2, wrm / 2),
            "the scale is missing: logits are scale * cosine": (ce(a / s, y), ce(b / s, p_c)),
            "the scale is missing in R_s": (ce(a / s, y), wrm),
            "the scale is missing in R_w": (erm, ce(b / s, p_c)),
            "the scale is that of toy; use the argument, scale": (ce(a / 1.25, y), ce(b / 1.25, p_c)),
            "divided by the scale: logits are scale * cosine": (ce(a / s**2, y), ce(b / s**2, p_c)),
            "divided by the scale in R_s": (ce(a / s**2, y), wrm),
            "divided by the scale in R_w": (erm, ce(b / s**2, p_c)),
            "R_w is a KL divergence, not a cross-entropy": (erm, kl),
            "R_w is a KL divergence, and a mean over the classes too": (erm, kl / C),
            "R_w has its arguments exchanged: p_c weighs log q_concept": (erm, ce(p_c.log(), q)),
            "p_c is the target of both terms; that of R_s is the label": (ce(a, p_c), wrm),
            "the labels are the target of both terms, a second ERM; R_w has p_c": (erm, ce(b, y)),
            "the targets are exchanged: R_s has the labels, R_w has p_c": (ce(a, p_c), ce(b, y)),
            "p_c is made hard; R_w takes it as it is, a distribution": (erm, ce(b, p_c.argmax(1))),
            "the heads are exchanged: labels belong to the default head": (ce(b, y), ce(a, p_c)),
            "the default head is in both terms; R_w has the concept head": (erm, ce(a, p_c)),
            "the concept head is in both terms; R_s has the default head": (ce(b, y), wrm),
            "the loss is taken on a mixture, half and half": (ce(half, y), ce(half, p_c)),
            "R_w is a mean over the classes too; over classes take the sum": (erm, wrm / C),
            "a mean over the classes too; over classes take the sum": (erm / C, wrm / C),
            "summed over the batch; a risk is a mean": (64 * erm, 64 * wrm),
            "R_w is summed over the batch; a risk is a mean": (erm, 64 * wrm),
            "R_s is summed over the batch; a risk is a mean": (64 * erm, wrm),
            "a softmax is taken twice: cross_entropy takes logits": (ce(p, y), ce(q, p_c)),
            "a softmax is taken twice in R_s: cross_entropy takes logits": (ce(p, y), wrm),
            "a softmax is taken twice in R_w: cross_entropy takes logits": (erm, ce(q, p_c)),
            "the log is missing": (-p[range(64), y].mean(), -(p_c * q).sum(1).mean()),
            "the log is missing in R_s: nll_loss takes log-probabilities": (-p[range(64), y].mean(), wrm),
            "the log is missing in R_w": (erm, -(p_c * q).sum(1).mean()),
        }
        mistakes = {name: [x + lam * z for lam in lams] for name, (x, z) in terms.items()}
        weights = {  # the weights of R_s and R_w
            "lambda is forgotten: this is R_s + R_w": lambda lam: (1, 1),
            "1 - lambda stands in place of lambda": lambda lam: (1, 1 - lam),
            "R_s is weighted with 1 - lambda; its weight is 1": lambda lam: (1 - lam, lam),
            "divided by 1 + lambda; the loss is the plain sum": lambda lam: (1 / (1 + lam), lam / (1 + lam)),
            "lambda weighs the wrong term; it stands before R_w": lambda lam: (lam, 1),
            "lambda weighs both terms; it stands before R_w": lambda lam: (lam, lam),
        }
        for name, of in weights.items():
            mistakes[name] = [of(lam)[0] * erm + of(lam)[1] * wrm for lam in lams]
        mixed = [((p + lam * q) / (1 + lam)).log() for lam in lams]
        name = "the loss is taken on the mixture of equation (4); each term has a head of its own"
        mistakes[name] = [ce(m, y) + lam * ce(m, p_c) for m, lam in zip(mixed, lams)]
        mistakes[name + ", R_w its own target"] = [ce(m, y) for m in mixed]
        otherwise = f"for lambda 0.3 it is {got[0]:.4f}, but R_s + 0.3 R_w is {erm:.4f} + 0.3 * {wrm:.4f}"
        right = [erm + lam * wrm for lam in lams]
        otherwise += f" = {right[0]:.4f}; for lambda 3 it is {got[1]:.4f}, but {right[1]:.4f} is right"
        explain(got, right, mistakes, otherwise)
        leaves = {"the image features": f, "the default head": default_head, "the concept head": concept_head}
        explain_gradient(got[1], right[1], leaves)


def check_3(contrastive):
    """Exercise 3: contrastive(logits, targets), both (B, K) -> the mean of the losses of rows and columns."""
    with exercise(3):
        soft = torch.rand(4, 3, generator=_stream(1)) + 0.1
        targets = [torch.eye(3)[[0, 0, 1, 2]], soft, soft / soft.sum(1, keepdim=True)]
        leaves = [(3 * torch.randn(4, 3, generator=_stream(seed))).requires_grad_() for seed in (3, 4, 5)]
        got = [returned(contrastive(L, T.clone())) for L, T in zip(leaves, targets)]

        def losses(of_rows, of_columns, log_softmax=torch.log_softmax, mean=(4, 3)):
            found = []
            for L, T in zip(leaves, targets):
                rows = -(of_rows(T) * log_softmax(L, 1)).sum() / mean[0]
                columns = -(of_columns(T) * log_softmax(L, 0)).sum() / mean[1]
                found.append((rows, columns))
            return found

        def half(pairs, a=0.5, b=0.5):
            return [a * rows + b * columns for rows, columns in pairs]

        def by_row(T):
            return T / T.sum(1, keepdim=True)

        def by_column(T):
            return T / T.sum(0)

        def as_is(T):
            return T

        def whole(T):
            return T / T.sum()

        def twice(L, dim):
            return L.softmax(dim).log_softmax(dim)

        def hard(dim):
            return lambda T: F.one_hot(T.argmax(dim), T.shape[dim]).float().movedim(-1, dim)

        parts, entr = losses(by_row, by_column), torch.special.entr
        entropies = [(entr(by_row(T)).sum() / 4, entr(by_column(T)).sum() / 3) for T in targets]
        mistakes = {
            "only the rows count; add the columns, each text among the images": half(parts, 1, 0),
            "only the columns count; add the rows, each image among the texts": half(parts, 0, 1),
            "the two halves are added; take their mean": half(parts, 1, 1),
            "the halves have the weights B and K; take their mean": half(parts, 4 / 7, 3 / 7),
            "the sign is wrong: a loss is minus a log": half(parts, -0.5, -0.5),
            "the targets are not normalised": half(losses(as_is, as_is)),
            "the targets of the columns are not normalised": half(losses(by_row, as_is)),
            "the targets of the rows are not normalised": half(losses(as_is, by_column)),
            "the columns are normalised along the rows; each must sum to one": half(losses(by_row, by_row)),
            "the rows are normalised along the columns; each must sum to one": half(
                losses(by_column, by_column)
            ),
            "the two normalisations are exchanged": half(losses(by_column, by_row)),
            "T is divided by its sum; each row and column must sum to one": half(losses(whole, whole)),
            "sums over the batch; take means": half(losses(by_row, by_column, mean=(1, 1))),
            "means over all B * K logits; sum over the classes": half(
                losses(by_row, by_column, mean=(12, 12))
            ),
            "a softmax is taken twice: cross_entropy takes logits": half(losses(by_row, by_column, twice)),
            "both halves are divided by B; that of the columns by K": half(
                losses(by_row, by_column, mean=(4, 4))
            ),
            "the targets are made hard; they are distributions": half(losses(hard(1), hard(0))),
            "the targets are a softmax of T; divide T by its sums": half(
                losses(lambda T: T.softmax(1), lambda T: T.softmax(0))
            ),
            "the targets have L2 norm one; rows and columns must sum to one": half(
                losses(lambda T: F.normalize(T, dim=1), lambda T: F.normalize(T, dim=0))
            ),
            "both halves have a softmax along the rows; that of the columns runs along them": half(
                losses(by_row, by_column, lambda L, dim: L.log_softmax(1))
            ),
            "these are KL divergences, not cross-entropies": [
                (rows - a + columns - b) / 2 for (rows, columns), (a, b) in zip(parts, entropies)
            ],
        }
        right = half(parts)
        i = next((i for i in range(3) if not close(got[i], right[i])), 0)
        rows, columns = parts[i]
        otherwise = f"on batch {i + 1} of 3 (B = 4, K = 3) it is {got[i]:.4f}, but rows and columns have"
        otherwise += f" {rows:.4f} and {columns:.4f}, their mean is {right[i]:.4f}"
        explain(got, right, mistakes, otherwise)
        for own, value, answer in zip(leaves, right, got):
            explain_gradient(answer, value, {"the logits": own})


def check_4(mixture):
    """Exercise 4: mixture(p_s, p_c, lam) -> (q (X, C), its most nats above p_c, and above p_s)."""
    with exercise(4):
        g, lams = _stream(), (0.3, 3.0)
        mild, sharp = ((k * torch.randn(2, 50, 4, generator=g).double()).softmax(2) for k in (1, 3))
        apart = torch.eye(4).double().view(2, 2, 4) * 0.99996 + 0.00001  # each is sure, of another class
        found = []
        for lam in lams:
            for p_s, p_c in (mild, sharp, (mild[0], mild[0]), apart):
                three = mixture(*_copies(p_s, p_c), lam)
                is_three = isinstance(three, (tuple, list)) and len(three) == 3
                assert is_three, "return three: q, the most nats above p_c, the most above p_s"
                q = returned(three[0], *p_s.shape, name="q")
                names = "the bound above p_c", "the bound above p_s"
                bounds = [float(returned(bound, name=name)) for bound, name in zip(three[1:], names)]
                found.append((lam, p_s, p_c, q, *bounds))

        def logs(lam, s, c):
            return (s.log() + lam * c.log()) / (1 + lam)

        mistakes = {
            "the weights are exchanged: lambda belongs to p_c": lambda lam, s, c: (lam * s + c) / (1 + lam),
            "half and half, whatever lambda is": lambda lam, s, c: (s + c) / 2,
            "p_s alone": lambda lam, s, c: s,
            "p_c alone": lambda lam, s, c: c,
            "the rows do not sum to one: divide by 1 + lambda": lambda lam, s, c: s + lam * c,
            "logarithms are mixed, not probabilities": lambda *of: logs(*of).softmax(1),
            "logarithms are mixed, not probabilities; nor do rows sum to one": lambda *of: logs(*of).exp(),
            "the weights are 1 - lambda and lambda": lambda lam, s, c: (1 - lam) * s + lam * c,
        }
        q = [row[3] for row in found]
        right = [(p_s + lam * p_c) / (1 + lam) for lam, p_s, p_c, *_ in found]
        first = next((i for i in range(len(q)) if not close(q[i], right[i])), 0)
        lam, p_s, p_c = found[first][:3]
        x, k = divmod(int((q[first] - right[first]).abs().argmax()), 4)
        otherwise = (
            f"q is {q[first][x, k]:.3f} where the minimiser is {right[first][x, k]:.3f} (lambda {lam},"
        )
        otherwise += f" p_s {p_s[x, k]:.3f}, p_c {p_c[x, k]:.3f})"
        mistakes = {f"q: {name}": [of(*row[:3]) for row in found] for name, of in mistakes.items()}
        explain(q, right, mistakes, otherwise)
        _explain_bounds(found, lams)


def _explain_bounds(found, lams):
    """The second part of exercise 4. found: (lambda, p_s, p_c, q, bound above p_c, bound above p_s) each."""
    price = {"p_c": [math.log(1 + 1 / lam) for lam in lams], "p_s": [math.log(1 + lam) for lam in lams]}
    bounds = {name: [] for name in price}
    for name, place in (("p_c", 4), ("p_s", 5)):
        for lam in lams:
            of_data = [row[place] for row in found if row[0] == lam]
            low, high = min(of_data), max(of_data)
            assert high - low < 1e-4, (
                f"the bound above {name} changes with the data: for lambda {lam} it is {low:.3f} nats with"
                f" some p_s and p_c, {high:.3f} with others; one number must hold whatever they are"
            )
            bounds[name].append(high)
    as_given, exchanged = bounds["p_c"] + bounds["p_s"], price["p_s"] + price["p_c"]
    is_exchanged = close(torch.tensor(as_given), torch.tensor(exchanged))
    assert not is_exchanged, "the two bounds are exchanged: first comes the one above p_c"
    for name, got in bounds.items():
        right = torch.tensor(price[name])
        mistakes = {
            "it is the other one's": torch.tensor(price["p_s" if name == "p_c" else "p_c"]),
            "the log is missing": right.exp(),
            "the log has the base 2; nats are asked for": right / math.log(2),
            "the sign is wrong": -right,
            "log 2 is right for lambda 1 alone": torch.full((2,), math.log(2)),
        }
        i = int(abs(got[0] - price[name][0]) < 1e-4)
        otherwise = (
            "are too few; q can pay" if got[i] < price[name][i] else "hold, but q never pays more than"
        )
        otherwise = f"at lambda = {lams[i]}, {got[i]:.3f} nats {otherwise} {price[name][i]:.3f}"
        mistakes = {f"the bound above {name}: {what}": [of] for what, of in mistakes.items()}
        explain([torch.tensor(got)], [right], mistakes, f"the bound above {name}: {otherwise}")


def check_5(estimate):
    """Exercise 5: estimate(A, labels, scale, estimator) -> core targets (N, C)."""
    with exercise(5):
        toy, C = start(), world.C
        wording = 0.3 * torch.eye(C)[2]  # as if the texts of class 2 fitted all images better
        other = 0.7 * (toy.features @ toy.default_head.T)[:600] + wording
        low, high = other.quantile(0.01, dim=0), other.quantile(0.99, dim=0)
        other[5] += 1  # three odd images: far out, and a little below and above the percentiles
        other[7], other[9] = low - torch.linspace(0, 0.15, C), high + torch.linspace(0, 0.15, C)
        data = [(toy.features @ toy.concept_head.T, toy.labels, toy.scale)]
        data.append((other, toy.labels[:600], 3 * toy.scale))

        def asked(estimator):
            found = [estimate(*_copies(*of), estimator) for of in data]
            return [returned(p, *of[0].shape, name=f"{estimator}: the result") for p, of in zip(found, data)]

        def each(of):
            return [of(*one) for one in data]

        def only_best(x):
            return F.one_hot(x.argmax(1), C).float()

        soft, normalized = asked("softmax"), asked("normalized")

        def mapped(low=0.01, high=0.99, dim=0, clip=(0, 1)):
            """-> A brought to 0 to 1 between two quantiles, for each of the data."""
            found = []
            for A, _, _ in data:
                a, b = (A.quantile(level, dim=dim, keepdim=True) for level in (low, high))
                u = (A - a) / (b - a)
                found.append(u.clamp(*clip))
            return found

        def fitted(us, answers=normalized, softmax=torch.softmax):
            """-> softmax(k u), k with the smallest log loss or up to 6 % off, nearest to the answer."""
            found = []
            for p, u, (_, y, _) in zip(answers, us, data):
                k = _fitted_scale(u, y)
                near = [softmax(k * factor * u, 1) for factor in torch.linspace(0.94, 1.06, 25)]
                found.append(min(near, key=lambda q: (p - q).abs().max()))
            return found

        right = each(lambda A, y, s: (s * A).softmax(1))
        labels = each(lambda A, y, s: F.one_hot(y, C).float())
        mistakes = {
            "softmax: the scale is missing": each(lambda A, y, s: A.softmax(1)),
            "softmax: divided by the scale": each(lambda A, y, s: (A / s).softmax(1)),
            "softmax: taken over the images; along the classes": each(lambda A, y, s: (s * A).softmax(0)),
            "softmax: these are logarithms": each(lambda A, y, s: (s * A).log_softmax(1)),
            "softmax: these are logits, scale * A": each(lambda A, y, s: s * A),
            "softmax: the most probable class gets all": each(lambda A, y, s: only_best(A)),
            "softmax: these are the labels": labels,
            "softmax: this is the other estimator, normalized": fitted(mapped(), soft),
        }
        explain(soft, right, mistakes, _where_off("softmax", soft, right), 1e-3)

        u = mapped()
        right = fitted(u)
        mistakes = {
            "k is the logit scale; it is to be fitted": [(s * x).softmax(1) for x, (_, _, s) in zip(u, data)],
            "k is not fitted, but 1": [x.softmax(1) for x in u],
            "u is divided by its sum; a softmax of k u is asked for": [x / x.sum(1, keepdim=True) for x in u],
            "this is u; the softmax is missing": u,
            "the most probable class gets all": [only_best(x) for x in u],
            "not clipped; below a_y it is 0, above b_y it is 1": fitted(mapped(clip=(-math.inf, math.inf))),
            "clipped at 0 only; above b_y u is 1": fitted(mapped(clip=(0, math.inf))),
            "clipped at 1 only; below a_y u is 0": fitted(mapped(clip=(-math.inf, 1))),
            "these are logarithms": fitted(u, softmax=torch.log_softmax),
            "this is k u; the softmax is missing": fitted(u, softmax=lambda x, dim: x),
            "these are minimum and maximum, not percentiles": fitted(mapped(0.0, 1.0)),
            "one range for all classes; each class has its own": fitted(mapped(dim=None)),
            "each image has a range of its own; map each class over the images": fitted(mapped(dim=1)),
            "the two percentiles are exchanged": fitted(mapped(0.99, 0.01)),
            "mean and standard deviation, not percentiles": fitted(
                each(lambda A, y, s: (A - A.mean(0)) / A.std(0))
            ),
            "not mapped: a softmax of k A": fitted(each(lambda A, y, s: A)),
            "this is the softmax of scale * A": each(lambda A, y, s: (s * A).softmax(1)),
            "these are the labels": labels,
        }
        for percent in (2, 5, 10, 25):
            name = f"the percentiles are {percent} and {100 - percent}; 1 and 99 are asked for"
            mistakes[name] = fitted(mapped(percent / 100, 1 - percent / 100))
        otherwise = _where_off("normalized", normalized, right)
        i = int(close(normalized[:1], right[:1], 0.01))
        k, fit = _scales_of(normalized[i], u[i]), _fitted_scale(u[i], data[i][1])
        if close(normalized[i], (k * u[i]).softmax(1), 0.01):
            loss, least = (F.nll_loss(p[i].log(), data[i][1]) for p in (normalized, right))
            otherwise = "normalized: u is right, but each class has a k of its own; one k serves all"
            if k.std() < 0.01 * k.mean().abs():
                ratio = float(k.mean() / fit)
                way = "far " * (not 1 / 3 < ratio < 3) + ("too large" if ratio > 1 else "too small")
                otherwise = f"normalized: u is right, but k = {ratio * fit:.3g} is {way}:"
                otherwise += f" the log loss is {loss:.3f} nats, and with k near {fit:.3g} it is {least:.3f}"
        mistakes = {f"normalized: {name}": wrong for name, wrong in mistakes.items()}
        explain(normalized, right, mistakes, otherwise, 0.01)


def _fitted_scale(u, labels):
    """The k of 0.1 to 1000 with which softmax(k u), u (N, C), has the smallest log loss on labels (N,).

    The log loss is convex in k, so it is smallest where its slope changes sign.
    """
    low, high = 0.1, 1000.0
    for _ in range(30):
        k = math.sqrt(low * high)
        slope = ((k * u).softmax(1) * u).sum(1).mean() - u[range(len(u)), labels].mean()
        low, high = (low, k) if slope > 0 else (k, high)
    return k


def _scales_of(p, u):
    """-> k (C,) with which p (N, C) is softmax(k u), by least squares on the logarithms that are not lost."""
    top = p.argmax(1, keepdim=True)
    terms, logs = torch.diag_embed(u), p.log()  # (N, C, C): the logit of class c is terms[:, c] @ k
    terms = terms - terms.gather(1, top[..., None].expand(-1, 1, u.shape[1]))
    seen = p > 1e-30
    logs = (logs - logs.gather(1, top))[seen]
    return torch.linalg.lstsq(terms[seen].double(), logs[:, None].double()).solution[:, 0]


def _where_off(name, got, right):
    """Where answers, lists of tensors (N, C), differ most from what is right, in numbers."""
    i = next((i for i in range(len(got)) if not close(got[i], right[i], 0.01)), 0)
    n, c = divmod(int((got[i] - right[i]).abs().argmax()), right[i].shape[1])
    sums = got[i].sum(1)
    text = f"{name}: image {n} gets {got[i][n, c]:.3f} in column {c}, where {right[i][n, c]:.3f} is right"
    off = not close(sums, torch.ones_like(sums), 0.005)
    return text + f"; rows sum to {sums.min():.2f} to {sums.max():.2f}" * off


def check_6(predict_present):
    """Exercise 6: predict_present(default_logits, concept_logits, beta, present) -> p (N, number present)."""
    with exercise(6):
        toy, tries = start(), []
        logits = [toy.scale * toy.features[:200] @ head.T for head in (toy.default_head, toy.concept_head)]
        for classes, beta in (([0, 1, 3, 6, 7], 0.3), ([1, 2, 4], 0.8)):
            present = torch.isin(torch.arange(world.C), torch.tensor(classes))
            tries.append((*logits, beta, present))
        got = []
        for a, b, beta, present in tries:
            p = predict_present(*_copies(a, b), beta, present.clone())
            got.append(returned(p, len(a), int(present.sum())))

        def mixed(of_head, after=lambda p, on: p, weight=lambda beta: beta):
            """of_head of both heads' logits, mixed, and then `after`; both take the classes present, too."""
            found = []
            for a, b, beta, on in tries:
                w = weight(beta)
                found.append(after(w * of_head(a, on) + (1 - w) * of_head(b, on), on))
            return found

        def present_first(z, on):
            return z[:, on].softmax(1)

        def all_classes(z, on):
            return z.softmax(1)

        def zeroed(z, on):
            return (z * on).softmax(1)

        def drop(p, on):
            return p[:, on]

        def to_one(p, on):
            return p[:, on] / p[:, on].sum(1, keepdim=True)

        zero = "absent classes get the logit 0, and with it e^0 = 1; drop their columns"
        each_head = "each head must sum to one before mixing, not only the mixture"
        mistakes = {
            "columns are dropped after the softmax: rows do not sum to one": mixed(all_classes, drop),
            f"{each_head}: drop the columns before either softmax": mixed(all_classes, to_one),
            zero: mixed(zeroed, drop),
            zero + ", before mixing and before the softmax": mixed(zeroed, to_one),
            zero + ", before the softmax": mixed(lambda z, on: to_one(zeroed(z, on), on)),
            "the logits are mixed, not probabilities": mixed(drop, lambda p, on: p.softmax(1)),
            "the logits are mixed, and columns dropped after the softmax": mixed(
                lambda z, on: z, lambda p, on: p.softmax(1)[:, on]
            ),
            "these are logits; the softmax is missing": mixed(drop),
            "the softmax is taken over the images; each row sums to one": mixed(
                lambda z, on: z[:, on].softmax(0)
            ),
            "the weights are exchanged: beta is the default head's": mixed(
                present_first, weight=lambda w: 1 - w
            ),
            "mixed half and half, whatever beta is": mixed(present_first, weight=lambda w: 0.5),
            "this is the default head alone": mixed(present_first, weight=lambda w: 1),
            "this is the concept head alone": mixed(present_first, weight=lambda w: 0),
            "the first columns are kept, not those present": mixed(lambda z, on: z[:, : on.sum()].softmax(1)),
        }
        right = mixed(present_first)
        explain(got, right, mistakes, _where_off("p", got, right))


def validation():
    """What exercise 7 may read: lambda -> validation accuracy (0 to 1) of each of five seeds, recorded."""
    found = {}
    for name, lam in LAMBDAS.items():
        found[lam] = [value / 100 for value in recorded(name, "validation").tolist()]
    return found


def _made_up_validation():
    """Validation results with other answers: a function that knows this world's by heart fails on them."""
    yield {0.0: [0.90], 0.5: [0.895], 2.0: [0.85], 5.0: [0.892], math.inf: [0.60]}  # falls, and rises again
    yield {1.0: [0.80, 0.99, 0.76], 0.0: [0.90, 0.80, 0.86], 0.5: [0.85, 0.80, 0.90]}  # seeds disagree
    yield {1.0: [0.493], 0.0: [0.50], 3.0: [0.40]}  # a point is 0.01, not a hundredth of the best
    yield {0.0: [0.02], 1.0: [0.01]}  # just one point, and exactly so in any arithmetic
    yield {3.0: [0.80], 0.0: [0.93], 0.1: [0.91]}  # nothing comes for free
    yield {2.0: [0.91, 0.70], math.inf: [0.80, 0.81], 0.0: [0.70, 0.90]}  # WRM alone
    g = _stream()
    for _ in range(40):
        lams = [0.0, *(0.1 * torch.randint(1, 50, (4,), generator=g)).tolist()]
        means = 0.85 - 0.03 * torch.rand(5, generator=g)
        found = {lam: (mean + 0.03 * torch.randn(3, generator=g)).tolist() for lam, mean in zip(lams, means)}
        loss = [max(map(statistics.fmean, found.values())) - statistics.fmean(of) for of in found.values()]
        if min(abs(value - 0.01) for value in loss) > 1e-3:  # nothing hangs on rounding
            yield found


def check_7(choose):
    """Exercise 7: choose({lambda: [accuracy, ...]}) -> the largest lambda within a point of the best."""
    with exercise(7):
        for results in (*_made_up_validation(), validation()):
            chosen = _check_choice(choose, results)
        best = max(results, key=lambda lam: statistics.fmean(results[lam]))
        for name, lam in LAMBDAS.items():  # only now
            note = ", your choice" * (lam == chosen) + ", best on validation" * (lam == best)
            print(f"lambda {lam:>4g}: OOD mean {mean_sd(ood_mean(name))} %{note}")


def _check_choice(choose, results):
    """-> the lambda that is chosen of the results; an AssertionError where it is not the right one."""
    mean = {lam: statistics.fmean(accuracies) for lam, accuracies in results.items()}
    given = ", ".join(f"{lam:g}: {100 * m:.1f} %" for lam, m in mean.items())
    given = f"given accuracies (means of the seeds) {given}"
    peeked = AssertionError("choose reads a file or what was recorded; it may use only what it is given")
    with contextlib.ExitStack() as stack:
        for name in ("builtins.open", "io.open", f"{__name__}.load", f"{__name__}.load_run"):
            stack.enter_context(patch(name, side_effect=peeked))
        try:
            lam = _plain(choose(copy.deepcopy(results)))
        except Exception as e:
            e.given = f"; {given}"
            raise
    best = max(mean, key=mean.get)
    right = max(lam for lam in mean if round(mean[best] - mean[lam], 6) <= 0.01)
    assert lam is not None, "the result is None. Is there a `return`?"
    is_many = isinstance(lam, (list, tuple, dict, set))
    assert not is_many, f"return the number, not a {type(lam).__name__}"
    shown = f"{given}, it chooses"
    is_number = isinstance(lam, numbers.Real) and not isinstance(lam, bool)
    same = [known for known in mean if is_number and math.isclose(known, lam, rel_tol=1e-6)]
    assert same, f"{shown} {repr(lam)[:40]}, none of the lambdas, which are numbers"
    lam = same[0]
    if lam != right:
        assert lam != best, f"{shown} {lam:g}, the most accurate; {right:g} is larger and within a point"
        lost = mean[best] - mean[lam]
        assert lost > 0.01, f"{shown} {lam:g}; {right:g} is larger and within a point too"
        costs = f"which costs {100 * lost:.2f} points; {right:g} is the largest within a point"
        raise AssertionError(f"{shown} {lam:g}, {costs}")
    return lam


@functools.cache
def _pictures_to_break():
    """-> (1000 pictures of `place random`, 1500 of `same site` to train on)."""
    return _drawn(1000, "place random", seed=2), _drawn(1500, "same site", seed=3)


def _prompts_of(descriptions):
    toy = start()
    texts = [list(descriptions[name]) for name in toy.core]
    return toy.prompts._replace(concept=drm_min.tokenize(toy.tokenizer, texts))


def zero_shot_accuracy(descriptions, split=None):
    """How often (0 to 1) the zero-shot head of {object: texts} is right: in a split, or `place random`."""
    split = split or _pictures_to_break()[0]
    _, q_concept = drm_min.predict(start().model, split, _prompts_of(descriptions))
    return drm_min.metrics(q_concept, split)["accuracy"]


def short_run(descriptions, lam):
    """Accuracy (0 to 1) in `place random` after a short training: DRM with its mixture, ERM for lambda 0."""
    toy, prompts, (test, training) = start(), _prompts_of(descriptions), _pictures_to_break()
    model = copy.deepcopy(toy.model)
    head = drm_min.build_head(model, prompts.concept).detach()
    features = drm_min.encode_images(model, training)
    targets = drm_min.core_targets("posterior", features, training.labels, head, toy.scale)
    heads = ("default", "concept") if lam > 0 else ("default",)
    job, config = drm_min.Job("drm", 0, heads, lam), drm_min.Config(epochs=4, batch_size=128)
    drm_min.train(model, training, prompts, targets, job, config)
    p = drm_min.predict(model, test, prompts)
    return drm_min.metrics(drm_min.mix(*p, 1 / (1 + lam)), test)["accuracy"]


@functools.cache
def short_erm():
    """The short run of ERM, which reads no descriptions."""
    return short_run(start().core, lam=0.0)


def check_8(broken_descriptions):
    """Exercise 8: broken_descriptions() -> {object: [texts]} that make DRM worse than ERM."""
    with exercise(8):
        texts, objects = broken_descriptions(), list(start().core)
        assert isinstance(texts, dict), f"a dictionary is asked for, not a {type(texts).__name__}"
        assert set(texts) == set(objects), f"the keys must be {', '.join(objects)}"
        for name, own in texts.items():
            is_list = isinstance(own, (list, tuple)) and len(own) > 0
            good = is_list and all(isinstance(text, str) and text.strip() for text in own)
            assert good, f"{name}: give it a list with at least one text, none of them empty"
        accuracy = zero_shot_accuracy(texts)
        why = "To fall below chance, 12.5 %, it must be sure of a wrong class"
        if len({tuple(own) for own in texts.values()}) == 1:
            why = f"The texts of all classes are alike. {why}"
        elif accuracy > 0.5:
            why = "Most texts still fit their objects"
        shown = f"1. the concept head is right on {100 * accuracy:.1f} % of `place random`, not at most 10 %."
        assert accuracy <= 0.1, f"{shown} {why}"
        drm, erm = short_run(texts, lam=1.0), short_erm()
        shown = f"2. DRM has {100 * drm:.1f} %, ERM {100 * erm:.1f} %: not two points worse."
        assert drm <= erm - 0.02, f"{shown} The head is wrong, but not sure; what would make it sure?"
        print(
            f"`place random`: zero-shot {100 * accuracy:.0f} %, DRM {100 * drm:.0f} %, ERM {100 * erm:.0f} %"
        )
        print(f"`same site`: zero-shot {100 * zero_shot_accuracy(texts, start().split):.0f} %")


THREE = {"ERM": "erm", "WRM": "wrm", "DRM": "drm-1"}  # and their recorded trainings
SITES = {"a": (0.9, 0.1, "toy"), "b": (0.3, 1.0, "toy"), "c": (0.3, 0.5, "toy"), "d": (0.3, 1.0, "toy-fog")}


def cells_in_fog(method):
    """As four_cells, for "ERM", "WRM" or "DRM" trained and tested in fog: (4, 5), in %."""
    of_seeds = []
    for row in load_run("targets-fog")["results"]:
        is_it = row["method"] == method.lower() and row["estimator"] in (None, "posterior")
        if is_it and row["alpha"] == 1:
            of_seeds.append(row["domains"])

    def of(domain, group):
        return torch.tensor([100 * domains[domain][f"accuracy_{group}"] for domains in of_seeds])

    away = [of("place misleads", group) for group in ("visible", "hidden")]
    mostly = [of("same site", "visible"), of("object hidden", "hidden")]
    regular = [(x - 0.175 * y) / 0.825 for x, y in zip(mostly, away)]  # as in four_cells
    return torch.stack([regular[0], away[0], regular[1], away[1]])


def show_sites():
    """Eight pictures of each of the new sites of exercise 9."""
    rows, labels = [], []
    for name, (r, v, camera) in SITES.items():
        rows.append(world.draw(8, ((8 * r - 1) / 7, v), _stream(4), camera=camera).images)
        labels.append(f"site {name}\nr = {r:g}, v = {v:g}" + ", fog" * (camera == "toy-fog"))
    show_images(rows, labels=labels, size=1.1)


def _made_up_cells(n):
    """n times r, v, and {method: accuracies (4,) in %}, all by chance."""
    g = _stream(5)
    for i in range(n):
        r, v = (0.05 + 0.9 * torch.rand(2, generator=g)).tolist()
        cells = torch.randint(1000, (3, 4), generator=g).div(10).tolist()
        names = [list(THREE)[(i + k) % 3] for k in range(3)]
        yield r, v, dict(zip(names, ([round(a, 1) for a in own] for own in cells)))


def _predicted(prediction, allowed):
    """The words of a prediction, which ends with its reason; an AssertionError where something is missing."""
    *given, reason = map(str, prediction)
    said, again = [], "a wrong prediction costs nothing; fill in the cell above and run it again"
    for word, words in zip(given, allowed, strict=True):
        known = {one.lower(): one for one in words}
        found = known.get(word.strip().lower())
        assert found, f"predict first: {word!r} is none of {', '.join(words)}; {again}"
        said.append(found)
    n = len(reason.split())
    assert n >= 4, (
        f"say why: `because` has {n} word{'s' * (n != 1)}; write at least four, and run its cell again"
    )
    return said


def check_9(best_method, prediction):
    """Exercise 9: best_method(r, v, cells {method: (4,)}) -> the name of the most accurate method."""
    with exercise(9):
        said = _predicted(prediction, [tuple(THREE)] * len(SITES))
        tries, got = [], []
        for r, v, cells in _made_up_cells(1000):
            *_, second, best = sorted(law(r, v, own) for own in cells.values())
            if best - second > 0.2:  # nothing hangs on rounding
                tries.append((r, v, cells))
        for r, v, cells in tries:
            name = str(best_method(r, v, copy.deepcopy(cells)))
            assert name in cells, f"return the name of a method, one of {', '.join(cells)}, not {name[:40]}"
            got.append(name)

        def highest(score):
            return [max(cells, key=lambda name: score(r, v, cells[name])) for r, v, cells in tries]

        mistakes = {
            "this is the least accurate method": lambda r, v, a: -law(r, v, a),
            "r and v are exchanged, or the second and third cell": lambda r, v, a: law(v, r, a),
            "r and 1 - r are exchanged": lambda r, v, a: law(1 - r, v, a),
            "v and 1 - v are exchanged": lambda r, v, a: law(r, 1 - v, a),
            "only visible objects count": lambda r, v, a: law(r, 1, a),
            "only hidden objects count": lambda r, v, a: law(r, 0, a),
            "only regular places count": lambda r, v, a: law(1, v, a),
            "only other places count": lambda r, v, a: law(0, v, a),
            "the four cells weigh the same, whatever r and v are": lambda r, v, a: sum(a),
            "the best cell alone decides": lambda r, v, a: max(a),
            "the worst cell alone decides": lambda r, v, a: min(a),
            "the most frequent cell alone decides": lambda r, v, a: a[2 * (v < 0.5) + (r < 0.5)],
            "r is taken for rho": lambda r, v, a: law(r + (1 - r) / 8, v, a),
            "r is turned into rho": lambda r, v, a: law((8 * r - 1) / 7, v, a),
        }
        right = highest(law)
        if got != right:
            for name, score in mistakes.items():
                assert got != highest(score), name
            i = next(i for i in range(len(got)) if got[i] != right[i])
            r, v, cells = tries[i]
            two = [
                f"{name}, {cells[name]}, has {law(r, v, cells[name]):.1f} %" for name in (right[i], got[i])
            ]
            said = f"at r = {r:.2f}, v = {v:.2f} it says {got[i]}, but"
            raise AssertionError(f"{said} {two[0]} and {two[1]}")
        print("accuracy ± s.d. over five seeds; the winner's lead over the second best ± its s.e.")
        for word, (name, (r, v, camera)) in zip(said, SITES.items()):
            cells = {method: four_cells(training) for method, training in THREE.items()}
            if camera == "toy-fog":
                cells = {method: cells_in_fog(method) for method in THREE}
            accuracy = {method: law(r, v, own) for method, own in cells.items()}
            shown = ", ".join(f"{method} {mean_sd(own)}" for method, own in accuracy.items())
            *_, second, best = sorted(accuracy, key=lambda method: accuracy[method].mean())
            lead = mean_se(accuracy[best] - accuracy[second])
            print(f"site {name}: {shown} %; {best} - {second} {lead} (you said {word})")


def check_10(break_even, prediction):
    """Exercise 10: break_even(v, erm (4,), drm (4,)) -> the r at which both are equally accurate, or None."""
    with exercise(10):
        said = _predicted(prediction, [("above", "below"), ("rises", "falls")])
        tries = []
        for _, v, cells in _made_up_cells(200):
            erm, drm, _ = cells.values()
            r = _equal_at(v, erm, drm)
            if min(abs(r), abs(r - 1)) > 0.02:  # nothing hangs on rounding
                tries.append((v, erm, drm))

        no_r = "where no r in 0 to 1 makes them equal, None is asked for"

        def meet(v, erm, drm):
            r = _plain(break_even(v, list(erm), list(drm)))
            assert not isinstance(r, float) or math.isfinite(r), f"{no_r}: return None, not {r}"
            return r if r is None else float(returned(r))

        got = [meet(*of) for of in tries]

        def every(of):
            return [of(v, erm, drm) for v, erm, drm in tries]

        def inside(r):
            return r if 0 <= r <= 1 else None

        def same(a, b):
            return a is b if a is None or b is None else abs(a - b) <= 2e-3 * max(1, abs(b))

        def exchanged(a):
            return [a[0], a[2], a[1], a[3]]

        def wrong_sign(v, a, b):
            at_0, at_1 = (law(r, v, a) - law(r, v, b) for r in (0, 1))
            return at_0 / (at_1 - at_0)

        sign = "the sign is wrong; put your r into both lines"
        mistakes = {
            f"{no_r}, not an r beyond": _equal_at,
            f"{no_r}, not 0 or 1": lambda *of: min(max(_equal_at(*of), 0), 1),
            "this is None even where there is such an r": lambda *of: None,
            "this is r in percent; r is a share, 0 to 1": lambda *of: (
                inside(_equal_at(*of)) and 100 * _equal_at(*of)
            ),
            "this is 1 - r": lambda *of: inside(1 - _equal_at(*of)),
            "this is rho, not r": lambda *of: inside(_equal_at(*of)) and (8 * _equal_at(*of) - 1) / 7,
            "v and 1 - v are exchanged": lambda v, a, b: inside(_equal_at(1 - v, a, b)),
            "v is not used; this is right for v = 0.5": lambda v, a, b: inside(_equal_at(0.5, a, b)),
            "only visible objects count": lambda v, a, b: inside(_equal_at(1, a, b)),
            "only hidden objects count": lambda v, a, b: inside(_equal_at(0, a, b)),
            "the second and third cell are exchanged": lambda v, a, b: inside(
                _equal_at(v, exchanged(a), exchanged(b))
            ),
            sign: wrong_sign,
            f"{sign}, to see it": lambda *of: inside(wrong_sign(*of)),
        }
        right = every(lambda *of: inside(_equal_at(*of)))
        if not all(map(same, got, right)):
            for name, of in mistakes.items():
                assert not all(map(same, got, every(of))), name
            i = next(i for i in range(len(got)) if not same(got[i], right[i]))
            v, erm, drm = tries[i]
            shown = "None"
            if got[i] is not None:
                a, b = law(got[i], v, erm), law(got[i], v, drm)
                shown = f"{got[i]:.3f}, where ERM has {a:.1f} and DRM {b:.1f} %"
            asked = no_r if right[i] is None else f"at r = {right[i]:.3f} they are equal"
            raise AssertionError(f"for v = {v:.2f}, ERM {erm}, DRM {drm} it is {shown}; {asked}")
        _check_ends(meet)
        cells = [four_cells(training).mean(1).tolist() for training in ("erm", "drm-1")]
        for v in (0.8, 0.5, 0.2, 0.0):
            lead = law(1, v, cells[0]) - law(1, v, cells[1])
            print(f"v = {v:g}: equal at r = {meet(v, *cells):.2f}; at r = 1 ERM - DRM is {lead:+.1f} points")
        side, way = (
            "above" if lead > 0 else "below",
            "falls" if meet(0.2, *cells) < meet(0.8, *cells) else "rises",
        )
        shown = f"ERM is best {side} it, and it {way} where fewer objects are visible"
        print(f"{shown} (you said {' and '.join(said)})")
        for domain, r, v in (("place random", 0.125, 0.8), ("object hidden", 0.825, 0.2)):
            lead = mean_se(recorded("erm", domain) - recorded("drm-1", domain))
            print(f"measured in `{domain}`, r = {r}, v = {v}: ERM - DRM {lead} points (± s.e.)")


def _check_ends(meet):
    """The last part of exercise 10: lines that meet at 0, at 1, nowhere. meet(v, erm, drm) -> r or None."""
    drm = [50.0, 50.0, 50.0, 50.0]
    for end, leads in ((0, [30, 10, 10, -10]), (1, [10, 30, -10, 10]), (None, [20, 10, 0, 10])):
        erm = [b + lead for lead, b in zip(leads, drm)]
        try:
            r = meet(0.5, erm, drm)  # halves of whole numbers: nothing hangs on rounding
        except ZeroDivisionError:
            r = "a division by zero"
        given = f"for v = 0.5, ERM {erm}, DRM {drm}"
        if end is None:
            assert r is None, f"{given} the lines are parallel: None is asked for, and this is {r}"
        else:
            is_right = isinstance(r, float) and abs(r - end) <= 2e-3
            assert is_right, (
                f"{given} the lines meet at r = {end}, and 0 and 1 count, up to rounding; this is {r}"
            )


def _equal_at(v, a, b):
    """The r where law(r, v, a) is law(r, v, b), both straight lines in r; it may lie outside 0 to 1."""
    at_0, at_1 = (law(r, v, a) - law(r, v, b) for r in (0, 1))
    return at_0 / (at_0 - at_1)


if __name__ == "__main__":
    style()
    (ROOT / "docs").mkdir(exist_ok=True)
    for draw, name in ((hero, "hero"), (diagram, "method")):
        draw().savefig(ROOT / "docs" / f"{name}.png", dpi=100)
