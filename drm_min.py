#!/usr/bin/env python3
"""Dual Risk Minimization (DRM, arXiv 2411.19757) on one GPU or a laptop, in one file that reads from top to bottom.

A zero-shot model such as CLIP loses robustness when it is fine-tuned: it learns to lean on what merely surrounds a
thing. With x_c the core features of an image x, lambda >= 0 and a source domain s, DRM minimises

    R_DRM(q) = R_s(q) + lambda * R_w(q)
    R_s(q)   = E_s[ -log q(y | x) ]                         empirical risk (ERM), on a head of default prompts
    R_w(q)   = E_s[ -sum_y p_c(y | x) log q(y | x) ]        proxy of the worst-case risk (WRM), on a head of
                                                            descriptions of what each class looks like
and mixes both heads at inference: p = beta * p_default + (1 - beta) * p_concept. p_c(y | x), which stands for
p(y | x_c), is estimated once with the zero-shot model: the core targets.

Letters in the shapes: B batch, N images, C classes, K distinct classes of a batch, T texts, L tokens, D embedding.
"""
import argparse
import copy
import dataclasses
import difflib
import hashlib
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch.func import functional_call
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent


class BadInput(ValueError):
    """A fault of the input, in one line that names the thing, its value and what is allowed (exit code 2)."""


# ---------------------------------------------------------------------------------------------------- configuration

METHODS = {  # method -> its name in tables, its colour (Okabe-Ito) and marker in the picture: safe for colour-blind readers
    "zero-shot": ("zero-shot", "#777777", "P"), "erm": ("ERM", "#D55E00", "s"), "wrm": ("WRM", "#009E73", "^"),
    "drm": ("DRM", "#0072B2", "o"), "dual": ("dual one-hot", "#CC79A7", "D"), "flyp": ("FLYP", "#E69F00", "v")}
CORE_TARGETS = ("softmax", "normalized", "label", "onehot", "oracle")
DATASETS = {  # data set -> its recipe: defaults for the options that are not given
    "toy": dict(method=("zero-shot", "erm", "wrm", "drm"), model="local-dir:toy/clip", descriptions="descriptions/toy.json",
                core_targets="softmax", epochs=6, batch_size=256, lr=7e-4, weight_decay=0.1),
}


def option(kind, help, default=None, many=False, choices=None, low=-math.inf, high=math.inf):
    """A field of Config, with its help, type and allowed values beside it."""
    return field(default=default, metadata=dict(kind=kind, help=help, many=many, choices=choices, low=low, high=high))


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. A field left at None comes from the recipe of the data set. Raises BadInput."""
    dataset: str = option(str, "the data", "toy", choices=tuple(DATASETS))
    method: tuple = option(str, "what to run: zero-shot (no training: each head and their mixture), erm (default head alone), "
                           "wrm (concept head alone on core targets), drm (both), dual (both on the labels: no WRM), flyp "
                           "(FLYP as released: one text per image, all other texts are negatives)", many=True, choices=tuple(METHODS))
    lam: float = option(float, "lambda, the weight of WRM against ERM in drm and dual", 1.0, low=0, high=1e6)
    beta: float = option(float, "weight of the default head at inference, where there are two; 1 / (1 + lambda) if left out",
                         low=0, high=1)
    sweep: tuple = option(float, "further lambdas for drm: the trade-off curve", (), many=True, low=0, high=1e6)
    alpha: tuple = option(float, "WiSE-FT: evaluate (1 - alpha) * zero-shot weights + alpha * fine-tuned ones", (1.0,),
                          many=True, low=0, high=1)
    core_targets: str = option(str, "the estimate of p_c(y | x)", choices=CORE_TARGETS)
    loss: str = option(str, "ce: over all classes; flyp: contrastive, over the classes of the batch", "ce", choices=("ce", "flyp"))
    seed: int = option(int, "first seed: of the images (toy), their order, and what else is random", 0, low=0, high=2**31)
    seeds: int = option(int, "how many seeds, counted from --seed; from two on, results are mean and standard deviation", 1,
                        low=1, high=1000)
    epochs: int = option(int, "passes over the training images", low=1, high=10**6)
    batch_size: int = option(int, "images per step", low=1, high=10**6)
    lr: float = option(float, "peak learning rate of AdamW: a tenth of the run warms up, then a cosine to 0", low=0, high=1e9)
    weight_decay: float = option(float, "weight decay of AdamW, on matrices only", low=0, high=1e6)
    model: str = option(str, "an open_clip model: ViT-B-16, local-dir:FOLDER, hf-hub:OWNER/NAME, ...")
    pretrained: str = option(str, "the tag of its weights, such as openai, or a file; for names without a schema")
    descriptions: str = option(str, "JSON file of concept descriptions")
    device: str = option(str, "cpu, cuda, cuda:1, mps; auto takes the fastest that is there", "auto")
    out: str = option(str, "folder for results.json and tradeoff.png; runs/DATASET if left out")

    def __post_init__(self):
        recipe = DATASETS.get(self.dataset, {}) if isinstance(self.dataset, str) else {}
        for f in dataclasses.fields(self):
            value, name = getattr(self, f.name), "--" + f.name.replace("_", "-")
            value = recipe.get(f.name) if value is None else value
            if f.metadata["many"]:
                values = value if isinstance(value, (tuple, list)) and (value or f.default == ()) else (value,)
                value = tuple(dict.fromkeys(_checked(v, name, **f.metadata) for v in values))
            elif value is not None or f.default is not None or f.name in recipe:
                value = _checked(value, name, **f.metadata)
            object.__setattr__(self, f.name, value)
        object.__setattr__(self, "out", self.out or f"runs/{self.dataset}")

    def beta_of(self, lam):
        """The weight of the default head after training with this lambda; a single head is never mixed."""
        return 1 / (1 + lam) if self.beta is None or lam in (0, math.inf) else self.beta


def _checked(value, name, kind, choices, low, high, **_):
    """-> value as `kind`, or BadInput."""
    if choices and value not in choices:
        raise BadInput(f"{name} {value}: unknown; allowed: {', '.join(choices)}")
    if kind is str:
        ok, allowed = isinstance(value, str) and value != "", "a text"
    else:  # a whole number will do for a float; True is no number, and NaN is in no range
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high and kind(value) == value
        allowed = f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"
    if not ok:
        raise BadInput(f"{name} {value}: must be {allowed}")
    return kind(value)


# ------------------------------------------------------------------------------------------------------------- data

@dataclass
class Split:
    """Images with labels, on the CPU. `groups` name subsets whose accuracy is reported apart."""
    images: torch.Tensor          # (N, 3, H, W) uint8
    labels: torch.Tensor          # (N,) int64, on the CPU
    oracle: torch.Tensor = None   # (N, C) the true p(y | x_c), where the generator knows it
    groups: dict = field(default_factory=dict)  # name -> (N,) bool


class Data(NamedTuple):
    classes: dict     # key (as in the description file) -> name (as in the default prompt), in the order of the labels
    template: str     # default prompt
    train: Split
    val: Split        # in-distribution: the only images that may choose anything
    tests: dict       # domain -> Split; the first is in-distribution, the rest is not
    ceilings: dict    # domain -> the best accuracy without seeing hidden things, where it is known


def load_data(config, seed):
    """The data of a run. On the toy world a seed draws everything anew: training, validation and test images."""
    from toy import world  # here, because toy/pretrain.py imports this file

    def split(n, domain, stream):
        pictures = world.draw(n, domain, torch.Generator().manual_seed(1000 * seed + stream))
        return Split(pictures.images, pictures.things, pictures.oracle, {"visible": pictures.visible, "hidden": ~pictures.visible})

    return Data(classes={name: name for name in world.THINGS}, template="a photo of a {}.",
                train=split(6000, "id", 0), val=split(1000, "id", 1),
                tests={domain: split(2000, domain, 2 + i) for i, domain in enumerate(world.DOMAINS)},
                ceilings={domain: world.ceiling(domain) for domain in world.DOMAINS})


def find(path):
    """A relative path is looked for here first, then beside this file, so that the shipped files are always found."""
    path = Path(path)
    return path if path.exists() or path.is_absolute() else ROOT / path


def load_descriptions(path, classes):
    """Description file -> one list of texts per class, in the order of `classes` (key -> name). Raises BadInput.

    Matched by key, never by position: a key is a class's key or its name. Shapes: {"classes": {key: {"descriptions":
    [text, ...]}}}, and those of the authors' release, {key: text} and {key: [text, ...]}.
    """
    def refuse(what):
        raise BadInput(f"--descriptions {path}: {what}")

    def unique(pairs):  # a JSON object with a key twice would silently keep the last
        repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if repeated:
            refuse(f"{', '.join(map(repr, repeated))} repeated; each class comes once")
        return dict(pairs)

    try:
        content = json.loads(find(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as e:
        refuse(f"cannot be read ({e.strerror}); allowed: a JSON file")
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        refuse(f"not JSON in UTF-8 ({e}); see descriptions/toy.json for the form")
    entries = content.get("classes", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        refuse("holds no classes; allowed: an object of class -> text or list of texts")
    key_of = {name: key for key, name in classes.items()} | {key: key for key in classes}
    entries = unique([(key_of.get(key, key), e.get("descriptions") if isinstance(e, dict) else e) for key, e in entries.items()])
    missing, extra = [k for k in classes if k not in entries], [k for k in entries if k not in classes]
    if missing or extra:
        refuse(f"the classes differ; missing: {', '.join(missing) or 'none'}; not in the data: {', '.join(extra) or 'none'}")
    owner = {}
    for key in classes:
        texts = entries[key] = [entries[key]] if isinstance(entries[key], str) else entries[key]
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)):
            refuse(f"class {key!r} has {str(texts)[:60]!r}; allowed: a text or a list of texts")
        for text in texts:
            if owner.setdefault(" ".join(text.lower().split()), key) != key:  # as the tokenizer reads it
                refuse(f"class {key!r} has the text of another class, {text!r}; allowed: texts that tell classes apart")
    return [entries[key] for key in classes]


# --------------------------------------------------------------------------------------------------- model and heads

def pick_device(name):
    """A name such as "cuda:1", or "auto" -> torch.device. Raises BadInput for one that is not there."""
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in there and not (name == "cuda" and torch.cuda.is_available()):
        raise BadInput(f"--device {name}: not on this machine; allowed: auto, {', '.join(there)}")
    return torch.device(name)


def load_clip(model, pretrained=None, device="cpu"):
    """An open_clip model with open_clip's own tokenizer -> (model in eval mode and float32, tokenizer). Raises BadInput.

    `model` is a name such as "ViT-B-16" (then `pretrained` is a tag or a file), "local-dir:FOLDER" or "hf-hub:OWNER/NAME".
    """
    if ":" not in model:
        if model not in open_clip.list_models():
            near = difflib.get_close_matches(model, open_clip.list_models(), 5, 0)
            raise BadInput(f"--model {model}: unknown to open_clip; allowed: local-dir:FOLDER, hf-hub:OWNER/NAME, or a name such "
                           f"as {', '.join(near)}")
        tags = open_clip.list_pretrained_tags_by_model(model)
        if not pretrained or pretrained not in tags and not os.path.isfile(pretrained):
            raise BadInput(f"--pretrained {pretrained}: no weights for --model {model}, and random ones are no zero-shot model; "
                           f"allowed: a file, {', '.join(tags)}")
    elif pretrained:
        raise BadInput(f"--pretrained {pretrained}: --model {model} has its own weights; leave --pretrained out")
    if model.startswith("local-dir:"):
        folder = find(model.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise BadInput(f"--model {model}: no open_clip_config.json there; allowed: a folder that open_clip saved")
        model = f"local-dir:{folder}"
    logging.disable(logging.CRITICAL)  # what matters of open_clip's log is said by the exception
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")  # other features than the weights were trained for
            clip = open_clip.create_model(model, pretrained, require_pretrained=True, device=device)
            tokenizer = open_clip.get_tokenizer(model)
            tokenizer.encode("")
    except Exception as e:  # damaged weights, another shape, no network: open_clip, safetensors and the hub raise many kinds
        raise BadInput(f"--model {model}: open_clip cannot load it: {str(e)[:300]}") from None
    finally:
        logging.disable(logging.NOTSET)
    return clip.float().eval(), tokenizer


class Texts(NamedTuple):
    tokens: torch.Tensor  # (T, L)
    owner: torch.Tensor   # (T,) the class of each text


def tokenize(tokenizer, texts, source="texts", device="cpu"):
    """Lists of texts, one list per class -> Texts. A text longer than the context would be cut without a word: BadInput."""
    flat = [(text, c) for c, of_class in enumerate(texts) for text in of_class]
    for text, _ in flat:
        n = len(tokenizer.encode(text)) + 2  # start and end token
        if n > tokenizer.context_length:
            raise BadInput(f"{source}: a text of {n} tokens, {text[:60]!r}...; this model reads {tokenizer.context_length} at most")
    return Texts(tokenizer([text for text, _ in flat]).to(device), torch.tensor([c for _, c in flat], device=device))


def encode_text(model, tokens):
    """Tokens (T, L) -> unit text embeddings (T, D), read only up to the longest text's end token.

    Under causal attention no token sees the padding behind it, so this is exact, and several times cheaper than all 77.
    A text tower that pads otherwise is given all L tokens.
    """
    tower, prefix = (model, "") if hasattr(model, "positional_embedding") else (model.text, "text.")
    pool, mask = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None)), getattr(tower, "attn_mask", None)
    if pool != "argmax" or mask is None or getattr(tower, "cls_emb", None) is not None:
        return model.encode_text(tokens, normalize=True)
    n = int(tokens.argmax(1).max()) + 1  # the end token has the largest id
    short = {prefix + "positional_embedding": tower.positional_embedding[:n], prefix + "attn_mask": mask[:n, :n]}
    out = functional_call(model, short, kwargs=dict(text=tokens[:, :n]))
    return out["text_features"] if isinstance(out, dict) else out[1]  # (T, D)


def build_head(model, texts, classes=None):
    """Texts -> head (C, D): for each class the mean of its unit text embeddings, brought back to unit length. Method section 4.

    With `classes` (K,), sorted and distinct, only their rows are built: (K, D).
    """
    tokens, owner = texts
    if classes is not None:
        own = torch.isin(owner, classes)
        tokens, owner = tokens[own], torch.searchsorted(classes, owner[own])
    features = encode_text(model, tokens)  # (T, D)
    head = features.new_zeros(int(owner.max()) + 1, features.shape[1]).index_add(0, owner, features)  # the sum, (C, D)
    return F.normalize(head, dim=-1)


def image_features(model, images):
    """Images (B, 3, H, W), uint8 or already prepared as float -> unit embeddings (B, D)."""
    if images.dtype == torch.uint8:
        prepared = open_clip.get_model_preprocess_cfg(model)
        mean, std = (torch.tensor(prepared[k], device=images.device)[:, None, None] for k in ("mean", "std"))
        images = (images.float() / 255 - mean) / std
        size = model.visual.image_size if isinstance(model.visual.image_size, tuple) else (model.visual.image_size,) * 2
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic")
    return model.encode_image(images, normalize=True)


def logit_scale(model):
    """s, the inverse temperature of the softmax over affinities."""
    return model.logit_scale.exp()


def interpolate_weights(zero_shot, fine_tuned, alpha):
    """WiSE-FT: a new model with the weights (1 - alpha) * zero_shot + alpha * fine_tuned; neither source is touched. Method section 7."""
    model = copy.deepcopy(fine_tuned)
    start, end = zero_shot.state_dict(), fine_tuned.state_dict()
    model.load_state_dict({k: (1 - alpha) * start[k] + alpha * end[k] if end[k].is_floating_point() else end[k] for k in end})
    return model


# ----------------------------------------------------------------------------------------------------- core targets

def core_targets(estimator, features, labels, head, scale, oracle=None):
    """Estimate p_c(y | x) on the training images with the zero-shot model: (N, C), rows sum to one. Method section 5.

    features (N, D) and concept head (C, D) are unit embeddings, labels (N,), scale is the logit scale. "oracle" needs the true
    p(y | x_c) (N, C). All of them are derived here: the paper's exact estimator is not published.
    """
    if estimator == "oracle":
        return oracle.to(features)
    if estimator == "onehot":
        return F.one_hot(labels, len(head)).to(features)
    affinity = features @ head.T  # (N, C)
    softmax = (scale * affinity).softmax(1)
    if estimator == "softmax":
        return softmax
    if estimator == "normalized":  # every class's affinities brought to one range, so that none is favoured for its wording
        low, high = (affinity.quantile(q, dim=0) for q in (0.01, 0.99))  # (C,)
        affinity = ((affinity - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        candidates = torch.logspace(-1, 3, 200).tolist()
        k = min(candidates, key=lambda k: F.cross_entropy(k * affinity, labels).item())  # temperature scaling
        return (k * affinity).softmax(1)
    # "label": the label, as far as the zero-shot model recognises it in this image
    recognised = softmax.gather(1, labels[:, None])[:, 0]  # (N,)
    trust = torch.ones_like(recognised)  # stays 1 in a class whose images are all recognised alike, such as a class of one
    for c in labels.unique():
        low, high = recognised[labels == c].quantile(0.02), recognised[labels == c].quantile(0.98)
        if high > low:
            trust[labels == c] = ((recognised[labels == c] - low) / (high - low)).clamp(0, 1)
    return trust[:, None] * F.one_hot(labels, len(head)) + (1 - trust[:, None]) / len(head)


def target_quality(estimator, targets, labels, oracle=None):
    """What core targets (N, C) give the true class on average and, where an oracle knows, KL(oracle || targets) in nats
    (None when infinite)."""
    quality = dict(estimator=estimator, true_class=targets.gather(1, labels[:, None]).mean().item())
    if oracle is not None:
        oracle = oracle.to(targets)
        kl = (torch.xlogy(oracle, oracle) - torch.xlogy(oracle, targets)).sum(1).mean().item()
        quality["kl_from_oracle"] = kl if math.isfinite(kl) else None
    return quality


# -------------------------------------------------------------------------------------------------------- dual loss

def contrastive_loss(logits, targets):
    """Cross-entropy over rows and over columns, averaged: logits and non-negative targets (B, K) -> scalar.

    Targets are normalised to distributions along the rows for the one and along the columns for the other, so images of
    one class share a column instead of being each other's negatives. Method section 6, generalises FLYP.
    """
    tiny = torch.finfo(targets.dtype).tiny
    rows = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True).clamp(min=tiny))
    columns = F.cross_entropy(logits.T, (targets / targets.sum(0).clamp(min=tiny)).T)
    return (rows + columns) / 2


def flyp_loss(features, text_features, scale):
    """FLYP as released: one text per image, (B, D) each, and identity targets, even where two images share a class."""
    logits = scale * features @ text_features.T  # (B, B)
    diagonal = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def dual_loss(features, default_head, concept_head, scale, labels, targets, lam, form="ce"):
    """R_s + lambda R_w on a batch -> scalar. lam = 0 is ERM, lam = inf is R_w alone (WRM). Method sections 3 and 6.

    features (B, D); heads (K, D); labels (B,) index their rows; core targets (B, K). A head whose weight is zero is not
    looked at and may be None. `form`: "ce" (heads hold all classes) or "flyp" (heads hold the classes of the batch).
    """
    loss_of = F.cross_entropy if form == "ce" else contrastive_loss
    erm_loss = wrm_loss = 0.0
    if lam < math.inf:
        onehot = F.one_hot(labels, len(default_head)).to(features)  # (B, K)
        erm_loss = loss_of(scale * features @ default_head.T, onehot)
    if lam > 0:
        wrm_loss = loss_of(scale * features @ concept_head.T, targets)
    return wrm_loss if lam == math.inf else erm_loss + lam * wrm_loss


# --------------------------------------------------------------------------------------------------------- training

def train(model, split, default_texts, concept_texts, targets, config, lam, form, seed, name=None):
    """Fine-tune `model` in place, both towers, and return the loss of every step.

    targets: core targets (N, C) of the training images, or None for lam = 0. `form`: "ce" (over all classes), "flyp"
    (contrastive, over the classes of the batch) or "flyp-released" (the baseline; lam = 0). With a name, a progress bar is
    shown. Raises BadInput as soon as a loss is not finite.
    """
    device, n, size = next(model.parameters()).device, len(split.labels), config.batch_size
    order = torch.Generator().manual_seed(seed)
    # Whole batches only (a batch of all images if there are fewer); the few left out change with the shuffle.
    batches = [batch for _ in range(config.epochs) for batch in torch.randperm(n, generator=order).split(size)[:max(1, n // size)]]
    warmup = max(1, len(batches) // 10)

    def lr_factor(step):  # linear warm-up, then a cosine to 0
        return min((step + 1) / warmup, (1 + math.cos(math.pi * max(0, step - warmup) / (len(batches) - warmup + 1))) / 2)

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]  # norms, biases and the logit scale are not decayed
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=config.weight_decay), dict(params=vectors, weight_decay=0.0)],
                                  lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor)
    every_class = torch.arange(int(default_texts.owner.max()) + 1, device=device)
    model.train()
    losses = []
    for batch in tqdm(batches, desc=name, unit="step", mininterval=0.5, disable=name is None):
        images, labels = split.images[batch].to(device), split.labels[batch].to(device)
        classes, columns = (every_class, labels) if form == "ce" else labels.unique(return_inverse=True)  # (K,), (B,)
        features, scale = image_features(model, images), logit_scale(model)  # (B, D)
        default_head = build_head(model, default_texts, classes) if lam < math.inf else None  # (K, D)
        if form == "flyp-released":
            loss = flyp_loss(features, default_head[columns], scale)
        else:
            concept_head = build_head(model, concept_texts, classes) if lam > 0 else None  # (K, D)
            p_c = targets[batch].to(device)[:, classes] if lam > 0 else None  # (B, K)
            loss = dual_loss(features, default_head, concept_head, scale, columns, p_c, lam, form)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise BadInput(f"--lr {config.lr}: the loss of step {len(losses)} is {losses[-1]}; allowed: a rate at which it stays finite")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
    model.eval()
    return losses


# ------------------------------------------------------------------------------------------------------- evaluation

def mix(p_default, p_concept, beta):
    """p = beta * p_default + (1 - beta) * p_concept: probabilities are mixed, not logits. Method section 7."""
    return beta * p_default + (1 - beta) * p_concept


@torch.no_grad()
def encode_images(model, split, size=500):
    """All images of a split -> unit embeddings (N, D), with the model in eval mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    features = torch.cat([image_features(model, split.images[i:i + size].to(device)) for i in range(0, len(split.labels), size)])
    model.train(was_training)
    return features


@torch.no_grad()
def predict(model, split, default_texts, concept_texts):
    """(p_default, p_concept), (N, C) each, from one pass of the image encoder; in double precision on the CPU, so that the
    log of a small probability stays finite. Method section 7."""
    features, scale = encode_images(model, split).cpu().double(), logit_scale(model).cpu().double()
    return tuple((scale * features @ build_head(model, texts).cpu().double().T).softmax(1) for texts in (default_texts, concept_texts))


def metrics(p, split):
    """Probabilities (N, C) -> accuracy (0 to 1), log loss (nats), n, and the accuracy and n of each group."""
    correct = (p.argmax(1) == split.labels).double()
    result = dict(accuracy=correct.mean().item(), n=len(correct),
                  log_loss=-p.gather(1, split.labels[:, None]).log().mean().item())
    for name, members in split.groups.items():
        if members.any():  # a group without images has no accuracy
            result |= {f"accuracy_{name}": correct[members].mean().item(), f"n_{name}": int(members.sum())}
    return result


def evaluate(model, data, default_texts, concept_texts, betas):
    """One result for each beta: metrics on validation and every test domain, and their summary. Log losses in nats.

    Mean and worst OOD accuracy leave out the first, in-distribution domain; the worst log loss is over all. Raises BadInput.
    """
    p = {domain: predict(model, split, default_texts, concept_texts) for domain, split in [("val", data.val), *data.tests.items()]}
    results = []
    for beta in betas:
        domains = {domain: metrics(mix(*p[domain], beta), split) for domain, split in data.tests.items()}
        (_, in_distribution), *shifted = domains.items()
        accuracies = [m["accuracy"] for _, m in shifted]
        if not all(math.isfinite(m["log_loss"]) for m in domains.values()):
            raise BadInput("the model's probabilities are not finite; allowed: a smaller --lr")
        results.append(dict(beta=beta, validation=metrics(mix(*p["val"], beta), data.val), domains=domains, summary=dict(
            id_accuracy=in_distribution["accuracy"], ood_mean_accuracy=statistics.fmean(accuracies),
            ood_worst_accuracy=min(accuracies), worst_log_loss=max(m["log_loss"] for m in domains.values()))))
    return results


# ------------------------------------------------------------------------------------------------------- experiment

def run(config, out=None):
    """Everything a config asks for -> {"config", "about", "results"}, ready for JSON. Raises BadInput.

    results: one row for each method, seed, lambda and alpha; lam is null for zero-shot (no training) and wrm (infinite).
    `out`, a folder, is made and written to before training, so that no training is lost to it.
    """
    device = pick_device(config.device)
    zero_shot, tokenizer = load_clip(config.model, config.pretrained, device)
    data = load_data(config, config.seed)
    default_texts = tokenize(tokenizer, [[data.template.format(name)] for name in data.classes.values()], device=device)
    concept_texts = tokenize(tokenizer, load_descriptions(config.descriptions, data.classes),
                             f"--descriptions {config.descriptions}", device)
    if config.core_targets == "oracle" and data.train.oracle is None:
        raise BadInput(f"--core-targets oracle: {config.dataset} does not know p(y | x_c); allowed: {', '.join(CORE_TARGETS[:-1])}")
    plan = {  # method -> (lambda, estimator of the core targets, form of the loss) of each of its trainings
        "erm": [(0.0, None, config.loss)], "wrm": [(math.inf, config.core_targets, config.loss)],
        "drm": [(lam, config.core_targets, config.loss) for lam in dict.fromkeys((config.lam, *config.sweep))],
        "dual": [(config.lam, "onehot", config.loss)], "flyp": [(0.0, None, "flyp-released")], "zero-shot": []}
    if out is not None:
        make_folder(out)

    rows = []
    for seed in range(config.seed, config.seed + config.seeds):
        data = data if seed == config.seed else load_data(config, seed)
        labels, features = data.train.labels.to(device), encode_images(zero_shot, data.train)
        with torch.no_grad():
            concept_head, scale = build_head(zero_shot, concept_texts), logit_scale(zero_shot)
        for method in config.method:
            if method == "zero-shot":  # each head, and their mixture
                betas = dict.fromkeys((1.0, 0.0, config.beta_of(config.lam)))
                rows += [dict(method=method, seed=seed, lam=None, alpha=0.0, seconds=0.0, core_targets=None) | result
                         for result in evaluate(zero_shot, data, default_texts, concept_texts, betas)]
            for lam, estimator, form in plan[method]:
                targets = quality = None
                if lam > 0:
                    targets = core_targets(estimator, features, labels, concept_head, scale, data.train.oracle)
                    quality = target_quality(estimator, targets, labels, data.train.oracle)
                torch.manual_seed(seed)  # dropout and the like, where a model has it
                model, start = copy.deepcopy(zero_shot), time.perf_counter()
                train(model, data.train, default_texts, concept_texts, targets, config, lam, form, seed, f"{method}, seed {seed}")
                seconds = round(time.perf_counter() - start, 1)
                for alpha in config.alpha:
                    at_alpha = interpolate_weights(zero_shot, model, alpha)
                    [result] = evaluate(at_alpha, data, default_texts, concept_texts, [config.beta_of(lam)])
                    rows.append(dict(method=method, seed=seed, lam=None if lam == math.inf else lam, alpha=alpha, seconds=seconds,
                                     core_targets=quality) | result)
    digest = hashlib.sha256(find(config.descriptions).read_bytes()).hexdigest()
    about = dict(torch=torch.__version__, open_clip=open_clip.__version__, device=str(device), model=config.model,
                 pretrained=config.pretrained, descriptions=config.descriptions, descriptions_sha256=digest,
                 template=data.template, classes=data.classes, ceilings=data.ceilings)
    return dict(config=dataclasses.asdict(config), about=about, results=rows)


# ----------------------------------------------------------------------------------------------------------- report

def row_name(row):
    """A row of results in words."""
    if row["method"] == "zero-shot":
        return "zero-shot, " + {1.0: "default head", 0.0: "concept head"}.get(row["beta"], "both mixed")
    lam = f", lambda {row['lam']:g}" if row["method"] in ("drm", "dual") else ""
    return METHODS[row["method"]][0] + lam + (f", WiSE-FT {row['alpha']:g}" if row["alpha"] < 1 else "")


def by_name(results):
    """Rows of all seeds -> row name -> its rows, one per seed, in the order of the first seed."""
    grouped = {}
    for row in results:
        grouped.setdefault(row_name(row), []).append(row)
    return grouped


def spread(values):
    """-> (mean, standard deviation over seeds; 0 for a single one)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(report):
    """The results as lines of a Markdown table: a row per method, accuracies in %, log losses in nats."""
    grouped, ceilings = by_name(report["results"]), report["about"]["ceilings"]
    domains, several = list(report["results"][0]["domains"]), report["config"]["seeds"] > 1
    drm = next((rows for rows in grouped.values() if rows[0]["method"] == "drm" and rows[0]["alpha"] == 1), None)
    best = {}  # (method, lambda) -> the name of the row whose WiSE-FT alpha below 1 is best on validation: no test image chooses it
    for name, rows in sorted(grouped.items(), key=lambda item: spread([r["validation"]["accuracy"] for r in item[1]])[0]):
        if 0 < rows[0]["alpha"] < 1:
            best[rows[0]["method"], rows[0]["lam"]] = name

    def cell(values, scale=1, digits=1):
        mean, sd = spread([scale * v for v in values])
        return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if several else "")

    lines = [["accuracy % (log loss)", *domains, "OOD mean", "OOD worst", "worst log loss"]]
    for name, rows in grouped.items():
        in_domain = [[r["domains"][d] for r in rows] for d in domains]
        summary = {k: [r["summary"][k] for r in rows] for k in rows[0]["summary"]}
        lines.append([name + " *" * (name in best.values()),
                      *(f"{cell([m['accuracy'] for m in ms], 100)} ({cell([m['log_loss'] for m in ms], 1, 2)})" for ms in in_domain),
                      cell(summary["ood_mean_accuracy"], 100), cell(summary["ood_worst_accuracy"], 100),
                      cell(summary["worst_log_loss"], 1, 2)])
        if several and drm:  # seeds pair the rows: the same images, the same order
            lead = [100 * (a["summary"]["ood_mean_accuracy"] - b["summary"]["ood_mean_accuracy"]) for a, b in zip(drm, rows)]
            lines[-1].append(f"{spread(lead)[0]:+.2f} ± {spread(lead)[1] / math.sqrt(len(lead)):.2f}" if rows is not drm else "")
    if several and drm:
        lines[0].append("DRM's lead in OOD mean ± s.e.")
    if ceilings:
        lines.append(["best possible, domain known", *(f"{100 * c:.1f}" for c in ceilings.values())])
    width = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    lines = [line + [""] * (len(width) - len(line)) for line in lines]
    lines.insert(1, ["-" * w for w in width])
    return ["| " + " | ".join(text.ljust(w) for text, w in zip(line, width)) + " |" for line in lines]


def plot(report, path):
    """The trade-off as a picture: the path of lambda from ERM to WRM, and every other row beside it."""
    from matplotlib.figure import Figure  # no backend and no global state; imported here, as nothing else needs it

    grouped, (first, *_, last) = by_name(report["results"]), report["results"][0]["domains"]
    ceiling = report["about"]["ceilings"].get(last)
    panels = (("worst-domain risk: log loss (nats), lower is better", lambda r: r["summary"]["worst_log_loss"],
               "mean out-of-distribution accuracy (%)", lambda r: 100 * r["summary"]["ood_mean_accuracy"]),
              (f"in-distribution accuracy, `{first}` (%)", lambda r: 100 * r["domains"][first]["accuracy"],
               f"accuracy under shift, `{last}` (%)", lambda r: 100 * r["domains"][last]["accuracy"]))
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for axes, (x_name, x_of, y_name, y_of) in zip(figure.subplots(1, 2), panels):
        path_of_lambda, legend = [], {}
        for name, rows in grouped.items():
            (x, dx), (y, dy) = spread([x_of(r) for r in rows]), spread([y_of(r) for r in rows])
            method, wise = rows[0]["method"], 0 < rows[0]["alpha"] < 1
            series, colour, marker = METHODS[method]
            if method == "zero-shot":
                series, marker = name, {1.0: "<", 0.0: ">"}.get(rows[0]["beta"], marker)
            drawn = axes.errorbar(x, y, dy, dx, fmt=marker, color=colour, markersize=5 if wise else 9, linewidth=1, zorder=3,
                                  markerfacecolor="white" if wise else colour)
            legend.setdefault(series + (", WiSE-FT" if wise else ""), drawn)
            if method in ("erm", "drm", "wrm") and rows[0]["alpha"] == 1:
                path_of_lambda.append((math.inf if method == "wrm" else rows[0]["lam"], x, y))
        if len(path_of_lambda) > 1:
            _, xs, ys = zip(*sorted(path_of_lambda))
            legend["path of λ, from ERM to WRM"], = axes.plot(xs, ys, "k-", alpha=0.6, lw=1)
        for lam, x, y in path_of_lambda:
            offset, align = ((9, 5), "left") if lam <= 1 else ((-9, -13), "right")  # the two branches of the path never collide
            axes.annotate("λ = ∞" if lam == math.inf else f"λ = {lam:g}", (x, y), offset, textcoords="offset points", fontsize=9, ha=align)
        axes.set(xlabel=x_name, ylabel=y_name)
        axes.grid(alpha=0.25)
        axes.margins(0.12)
    if ceiling:
        axes.axhline(100 * ceiling, color="black", linestyle=":", linewidth=1)
        axes.annotate(f"best possible on `{last}`", (0.02, 100 * ceiling), (0, 4), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=9)
    n = report["config"]["seeds"]
    figure.suptitle(f"ERM-vs-WRM trade-off, {report['config']['dataset']}: " + (f"mean ± s.d. of {n} seeds" if n > 1 else "one seed"))
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def make_folder(path):
    """Make a folder and try it. Raises BadInput where it cannot be written."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as e:
        raise BadInput(f"--out {path}: cannot be written ({e.strerror}); allowed: an existing folder or one that can be made") from None


def write(path, save):
    """save(temporary path), then rename: an interrupted or failed write costs no existing file."""
    temporary = path.with_name(path.name + ".tmp")
    save(temporary)
    os.replace(temporary, path)


# ----------------------------------------------------------------------------------------------------- command line

class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(message)


def parse(argv=None):
    """Command line -> Config. Raises BadInput."""
    parser = _Parser(
        prog="drm_min.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Dual Risk Minimization: fine-tune a zero-shot model on ERM + lambda * WRM and compare it with its parts.",
        epilog="Without options: the toy world, offline, in under a minute. Examples:\n"
               "  python drm_min.py --seeds 5 --sweep 0.3 3 10                 the trade-off curve with error bars\n"
               "  python drm_min.py --method erm drm --alpha 0.3 0.5 0.7 1     with WiSE-FT\n"
               "  python drm_min.py --method drm --core-targets oracle         with the true p(y | x_c)")
    recipe = DATASETS["toy"]
    for f in dataclasses.fields(Config):
        m, default = f.metadata, recipe.get(f.name) if f.default is None else f.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        notes = ([f"one of: {', '.join(m['choices'])}"] if m["choices"] and f.name not in ("method", "loss") else []) + (
            [f"default: {shown}" + (" (toy)" if f.default is None else "")] if default not in (None, ()) else [])
        parser.add_argument("--" + f.name.replace("_", "-"), type=m["kind"], nargs="+" if m["many"] else None,
                            default=argparse.SUPPRESS, metavar={str: "NAME", int: "N", float: "X"}[m["kind"]],
                            help=(m["help"] + (f" [{'; '.join(notes)}]" if notes else "")).replace("%", "%%"))
    return Config(**vars(parser.parse_args(argv)))


def main(argv=None):
    """Run what the command line says, print the table, write results.json and tradeoff.png. Returns the exit code."""
    try:
        config = parse(argv)
        out = Path(config.out)
        report = run(config, out)
        write(out / "results.json", lambda path: path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8"))
        write(out / "tradeoff.png", lambda path: plot(report, path))
    except BadInput as e:
        print(f"drm_min.py: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    print(*table(report), sep="\n")
    for quality in [row["core_targets"] for row in report["results"] if row["core_targets"]][:1]:
        print(f"core targets `{quality['estimator']}`, seed {config.seed}: the true class gets {quality['true_class']:.2f} on average"
              + (f"; KL(oracle || targets) {quality['kl_from_oracle']:.2f} nats" if quality.get("kl_from_oracle") is not None else ""))
    if any(0 < alpha < 1 for alpha in config.alpha):
        print("* of the WiSE-FT weights below 1, the one with the best validation accuracy")
    print(f"log losses in nats; ± is the standard deviation over seeds; written: {out / 'results.json'}, {out / 'tradeoff.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
