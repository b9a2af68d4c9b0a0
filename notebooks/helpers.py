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
from support.texts import load_descriptions
from support.weights import load_clip
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
        plain(panels[i, 0]).imshow(view.images[number].permute(1, 2, 0), interpolation="nearest")
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


def reliability(p, oracle, bins=10):
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
            axes.imshow(view.images[image].permute(1, 2, 0), interpolation="nearest")
        panels[f"{i} 0"].set_ylabel(air)
        confidence, right = reliability(view.targets("softmax"), view.oracle)
        curve.plot(confidence, right, marker=marker, color=AIR[air][1], lw=2, ms=8, label=air)
    curve.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the preferred class", ylabel="how often right")
    curve.set_title("softmax: how sure, and how often right?")
    curve.text(0.24, 0.92, "not sure enough", ha="center")
    curve.text(0.8, 0.1, "too sure", ha="center")
    curve.legend(loc="upper left", bbox_to_anchor=(0, 0.85))
    plt.show()


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


def temperature_curves(scales, losses):
    """Log loss on the training labels against the scale k: air -> list of losses in nats."""
    figure, axes = plt.subplots(figsize=(7.5, 3.5))
    for (air, loss), line, above in zip(losses.items(), ("-", "--"), (-0.16, -0.17)):
        best = min(range(len(loss)), key=loss.__getitem__)
        axes.plot(scales, loss, line, color=AIR[air][1], lw=2.5)
        axes.plot(scales[best], loss[best], "o", color=AIR[air][1], ms=9)
        axes.text(scales[best], loss[best] + above, f"{air}: k = {scales[best]:.1f}", ha="center")
    axes.axhline(math.log(8), color="black", lw=1, ls=":")
    axes.text(0.11, math.log(8) + 0.05, "flat targets: ln 8")
    axes.set(
        xscale="log",
        xlim=(0.09, 110),
        ylim=(0.7, 3),
        xlabel="scale k",
        ylabel="log loss of the labels (nats)",
    )
    axes.set_title("One temperature, fitted to the training labels")
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
        axes.plot(trusts, curves[:, label], color=own, lw=3, label=f"the label, {world.OBJECTS[label]}")
        axes.plot(trusts, curves[:, second], color="#D55E00", ls="--", lw=2.5, label=world.OBJECTS[second])
        rest = 1 - curves[:, label] - curves[:, second]
        axes.plot(trusts, rest / 6, color=other, lw=2.5, ls="-.", label="each of the others (mean)")
        truth = float(view.oracle[number, label])
        axes.plot(1.0, truth, "k*", ms=15, clip_on=False, zorder=5)
        axes.annotate(
            "true $p_c$ of the label",
            (1.0, truth),
            (-12, -15 if truth == 1 else 0),
            textcoords="offset points",
            ha="right",
        )
        axes.axvline(TRUST, 0, 0.6, color="black", lw=1)
        axes.text(TRUST + 0.015, 0.57, "default", fontsize=11)
        axes.set(xlabel="trust t in the label", ylim=(0, 1), xlim=(0, 1))
        inset = plain(axes.inset_axes((0.03, 0.66, 0.24, 0.32)))
        inset.imshow(view.images[number].permute(1, 2, 0), interpolation="nearest")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=11)
    panels[0].set(ylabel="target", title="visible, misread")
    panels[1].set(title="hidden")
    plt.show()


def seven_maps(view, numbers, targets, titles):
    """A heat map for each image: a row an estimator, a column a class; targets: estimator -> (N, C)."""
    figure, panels = plt.subplots(2, len(numbers), figsize=(11.5, 5.4), height_ratios=(0.7, 1), sharey="row")
    for (above, axes), number, title in zip(panels.T, numbers.tolist(), titles):
        plain(above).imshow(view.images[number].permute(1, 2, 0), interpolation="nearest")
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


def trust_curves():
    """OOD mean of DRM and of WRM alone against the trust, in clear air and in fog, and what needs no WRM."""
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


# ------------------------------------------------------------------------------------------------ notebook 5


# ------------------------------------------------------------------------------------------------ notebook 6


# ------------------------------------------------------------------------------------------------- exercises


if __name__ == "__main__":
    style()
    (ROOT / "docs").mkdir(exist_ok=True)
    diagram().savefig(ROOT / "docs" / "method.png", dpi=100)
