"""What the notebooks share, so that a cell shows one idea: style, tables, recorded trainings, pictures.

The first part is for all notebooks; then each has a section of its own, for its figures and checks.
`python notebooks/helpers.py` draws the diagram of the method, docs/method.png.
"""

import functools
import inspect
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


def show_tables(tables):
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


def show_pulls(images, texts, identity, classes):
    """Where the contrastive loss pulls unit embeddings (B, 2), beside its texts.

    identity: the pulls (B, 2) where each image is its own text; classes: those with one text a class (K, 2).
    """
    figure, both = plt.subplots(1, 2, figsize=(9.5, 4.2))
    for axes, title, shown, names, pulls in (
        (both[0], "FLYP: two skis are pushed apart", images, ["", "", "kite", "fish"], identity),
        (both[1], "K classes: at rest", texts, ["ski", "kite", "fish"], classes),
    ):
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="#BBBBBB"))
        for text, name in zip(shown.tolist(), names):
            axes.plot([0, text[0]], [0, text[1]], color=METHODS["erm"][1], lw=1.5)
            axes.plot(*text, "s", color=METHODS["erm"][1], ms=9)
            axes.text(
                *(0.5 * torch.tensor(text) + torch.tensor([0.05, 0.1])).tolist(),
                name,
                color=METHODS["erm"][1],
            )
        along = pulls - (pulls * images).sum(1, keepdim=True) * images  # what turns the embedding
        for i, (at, pull) in enumerate(zip(images, along)):
            axes.plot(*at.tolist(), "o", color="black", ms=5, zorder=3)
            axes.text(*(1.18 * at).tolist(), str(i), ha="center", va="center", weight="bold")
            if pull.norm() > 0.02:
                end = at + 2 * pull
                look = {"arrowstyle": "-|>", "color": "#0072B2", "lw": 3, "mutation_scale": 20, "shrinkA": 0}
                axes.annotate("", end.tolist(), at.tolist(), arrowprops=look, zorder=4)
        axes.set(xlim=(-1.35, 1.35), ylim=(-1.2, 1.4), aspect="equal", title=title)
        axes.set(xlabel="first number", ylabel="second number")
    plt.show()


def loss_curves(losses, floors, reference):
    """The dual loss, its two terms and the WRM term's floor over the steps of a training, in nats.

    losses: a (loss, ERM term, WRM term) each step; floors and reference: a number each step.
    """
    total, erm, wrm = zip(*losses)
    steps = range(1, len(losses) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9))
    left.plot(steps, reference, color=METHODS["drm"][1], lw=2.5, label="drm_min.train")
    left.plot(steps, total, "o", mfc="none", color="black", label="our loop")
    left.set(title="The dual loss: the same, step by step", ylim=(0, None))
    right.plot(steps, erm, "s-", ms=4, color=METHODS["erm"][1], label="ERM term")
    right.plot(steps, wrm, "^-", ms=4, color=METHODS["wrm"][1], label="WRM term")
    right.plot(steps, floors, ":", color="black", lw=2, label="its floor: mean entropy of $p_c$")
    right.set(title="One term falls, the other does not", ylim=(0, 1.9))
    left.legend(loc="lower left")
    right.legend(loc="upper right", fontsize=11)
    for axes in (left, right):
        axes.set(xlabel="step of the training", ylabel="loss of the batch (nats)")
    plt.show()


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
    plain(panels[0]).imshow(image.permute(1, 2, 0), interpolation="nearest")
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
    """WiSE-FT as recorded: accuracy over alpha, and what the best alpha gains; training -> key of METHODS."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    alphas = [*ALPHAS, 1.0]
    titles = ("OOD mean of three shifted domains", "same site (as in training)")
    for training, method in methods.items():
        name, colour, marker = METHODS[method]
        series = (
            [ood_mean(training, alpha=a) for a in alphas],
            [recorded(training, "same site", alpha=a) for a in alphas],
        )
        for axes, values, title in zip(panels, series, titles):
            mean, sd = torch.stack(values).mean(1), torch.stack(values).std(1)
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


# ------------------------------------------------------------------------------------------------ notebook 6


# ------------------------------------------------------------------------------------------------- exercises


if __name__ == "__main__":
    style()
    (ROOT / "docs").mkdir(exist_ok=True)
    diagram().savefig(ROOT / "docs" / "method.png", dpi=100)
