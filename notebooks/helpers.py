"""What the notebooks share, so that a cell shows one idea: style, tables, recorded trainings, pictures.

The first part is for all notebooks; then each has a section of its own, for its figures and checks.
`python notebooks/helpers.py` draws the diagram of the method, docs/method.png.
"""

import functools
import io
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
from support.texts import prompts_of
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


# ------------------------------------------------------------------------------------------------ notebook 4


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

    summary: name of a thick black curve and its values (7, 5), a row for each lambda, a column a seed.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.4))
    label_of, values = summary
    draw_curve(axes, range(7), values, label_of, "black", linewidth=7, alpha=0.25)
    ends = {label_of: values[0].mean()}
    for domain, (colour, line, marker) in OF_DOMAINS.items():
        values = torch.stack([recorded(name, domain, metric) for name in LAMBDAS])
        draw_curve(axes, range(7), values, domain, colour, line, marker)
        ends[domain] = values[0].mean()
    losses = metric == "log_loss"
    for name, end in ends.items():
        colour = OF_DOMAINS.get(name, ("black",))[0]
        nudge = {"worst of the four": 8, "place misleads": -8}.get(name, 0) if losses else 0
        look = {"textcoords": "offset points", "ha": "right", "va": "center", "color": colour}
        axes.annotate(name, (0, end), (-11, nudge), weight="bold" if colour == "black" else "normal", **look)
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
    """Accuracies over beta, a curve for each training; a diamond marks beta = 1/(1 + lambda)."""
    lines = dict(zip(names, ("-", "--", "-", "-.", ":")))
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.4))
    for axes, domain in zip(panels, ("same site", "OOD mean")):
        for name in names:
            values = [
                ood_mean(name, beta=b) if domain == "OOD mean" else recorded(name, domain, beta=b)
                for b in BETAS
            ]
            values, own = torch.stack(values), BETAS.index(beta_of(name))
            look = {"color": colour_of(name), "linewidth": 2.5, "label": f"λ = {LAMBDAS[name]:g}"}
            axes.plot(BETAS, values.mean(1), lines[name], **look)
            look = {"color": colour_of(name), "markeredgecolor": "black", "markersize": 10, "zorder": 4}
            axes.plot(BETAS[own], values[own].mean(), "D", **look)
        axes.set(xlabel="β (weight of the default head)", ylabel="accuracy (%)")
    panels[0].set(title="Same site: flat above 0.5")
    panels[1].set(title="OOD mean: best near the middle")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
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


def two_betas():
    """The OOD mean along the path of lambda, with the derived beta and with 0.5."""
    figure, axes = plt.subplots(figsize=(8.5, 3.7))
    for name, beta, line in (("β = 1/(1 + λ)", None, "-"), ("β = 0.5", 0.5, "--")):
        values = torch.stack([ood_mean(training, beta=beta) for training in FINITE])
        colour = "#777777" if beta is None else "black"
        draw_curve(axes, range(6), values, name, colour, line, "o", linewidth=2.5)
        look = {"textcoords": "offset points", "va": "center", "color": colour}
        axes.annotate(name, (5, values[-1].mean()), (12, 0), **look)
    lambda_axis(axes, FINITE)
    axes.set(ylabel="OOD mean accuracy (%)", title="Much of the fall at large λ is β", xlim=(-0.3, 6.4))
    plt.show()


def cost_and_gain(training, domain="OOD mean", alpha=1.0):
    """Points that a model loses to ERM in `same site`, and gains in a domain or the OOD mean: (5,) each."""
    cost = recorded("erm", "same site") - recorded(training, "same site", alpha=alpha)
    if domain == "OOD mean":
        return cost, ood_mean(training, alpha=alpha) - ood_mean("erm")
    return cost, recorded(training, domain, alpha=alpha) - recorded("erm", domain)


def paths_picture():
    """Gain against cost, both paired with ERM: the path of lambda, and WiSE-FT from three trainings."""
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.6))
    for axes, domain in zip(panels, ("OOD mean", "place misleads")):

        def draw(models, label, colour, line, marker, axes=axes, domain=domain, **look):
            both = torch.stack(
                [torch.stack(cost_and_gain(name, domain, alpha)) for name, alpha in models]
            )  # (M, 2, 5)
            (x, y), (dx, dy) = both.mean(2).T, both.std(2).T / math.sqrt(5)
            axes.errorbar(x, y, dy, dx, linestyle=line, color=colour, marker=marker, label=label, **look)
            return x, y

        for training, method in zip(WITH_ALPHAS, ("erm", "drm", "flyp")):
            name, colour, marker = METHODS[method]
            models = [(training, alpha) for alpha in (1.0, *reversed(ALPHAS))]
            draw(models, f"{name}, α from 1 down", colour, ":", marker, markerfacecolor="white")
        x, y = draw(
            [(name, 1.0) for name in LAMBDAS], "λ from 0 up", "black", "-", "o", linewidth=2.5, zorder=4
        )
        for k in (3, 4, 5):
            lam = list(LAMBDAS.values())[k]
            offset, ha = ((-8, 6), "right") if lam == 1 else ((0, 10), "left")
            axes.annotate(f"λ {lam:g}", (x[k], y[k]), offset, textcoords="offset points", ha=ha)
        axes.axhline(0, color="black", linewidth=1)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(xlim=(-1.9, 10.6), xlabel="cost: points lost in the same site")
    panels[0].set(ylim=(-6, 5), ylabel="gain over ERM (points)", title="Gain in the OOD mean")
    panels[1].set(ylim=(-2, 14), title="Gain where the place misleads")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
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


def domain_gains(pairs):
    """Bars of paired differences in the four domains, with standard errors, a panel for each pair.

    pairs: title -> (colour, differences (4, 5)).
    """
    figure, panels = plt.subplots(1, len(pairs), figsize=(10.5, 3.9))
    for axes, (title, (colour, values)) in zip(panels, pairs.items()):
        mean, error = values.mean(1), values.std(1) / math.sqrt(values.shape[1])
        axes.bar(range(4), mean, 0.6, yerr=error, color=colour, capsize=4)
        axes.axhline(0, color="black", linewidth=1)
        axes.set_xticks(range(4), [domain.replace(" ", "\n") for domain in DOMAINS])
        axes.set(title=title, ylabel="difference (points)")
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


def ood_of(lams):
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


# ------------------------------------------------------------------------------------------------- exercises


if __name__ == "__main__":
    style()
    (ROOT / "docs").mkdir(exist_ok=True)
    diagram().savefig(ROOT / "docs" / "method.png", dpi=100)
