"""What a run leaves: results.json, a table, pictures of the trade-off and of the losses in training."""

import dataclasses
import hashlib
import io
import json
import math
import statistics
from collections import Counter

import open_clip
import torch

from support.checkpoints import READ_OF_ERM, about_job, model_folder, read_history
from support.errors import first_of, log, make_folder, markdown, print_lines, write, write_json
from support.weights import pick_precision

# method -> its name in tables, its colour (Okabe-Ito: safe for colour-blind readers), its marker in pictures
METHODS = {
    "zero-shot": ("zero-shot", "#777777", "P"),
    "erm": ("ERM", "#D55E00", "s"),
    "erm-mixed": ("ERM, both heads mixed", "#D55E00", "X"),
    "ensemble": ("ERM + zero-shot concept head", "#56B4E9", "*"),
    "wrm": ("WRM", "#009E73", "^"),
    "drm": ("DRM", "#0072B2", "o"),
    "dual": ("dual one-hot", "#CC79A7", "D"),
    "flyp": ("FLYP", "#E69F00", "v"),
}
TWO_MODELS = {"ensemble"}  # are kept, and each reads every image; the others' heads share one model
# beta -> which head of the zero-shot model is evaluated, and its marker
ZERO_SHOT = {1.0: ("default head", "<"), 0.0: ("concept head", ">")}


def show(report, out):
    """Write results.json, print the table, draw the pictures. Raises BadInput where one cannot be written.

    A picture that cannot be drawn costs nothing else: a line says why it is not there.
    """
    write_json(out / "results.json", report)
    pictures = {"tradeoff.png": plot_tradeoff} if has_tradeoff(report) else {}
    if any(history[-1]["epoch"] > 1 for history in histories_of(report, out).values()):
        pictures["history.png"] = plot_history
    print_lines(*table(report), *notes(report))
    written, missing = ["results.json"], {}
    for name, draw in pictures.items():
        try:
            drawn = io.BytesIO()
            draw(report, out).savefig(drawn, dpi=150, format="png")
        except Exception as e:  # matplotlib is not there, or stumbles over its settings, fonts or cache
            missing.setdefault(" ".join(f"{type(e).__name__}: {e}".split())[:300], []).append(name)
        else:
            write(out / name, lambda path, drawn=drawn: path.write_bytes(drawn.getvalue()))
            written.append(name)
    for why, names in missing.items():
        log(f"no {', '.join(names)}: {why}")
    print_lines("written: " + ", ".join(str(out / name) for name in written))


def make(rows, setup):
    """The report of a run, ready for JSON."""
    config, data = setup.config, setup.data
    device = next(setup.zero_shot.parameters()).device
    of_texts = ("model", "pretrained", "descriptions", "template", "concept_template")
    about = {key: getattr(config, key) for key in of_texts}
    about |= {"torch": torch.__version__, "open_clip": open_clip.__version__, "device": str(device)}
    about["precision"] = pick_precision(config.precision, device)
    about["prompts_sha256"] = hashlib.sha256(json.dumps(setup.texts).encode()).hexdigest()
    about |= {"classes": data.classes, "metrics": data.metrics, "ceilings": data.ceilings}
    return {"config": dataclasses.asdict(config), "about": about, "results": rows}


def keep(rows, setup):
    """What is measured so far, in results.json: a run may be stopped. Raises BadInput."""
    if setup.out is not None:
        write_json(setup.out / "results.json", make(rows, setup))


def make_folders(out, jobs):
    """Before any training, so that none is lost to a folder that cannot be written. Raises BadInput."""
    if out is not None:
        make_folder(out)
        for job in jobs:
            make_folder(model_folder(out, **about_job(job)), "model")


def say_what_was_read(dataset, data):
    """Sizes and names, which domains are shifted, and groups without images."""
    for name, split in data.tests.items():
        empty = [group for group, members in split.groups.items() if not members.any()]
        if empty:
            log(f"{name}: no images of {', '.join(empty)}, so no accuracy there")
    splits = {"train": data.train, "val": data.val, **data.tests}
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    inside, *shifted = data.tests
    log(f"{dataset}: {len(data.classes)} classes ({first_of(data.classes.values(), 20)}); images: {counts}")
    inside = inside if len(data.tests[inside]) else "none"
    log(f"in distribution: {inside}; shifted: {', '.join(shifted) or 'none'}")


def say_what_is_to_come(setup, jobs, batches_of):
    """Device, precision, and the work ahead; batches_of: drm_min.shuffled_batches."""
    device, n = next(setup.zero_shot.parameters()).device, len(setup.data.train)
    precision = pick_precision(setup.config.precision, device)
    whole = Counter(job.loss != "flyp-released" for job in jobs)  # FLYP's last batch may be a smaller one
    work = [f"{whole[kind]} x {len(batches_of(n, setup.config, 0, kind))} steps" for kind in whole]
    log(f"device {device}, precision {precision}; to train: {' and '.join(work) or 'nothing'}")


def say_accuracy(name, features, head, labels, of="training"):
    """How good a zero-shot head is, beside chance too: features (N, D), head (C, D), labels (N,)."""
    right = 0
    for part, y in zip(features.split(8192), labels.to(features.device).split(8192)):
        right += int(((part.to(head) @ head.T).argmax(1) == y).sum())
    log(f"zero-shot {name} head: {100 * right / len(labels):.1f} % right on {len(labels)} {of} images")
    n, chance = len(labels), 1 / len(head)
    if name == "concept" and right < n * chance + 2 * math.sqrt(n * chance * (1 - chance)):
        what = "whether --descriptions are of these classes, labels are right, and --model knows such images"
        log(f"warning: the concept head is no better than chance ({100 * chance:.1f} %); check {what}")


def say_quality(quality):
    """How good core targets are."""
    if quality is None:
        return
    said = f"core targets `{quality['estimator']}`: the true class gets {quality['true_class']:.3f}"
    if quality.get("kl_from_oracle") is not None:
        said += f"; KL(oracle || targets) {quality['kl_from_oracle']:.3f} nats"
    log(said)


def row_name(row, estimator=None):
    """A row of results in words, with the estimator of its core targets if one is given."""
    if row["method"] == "zero-shot":
        return "zero-shot, " + ZERO_SHOT.get(row["beta"], ("both mixed",))[0]
    lam = f", lambda {row['lam']:g}" if row["method"] in ("drm", "dual") else ""
    wise = f", WiSE-FT {row['alpha']:g}" if row["alpha"] < 1 else ""
    return METHODS[row["method"]][0] + lam + (f", {estimator}" if estimator else "") + wise


def estimators_of(results):
    """Those that --core-targets asked for, in its order."""
    return list(dict.fromkeys(row["estimator"] for row in results if row["method"] in ("wrm", "drm")))


def by_name(results):
    """Rows of all seeds -> row name -> its rows, one per seed, in the order of the first seed."""
    grouped, several = {}, len(estimators_of(results)) > 1
    for row in results:
        told_apart = several and row["method"] in ("wrm", "drm")
        grouped.setdefault(row_name(row, row["estimator"] if told_apart else None), []).append(row)
    return grouped


def words(metric):
    """worst_region_accuracy -> worst region accuracy."""
    return metric.replace("_", " ").replace(" f1", " F1")


def spread(values):
    """-> (mean, standard deviation over seeds; 0 for a single one)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def cell(values, scale=1.0, digits=1):
    """Values of the seeds as a text; "-" where no domain but the first counts, or no group in it."""
    if not values or None in values:
        return "-"
    mean, sd = spread([scale * v for v in values])
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if len(values) > 1 else "")


def best_wise_ft(grouped, metric):
    """The names of the rows whose WiSE-FT alpha below 1 is best on validation: no test image chooses it."""
    best = {}
    for name, rows in grouped.items():
        if 0 < rows[0]["alpha"] < 1:
            score = statistics.fmean(row["validation"][metric] for row in rows)
            training = rows[0]["method"], rows[0]["lam"], rows[0]["estimator"]
            best[training] = max(best.get(training, (score, name)), (score, name), key=lambda pair: pair[0])
    return {name for _, name in best.values()}


def table(report):
    """The results as lines of a Markdown table: accuracies and F1 in %, log losses in nats."""
    grouped, ceilings = by_name(report["results"]), report["about"]["ceilings"]
    id_metric, ood_metric = report["about"]["metrics"]
    metric_of = dict.fromkeys(report["results"][0]["domains"], ood_metric)
    metric_of[next(iter(metric_of))] = id_metric  # the first domain is in distribution
    best = best_wise_ft(grouped, id_metric)
    drm = [rows for rows in grouped.values() if rows[0]["method"] == "drm" and rows[0]["alpha"] == 1]
    if id_metric == ood_metric:
        heading = [f"{words(id_metric)} % (log loss)", *metric_of]
    else:
        heading = ["% (log loss)", *(f"{domain}: {words(metric)}" for domain, metric in metric_of.items())]
    lines = [heading + ["OOD mean", "OOD worst", "worst log loss", "models"]]
    for name, rows in grouped.items():
        line = [name + " *" * (name in best)]
        for domain, metric in metric_of.items():
            measured = [row["domains"][domain] for row in rows]
            losses = cell([m["log_loss"] for m in measured], digits=2)
            line.append(f"{cell([m[metric] for m in measured], 100)} ({losses})")
        line += [cell(column(rows, f"ood_{what}_{ood_metric}"), 100) for what in ("mean", "worst")]
        line += [cell(column(rows, "worst_log_loss"), digits=2), str(1 + (rows[0]["method"] in TWO_MODELS))]
        if report["config"]["seeds"] > 1 and drm and column(rows, f"ood_mean_{ood_metric}"):
            line.append(lead(drm[0], rows, f"ood_mean_{ood_metric}"))
        lines.append(line)
    if len(lines[-1]) > len(lines[0]):
        lines[0].append("DRM's lead in OOD mean ± s.e.")
    if ceilings:
        lines.append(["best possible, domain known", *(f"{100 * c:.1f}" for c in ceilings.values())])
    return markdown(lines)


def column(rows, name):
    """A number of the summary, for each seed; [] where there is none."""
    return [row["summary"][name] for row in rows if name in row["summary"]]


def lead(drm, rows, name):
    """By how much DRM is better: seeds pair the rows, as they have the same images in the same order."""
    leads = [100 * (a - b) for a, b in zip(column(drm, name), column(rows, name))]
    mean, sd = spread(leads)
    return "" if rows is drm else f"{mean:+.2f} ± {sd / math.sqrt(len(leads)):.2f}"


def notes(report):
    """What the table's reader may ask, as lines of text."""
    lines = []
    if any(0 < row["alpha"] < 1 for row in report["results"]):
        metric = words(report["about"]["metrics"][0])
        lines.append(f"* of the WiSE-FT weights below 1, the one with the best validation {metric}")
    for name, metrics in report["results"][0]["domains"].items():
        counts = ", ".join(f"{k.removeprefix('n_')} {n}" for k, n in metrics.items() if k.startswith("n_"))
        lines.append(f"{name}: {metrics['n']} images" + (f" ({counts})" if counts else ""))
    if any(row["method"] in TWO_MODELS for row in report["results"]):
        lines.append("models: how many are kept; each reads every image once, however many heads it has")
    return lines + ["log losses in nats; ± is the standard deviation over seeds"]


def has_tradeoff(report):
    """There is none where a domain has no metric, or none is shifted."""
    first, *shifted = report["results"][0]["domains"].values()
    id_metric, metric = report["about"]["metrics"]
    there = first[id_metric] is not None and all(metrics[metric] is not None for metrics in shifted)
    return bool(shifted) and there


def plot_tradeoff(report, _=None):
    """The trade-off -> Figure: the path of lambda from ERM to WRM, and every other row beside it."""
    grouped, (first, *_, last) = by_name(report["results"]), report["results"][0]["domains"]
    id_metric, ood_metric = report["about"]["metrics"]
    here, there = (drawable(domain, report).replace("$", r"\$") for domain in (first, last))  # no mathematics
    name_of_mean = f"ood_mean_{ood_metric}"
    risk = "worst-domain risk: log loss (nats), lower is better", lambda r: r["summary"]["worst_log_loss"]
    mean = f"mean out-of-distribution {words(ood_metric)} (%)", lambda r: 100 * r["summary"][name_of_mean]
    name = f"in-distribution {words(id_metric)}, `{here}` (%)"
    inside = name, lambda r: 100 * r["domains"][first][id_metric]
    name = f"{words(ood_metric)} under shift, `{there}` (%)"
    shifted = name, lambda r: 100 * r["domains"][last][ood_metric]
    figure = new_figure(11, 5.4)
    left, right = figure.subplots(1, 2)
    legend = draw_panel(left, grouped, risk, mean)
    draw_panel(right, grouped, inside, shifted)
    ceiling = report["about"]["ceilings"].get(last)
    if ceiling:
        right.axhline(100 * ceiling, color="black", linestyle=":", linewidth=1)
        at = {"xy": (0.02, 100 * ceiling), "xycoords": ("axes fraction", "data"), "fontsize": 9}
        right.annotate(f"best possible on `{there}`", xytext=(0, 4), textcoords="offset points", **at)
    n = report["config"]["seeds"]
    seeds = f"mean ± s.d. of {n} seeds" if n > 1 else "one seed"
    figure.suptitle(f"ERM-vs-WRM trade-off, {report['config']['dataset']}: {seeds}")
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def drawable(domain, report):
    """The name of a domain, or its place in the table where the picture's font has not all its signs."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    signs = get_font(findfont(FontProperties())).get_charmap()
    if all(ord(sign) in signs for sign in domain):
        return domain
    number = list(report["results"][0]["domains"]).index(domain) + 1
    log(f"tradeoff.png calls {domain} domain {number}, its place in the table, as its font lacks signs of it")
    return f"domain {number}"


def new_figure(width, height):
    """A matplotlib Figure without a backend and global state; imported here, as nothing else needs it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_panel(axes, grouped, x, y):
    """One panel; x and y are (name, function of a row) -> {name in the legend: what is drawn}."""
    legend, path_of_lambda = {}, []
    first, *others = estimators_of(rows[0] for rows in grouped.values()) or [None]
    for name, rows in grouped.items():
        (at_x, sd_x), (at_y, sd_y) = (spread([of(row) for row in rows]) for _, of in (x, y))
        method, alpha = rows[0]["method"], rows[0]["alpha"]
        series, colour, marker = METHODS[method]
        if method == "zero-shot":
            series, marker = name, ZERO_SHOT.get(rows[0]["beta"], (None, marker))[1]
        wise = method != "zero-shot" and alpha < 1  # small and hollow
        look = {"markerfacecolor": "white" if wise else colour, "markersize": 5 if wise else 9, "zorder": 3}
        drawn = axes.errorbar(at_x, at_y, sd_y, sd_x, fmt=marker, color=colour, linewidth=1, **look)
        legend.setdefault(series + ", WiSE-FT" * wise, drawn)
        if rows[0]["estimator"] in others and method != "dual" and alpha == 1:
            at = {"textcoords": "offset points", "fontsize": 7}
            axes.annotate(rows[0]["estimator"], (at_x, at_y), (7, -9), **at)
        elif method in ("erm", "drm", "wrm") and alpha == 1:
            path_of_lambda.append((math.inf if method == "wrm" else rows[0]["lam"], at_x, at_y))
    if len(path_of_lambda) > 1:
        _, xs, ys = zip(*sorted(path_of_lambda))
        legend["path of λ, from ERM to WRM"] = axes.plot(xs, ys, "k-", alpha=0.6, lw=1)[0]
    for lam, at_x, at_y in path_of_lambda:  # the two branches of the path never collide
        offset, align = ((9, 5), "left") if lam <= 1 else ((-9, -13), "right")
        text = "λ = ∞" if lam == math.inf else f"λ = {lam:g}"
        axes.annotate(text, (at_x, at_y), offset, textcoords="offset points", fontsize=9, ha=align)
    axes.set(xlabel=x[0], ylabel=y[0])
    axes.grid(alpha=0.25)
    axes.margins(0.12)
    return legend


def histories_of(report, out):
    """(name, colour) of each training of a run -> its history, one dict a step."""
    histories = {}
    for row in report["results"]:
        row = row | {"method": "erm"} if row["method"] in READ_OF_ERM else row
        file = model_folder(out, **row) / "model" / "history.csv"
        trained = row["method"] != "zero-shot" and not report["config"].get("eval_only")
        if trained and file.is_file():
            name = f"{row_name(row | {'alpha': 1}, row['estimator'])}, seed {row['seed']}"
            histories[name, METHODS[row["method"]][1]] = read_history(file)
    return histories


def plot_history(report, out):
    """Each training's loss, its two terms, and what validation said, over the epochs -> Figure."""
    titles = {"loss": "loss", "erm_loss": "ERM term", "wrm_loss": "WRM term", "validation": "validation"}
    histories = histories_of(report, out)
    measured = [name for name in titles if any(row[name] for own in histories.values() for row in own)]
    figure, handles = new_figure(3.4 * len(measured), 4), {}
    for axes, column in zip(figure.subplots(1, len(measured)), measured):
        for (name, colour), history in histories.items():
            rows = [row for row in history if row[column]]  # the WRM term of ERM is 0, and not drawn
            epochs = [row["step"] * history[-1]["epoch"] / history[-1]["step"] for row in rows]
            values = [row[column] for row in rows]
            if column != "validation":  # means of ten steps
                values = [statistics.fmean(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
            if rows:
                style = {"color": colour, "linewidth": 1.2, "alpha": 0.8}
                handles[name] = axes.plot(epochs, values, ".-" if column == "validation" else "-", **style)[0]
        axes.set(title=titles[column], xlabel="epoch")
        axes.grid(alpha=0.25)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
