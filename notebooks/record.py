#!/usr/bin/env python3
"""What takes too long for a notebook: the trainings behind notebooks 3, 5 and 6, each on five seeds.

`python notebooks/record.py` trains and evaluates them with drm_min's own functions, and writes two files to
notebooks/recorded/: metrics.json (every metric that the notebooks show) and predictions.safetensors (what the
models of the first seed say of each test image). `load` and `load_predictions` read them back.
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

import drm_min
from support.errors import write
from support.texts import prompts_of
from support.weights import load_clip

FOLDER = Path(__file__).with_name("recorded")
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
    **{name: (lam, "softmax", "toy", "ce") for name, lam in LAMBDAS.items()},
    **{name: (1.0, name, "toy", "ce") for name in ("onehot", "normalized", "label", "oracle")},
    **{name: (1.0, "softmax", "toy." + name, "ce") for name in ("shuffled", "context")},
    "wrm-oracle": (math.inf, "oracle", "toy", "ce"),
    "flyp": (0.0, None, "toy", "flyp-released"),
}
DESCRIPTIONS = ("toy", "toy.shuffled", "toy.context")
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
    for result in drm_min.evaluate(model, setup.data, setup.prompts, betas):
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


def load(folder=FOLDER):
    """-> {"about": ..., "core_targets": [...], "rows": [{training, alpha, seed, beta, splits}, ...]}.

    `splits` are validation and the four domains, {split: {metric: value}}; accuracies are 0 to 1, log losses
    in nats.
    """
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def load_predictions(folder=FOLDER):
    """-> {training: {domain: (p_default (N, C), p_concept (N, C))}}, double precision, of the first seed."""
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


if __name__ == "__main__":
    record()
