#!/usr/bin/env python3
"""What takes too long for a notebook: the trainings behind notebooks 3, 5 and 6, each on five seeds.

`python notebooks/record.py` trains and evaluates them with drm_min's own functions, and writes two files to notebooks/recorded/:
metrics.json (every metric that the notebooks show) and predictions.safetensors (what the models of the first seed say of each
test image). `load` and `load_predictions` read them back.
"""
import copy
import dataclasses
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import drm_min  # noqa: E402
from describe import load_descriptions, write

FOLDER = Path(__file__).with_name("recorded")
SEEDS = range(5)
LAMBDAS = {"erm": 0.0, "drm-0.1": 0.1, "drm-0.3": 0.3, "drm-1": 1.0, "drm-3": 3.0, "drm-10": 10.0, "wrm": math.inf}  # the path
TRAININGS = {  # name -> (lambda, core targets, descriptions, form of the loss)
    **{name: (lam, "softmax", "toy", "ce") for name, lam in LAMBDAS.items()},
    **{name: (1.0, name, "toy", "ce") for name in ("onehot", "normalized", "label", "oracle")},
    **{name: (1.0, "softmax", "toy." + name, "ce") for name in ("shuffled", "context")},
    "wrm-oracle": (math.inf, "oracle", "toy", "ce"), "flyp": (0.0, None, "toy", "flyp-released")}
BETAS = sorted({i / 10 for i in range(11)} | {round(1 / (1 + lam), 6) for lam in LAMBDAS.values()})
ALPHAS = [i / 10 for i in range(10)]  # WiSE-FT; 1 is the training itself
WITH_ALPHAS = ("erm", "drm-1", "flyp")
WITH_PREDICTIONS = (*LAMBDAS, "shuffled", "context")
KEPT = ("accuracy", "log_loss", "accuracy_visible", "accuracy_hidden")


def beta_of(name):
    """The weight of the default head that belongs to a training; a single head is not mixed."""
    return round(1 / (1 + TRAININGS[name][0]), 6)


def digest(path):
    """sha256 of a file of the repository, so that a test can say when what was recorded no longer fits."""
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def inputs():
    """What the recorded numbers depend on, beside the code."""
    config = dataclasses.asdict(drm_min.Config())
    return dict(recipe={key: config[key] for key in ("epochs", "batch_size", "lr", "warmup", "weight_decay", "template")},
                trainings={name: list(map(str, training)) for name, training in TRAININGS.items()},
                sha256={path: digest(path) for path in ("toy/world.py", "toy/clip/open_clip_model.safetensors", "descriptions/toy.json",
                                                        "descriptions/toy.shuffled.json", "descriptions/toy.context.json")})


def record(folder=FOLDER, seeds=SEEDS, trainings=TRAININGS, **options):
    """Train and evaluate everything; write metrics.json and predictions.safetensors to `folder`. `options` are drm_min's."""
    config = drm_min.Config(**options)
    zero_shot, tokenizer = drm_min.load_clip(config.model)
    rows, qualities, predictions, started = [], [], {}, time.perf_counter()
    for seed in seeds:
        data = drm_min.load_data(config, seed)
        default = drm_min.tokenize(tokenizer, [[t.format(name) for t in config.template] for name in data.classes.values()])
        concepts = {which: drm_min.tokenize(tokenizer, load_descriptions(ROOT / f"descriptions/{which}.json", data.classes))
                    for which in ("toy", "toy.shuffled", "toy.context")}

        def add(model, texts, betas, **about):
            for result in drm_min.evaluate(model, data, *texts, betas):
                splits = {"validation": result["validation"]} | result["domains"]
                rows.append(about | dict(seed=seed, beta=result["beta"],
                                         splits={s: {k: round(m[k], 5) for k in KEPT} for s, m in splits.items()}))

        add(zero_shot, (default, concepts["toy"]), BETAS, training="zero-shot", alpha=0.0)
        for name, (lam, estimator, which, form) in trainings.items():
            texts, targets = (default, concepts[which]), None
            if lam > 0:
                _, features, labels, head, scale = drm_min.survey(zero_shot, data, texts, config)
                targets = drm_min.core_targets(estimator, features, labels, head, scale, data.train.oracle)
                quality = drm_min.target_quality(estimator, targets, labels, data.train.oracle)
                qualities.append(dict(training=name, seed=seed) | quality)
            model = copy.deepcopy(zero_shot)
            drm_min.train(model, data.train, *texts, targets, config, lam, form, seed, f"{name}, seed {seed}")
            add(model, texts, BETAS, training=name, alpha=1.0)
            for alpha in ALPHAS if name in WITH_ALPHAS else ():
                add(drm_min.interpolate_weights(zero_shot, model, alpha), texts, [beta_of(name)], training=name, alpha=alpha)
            if name in WITH_PREDICTIONS and seed == seeds[0]:
                for domain, split in data.tests.items():  # logarithms keep what is small in half precision
                    p = torch.stack(drm_min.predict(model, split, *texts))  # (2, N, C): default head, concept head
                    predictions[f"{name}/{domain}"] = p.log().half()
    about = inputs() | dict(seeds=list(seeds), torch=torch.__version__, seconds=round(time.perf_counter() - started))
    folder.mkdir(exist_ok=True)
    write(folder / "metrics.json", lambda path: path.write_text(
        json.dumps(dict(about=about, core_targets=qualities), allow_nan=False)[:-1] + ',\n"rows": [\n'
        + ",\n".join(json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows) + "\n]}\n", encoding="utf-8"))
    write(folder / "predictions.safetensors", lambda path: safetensors.torch.save_file(predictions, path))


def load(folder=FOLDER):
    """-> {"about": ..., "core_targets": [...], "rows": [{training, alpha, seed, beta, splits: {split: {metric: value}}}, ...]}.

    `splits` are validation and the four domains; accuracies are 0 to 1, log losses in nats.
    """
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def load_predictions(folder=FOLDER):
    """-> {training: {domain: (p_default (N, C), p_concept (N, C))}}, in double precision, of the first seed's models."""
    result = {}
    for key, logarithms in safetensors.torch.load_file(folder / "predictions.safetensors").items():
        name, domain = key.split("/")
        result.setdefault(name, {})[domain] = tuple(logarithms.double().softmax(-1))  # half precision's error, normalised away
    return result


def pick(rows, training, beta=None, alpha=1.0):
    """The rows of one training, a seed each; at its own beta, 1 / (1 + lambda), if none is given."""
    beta = beta_of(training) if beta is None else round(beta, 6)
    found = [row for row in rows if (row["training"], row["alpha"]) == (training, alpha) and abs(row["beta"] - beta) < 1e-6]
    if not found:
        raise ValueError(f"{training}, alpha {alpha}, beta {beta}: not recorded; betas: {BETAS}; alphas: {ALPHAS} of {WITH_ALPHAS}")
    return found


if __name__ == "__main__":
    record()
