#!/usr/bin/env python3
"""What takes too long for a notebook: the trainings behind README and notebooks 3, 5 and 6, on five seeds.

    python notebooks/record.py              everything, in more than an hour on two cores
    python notebooks/record.py NAME ...     some of it: notebooks, trust, clips, or one of RUNS

`notebooks` trains and evaluates with drm_min's own functions and writes two files to notebooks/recorded/:
metrics.json (every metric that the notebooks show) and predictions.safetensors (what the models of the first
seed say of each test image). `load` and `load_predictions` read them back. RUNS are the commands of README's
tables and of toy/tradeoff.png; of each, results.json without what no table shows is kept as NAME.json, and
`load_run` gives it back, for support.report to print. `trust` and `clips` are described where they are made.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import drm_min
from notebooks.helpers import (
    ALPHAS,
    BETAS,
    FOLDER,
    LAMBDAS,
    ROOT,
    SEEDS,
    TRAININGS,
    WITH_ALPHAS,
    beta_of,
    load_run,
)
from support import report
from support.errors import markdown, write
from support.targets import posterior_targets
from support.texts import prompts_of
from support.weights import load_clip

DESCRIPTIONS = ("toy", "toy.shuffled", "toy.context")
WITH_PREDICTIONS = (*LAMBDAS, "shuffled", "context")
KEPT = ("accuracy", "log_loss", "accuracy_visible", "accuracy_hidden")

# What README's tables show: name -> the words after `python drm_min.py`
RIVALS = "zero-shot erm erm-mixed ensemble wrm drm dual".split()
TARGETS = "posterior bootstrap normalized softmax label oracle".split()  # onehot is the method dual
RUNS = {
    "rivals": ["--method", *RIVALS, "flyp", "--alpha", "0.3", "0.5", "0.7", "1", "--seeds", "5"],
    "targets": ["--method", *RIVALS, "--core-targets", *TARGETS, "--seeds", "5"],
    "sweep": ["--sweep", "0.1", "0.3", "3", "10", "--seeds", "5"],
}
RUNS["targets-fog"] = ["--dataset", "toy-fog", *RUNS["targets"]]
TRUSTS = (0.5, 0.8)  # beside 0 (normalized), the default, and 1 (onehot)


def digest(path):
    """sha256 of a file of the repository, so that a test can say when what was recorded no longer fits."""
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def inputs():
    """What the recorded numbers depend on, beside the code."""
    config = dataclasses.asdict(drm_min.Config())
    recipe = ("epochs", "batch_size", "lr", "warmup", "weight_decay", "template")
    files = ["toy/world.py", "toy/clip/open_clip_model.safetensors"]
    files += [f"descriptions/{which}.json" for which in DESCRIPTIONS]
    return {
        "recipe": {key: config[key] for key in recipe},
        "trainings": {name: list(map(str, training)) for name, training in TRAININGS.items()},
        "sha256": {path: digest(path) for path in files},
    }


def job_of(name, training, seed):
    """A training as drm_min knows it: lambda 0 is the default head alone, infinity the concept head alone."""
    lam, estimator, _, loss = training
    if lam == 0:
        return drm_min.Job(name, seed, ("default",), 0.0, 1.0, None, loss)
    if lam == math.inf:
        return drm_min.Job(name, seed, ("concept",), 1.0, 0.0, estimator, loss)
    return drm_min.Job(name, seed, ("default", "concept"), lam, 1 / (1 + lam), estimator, loss)


def setups(config, zero_shot, tokenizer, seed):
    """Descriptions -> what the trainings of a seed share: its images, and prompts from those descriptions."""
    data = drm_min.load_data(config, seed)
    features = drm_min.encode_images(zero_shot, data.train)
    made = {}
    for which in DESCRIPTIONS:
        with_texts = dataclasses.replace(config, descriptions=f"descriptions/{which}.json")
        texts = prompts_of(with_texts, data.classes)
        prompts = [drm_min.tokenize(tokenizer, of_head.values()) for of_head in texts.values()]
        prompts = drm_min.Prompts(*prompts)
        made[which] = drm_min.Setup(config, None, data, zero_shot, tokenizer, texts, prompts, features)
    return made


def rows_of(model, setup, betas, **about):
    """The rows of a model, one for each beta, with the metrics that are kept."""
    rows = []
    p = drm_min.predict_all(model, setup.data, setup.prompts)
    for result in (drm_min.evaluate(p, setup.data, beta) for beta in betas):
        splits = {}
        for split, metrics in ({"validation": result["validation"]} | result["domains"]).items():
            splits[split] = {key: round(metrics[key], 5) for key in KEPT}
        rows.append({**about, "beta": result["beta"], "splits": splits})
    return rows


def record(folder=FOLDER, seeds=SEEDS, trainings=TRAININGS, **options):
    """Train and evaluate everything; write both files to `folder`. `options` are drm_min's."""
    config = drm_min.Config(**options)
    zero_shot, tokenizer = load_clip(config.model)
    rows, qualities, predictions, started = [], [], {}, time.perf_counter()
    for seed in seeds:
        of_texts = setups(config, zero_shot, tokenizer, seed)
        rows += rows_of(zero_shot, of_texts["toy"], BETAS, training="zero-shot", alpha=0.0, seed=seed)
        for name, training in trainings.items():
            setup, job = of_texts[training[2]], job_of(name, training, seed)
            targets, quality = drm_min.targets_for(job, setup)
            if quality is not None:
                qualities.append({"training": name, "seed": seed} | quality)
            model = copy.deepcopy(zero_shot)
            losses = drm_min.train(model, setup.data.train, setup.prompts, targets, job, config)
            print(f"{name}, seed {seed}: loss {losses[0]:.3f} -> {losses[-1]:.3f}", flush=True)
            rows += rows_of(model, setup, BETAS, training=name, alpha=1.0, seed=seed)
            for alpha in ALPHAS if name in WITH_ALPHAS else ():
                between = drm_min.interpolate_weights(zero_shot, model, alpha)
                rows += rows_of(between, setup, [beta_of(name)], training=name, alpha=alpha, seed=seed)
            if name in WITH_PREDICTIONS and seed == seeds[0]:
                for domain, split in setup.data.tests.items():
                    p = torch.stack(drm_min.predict(model, split, setup.prompts))  # (2, N, C), a head each
                    predictions[f"{name}/{domain}"] = p.log().half()  # logarithms keep what is small
    about = {
        "seeds": list(seeds),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
    }
    save(folder, {"about": inputs() | about, "core_targets": qualities}, rows, predictions)


def save(folder, head, rows, predictions):
    """Both files; metrics.json has a line for each row."""
    lines = [json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows]
    text = json.dumps(head, allow_nan=False)[:-1] + ',\n"rows": [\n' + ",\n".join(lines) + "\n]}\n"
    folder.mkdir(exist_ok=True)
    write(folder / "metrics.json", lambda path: path.write_text(text, encoding="utf-8"))
    write(folder / "predictions.safetensors", lambda path: safetensors.torch.save_file(predictions, path))


# ------------------------------------------------------------------------------------------ README's tables


def record_run(name, folder=FOLDER):
    """One of RUNS, as drm_min makes it -> what is kept of its results.json. The sweep's picture too."""
    config = drm_min.command_line(drm_min.Config, RUNS[name], "drm_min.py", "")
    made = drm_min.run(config)
    if name == "sweep":
        report.plot_tradeoff(made).savefig(ROOT / "toy" / "tradeoff.png", dpi=150)
    keep(made, folder / f"{name}.json")
    print("\n".join(report.table(made)))


def keep(made, path):
    """What tables show of a report, a line for each row of results."""
    rows = []
    for row in made["results"]:
        splits = {"validation": row["validation"], **row["domains"]}
        short = {name: {key: round(m[key], 6) for key in KEPT} for name, m in splits.items()}
        row = row | {"validation": short.pop("validation"), "domains": short, "seconds": None}
        rows.append(json.dumps(row, separators=(",", ":"), allow_nan=False))
    config = {"seeds": made["config"]["seeds"], "dataset": made["config"]["dataset"]}
    about = {key: made["about"][key] for key in ("metrics", "ceilings", "torch")}
    head = json.dumps({"config": config, "about": about, "recorded": inputs()["sha256"]})
    text = head[:-1] + ',\n"results": [\n' + ",\n".join(rows) + "\n]}\n"
    write(path, lambda path: path.write_text(text, encoding="utf-8"))


def write_rows(rows, path):
    """Dicts as a JSON list, a line each."""
    text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
    write(path, lambda path: path.write_text(text, encoding="utf-8"))


def record_trust(folder=FOLDER, seeds=SEEDS, trusts=TRUSTS):
    """`posterior` targets whose trust in the label is another: DRM and WRM, in clear air and in fog."""
    rows = []
    for trust in trusts:
        drm_min.REFINED[f"trust {trust}"] = functools.partial(posterior_targets, trust=trust)
    for dataset in ("toy", "toy-fog"):
        config = drm_min.Config(dataset=dataset)
        setup = drm_min.set_up(config)
        for seed in seeds:
            data = drm_min.load_data(config, seed)
            features = drm_min.encode_images(setup.zero_shot, data.train)
            setup = setup._replace(data=data, features=features)
            for trust in trusts:
                for method, lam in (("wrm", math.inf), ("drm", 1.0)):
                    job = job_of(method, (lam, f"trust {trust}", "toy", "ce"), seed)
                    [made] = drm_min.fine_tune(job, setup)
                    row = {"dataset": dataset, "seed": seed, "trust": trust, "method": method}
                    row |= made["summary"]
                    print(row, flush=True)
                    rows.append(row)
    write_rows(rows, folder / "trust.json")


# ---------------------------------------------------------------------------------------- more than one CLIP

HEADLINE = ("zero-shot", "erm", "ensemble", "wrm", "drm")  # what the toy job trains
CLIPS = (0, 1, 2)  # seeds of toy/pretrain.py; 0 made the one in toy/clip


def record_clips(folder=FOLDER, seeds=SEEDS):
    """The headline rows on tiny CLIPs that were pre-trained with other seeds, each over five seeds.

    Those of toy/clip are in the runs of the targets, and are taken from there.
    """
    with tempfile.TemporaryDirectory() as place:
        rows = []
        for clip in CLIPS:
            path = Path(place) / f"clip-{clip}"
            if clip:
                pretrain = [sys.executable, ROOT / "toy" / "pretrain.py", "--seed", clip, "--out", path]
                subprocess.run(list(map(str, pretrain)), check=True, stdout=subprocess.DEVNULL)
            for dataset, run in (("toy", "targets"), ("toy-fog", "targets-fog")):
                options = {"dataset": dataset, "method": HEADLINE, "seeds": len(seeds)}
                if clip:
                    results = drm_min.run(drm_min.Config(model=f"local-dir:{path}", **options))["results"]
                else:
                    results = load_run(run, folder)["results"]
                mine = [row for row in results if row["method"] in HEADLINE]
                mine = [row for row in mine if row["estimator"] in (None, "posterior")]
                for name, of_seeds in report.by_name(mine).items():
                    means = {}
                    for key in ("ood_mean_accuracy", "worst_log_loss"):
                        means[key] = round(statistics.fmean(report.column(of_seeds, key)), 6)
                    rows.append({"clip": clip, "dataset": dataset, "row": name, **means})
    write_rows(rows, folder / "clips.json")
    print("\n".join(clips_table(folder)))


def clips_table(folder=FOLDER):
    """OOD mean (worst log loss) of the headline rows for each CLIP, and the mean over CLIPs, as lines."""
    found = {}
    for row in json.loads((folder / "clips.json").read_text(encoding="utf-8")):
        for key in ("ood_mean_accuracy", "worst_log_loss"):
            found.setdefault((row["dataset"], row["row"]), {}).setdefault(key, []).append(row[key])
    lines = [["data", "method", *(f"CLIP {clip}" for clip in CLIPS), "mean ± s.d. over CLIPs"]]
    for (dataset, name), of_clips in found.items():
        accuracy, loss = of_clips["ood_mean_accuracy"], of_clips["worst_log_loss"]
        each = [f"{100 * a:.1f} ({b:.2f})" for a, b in zip(accuracy, loss)]
        lines.append([dataset, name, *each, f"{report.cell(accuracy, 100)} ({report.cell(loss, digits=2)})"])
    return markdown(lines)


PARTS = {"notebooks": record, "trust": record_trust, "clips": record_clips}
PARTS |= {name: functools.partial(record_run, name) for name in RUNS}


if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
