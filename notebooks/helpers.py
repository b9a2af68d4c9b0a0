"""What the notebooks share, so that a cell shows one idea: style, tables, recorded trainings, pictures.

The first part is for all notebooks; then each has a section of its own, for its figures and checks.
`python notebooks/helpers.py` draws the diagram of the method, docs/method.png.
"""

import functools
import json
import math
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import drm_min
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
    width = size * len(rows[0]) + 0.09 * max(map(len, labels), default=0)  # labels stand on the left
    figure, panels = plt.subplots(len(rows), len(rows[0]), figsize=(width, height), squeeze=False)
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


# ------------------------------------------------------------------------------------ a diagram of the method


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
    plain(panels[0]).imshow(image.permute(1, 2, 0), interpolation="nearest")
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
        plain(left).imshow(images[i].permute(1, 2, 0), interpolation="nearest")
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
        plain(axes).imshow(image.permute(1, 2, 0), interpolation="nearest")
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


def show_crossing(blends, curves):
    """What moves the cosine while the object fades: head -> (seeds, K, 2), by a swapped place and object."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axes, (head, curve) in zip(panels, curves.items()):
        name, colour, _ = HEADS[head]
        for k, (look, what) in enumerate((("x--", "place swapped"), ("o-", "object swapped"))):
            mean, sd = curve.mean(0)[:, k], curve.std(0)[:, k]
            axes.errorbar(blends, mean, sd, fmt=look, color=colour if k else "black", capsize=3, label=what)
        axes.set(title=name, xlabel="a: from hidden (0) to visible (1)", ylim=(0, 0.5))
        axes.legend(loc="upper left")
    panels[0].set_ylabel("mean |change of cosine|")
    plt.show()


# ------------------------------------------------------------------------------------------------ notebook 3


# ------------------------------------------------------------------------------------------------ notebook 4


# ------------------------------------------------------------------------------------------------ notebook 5


# ------------------------------------------------------------------------------------------------ notebook 6


# ------------------------------------------------------------------------------------------------- exercises


if __name__ == "__main__":
    style()
    (ROOT / "docs").mkdir(exist_ok=True)
    diagram().savefig(ROOT / "docs" / "method.png", dpi=100)
