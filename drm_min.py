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
import hashlib
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch.func import functional_call
from tqdm import tqdm

from describe import BadInput, Parser, find, load_names_and_descriptions, log, write
from files import (DATASETS, READERS, Checkpoints, Stopped, dead_workers_named, load_clip, make_folder, pick_device,
                   prepared_batches, read_saved, stop_requested)

# ---------------------------------------------------------------------------------------------------- configuration

METHODS = {  # method -> its name in tables, its colour (Okabe-Ito) and marker in the picture: safe for colour-blind readers
    "zero-shot": ("zero-shot", "#777777", "P"), "erm": ("ERM", "#D55E00", "s"), "wrm": ("WRM", "#009E73", "^"),
    "drm": ("DRM", "#0072B2", "o"), "dual": ("dual one-hot", "#CC79A7", "D"), "flyp": ("FLYP", "#E69F00", "v")}
CORE_TARGETS = ("softmax", "normalized", "label", "onehot", "oracle")


def option(kind, help, default=None, many=False, choices=None, low=-math.inf, high=math.inf):
    """A field of Config, with its help, type and allowed values beside it."""
    return field(default=default, metadata=dict(kind=kind, help=help, many=many, choices=choices, low=low, high=high))


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. A field left at None comes from the recipe of the data set. Raises BadInput."""
    dataset: str = option(str, "the data", "toy", choices=tuple(DATASETS))
    data_root: str = option(str, "the folder that holds the data set as it was published (csv: the file)")
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
    epochs: int = option(int, "passes over the training images", low=1, high=10**4)
    batch_size: int = option(int, "images per step", low=1, high=10**6)
    accumulate: int = option(int, "parts of a batch that go through the image tower one by one, to save memory: the same gradient", 1,
                             low=1, high=10**6)
    lr: float = option(float, "peak learning rate of AdamW, on a cosine to 0", low=0, high=1e9)
    warmup: int = option(int, "steps of linear warm-up, but never more than a tenth of the run", low=0, high=10**9)
    weight_decay: float = option(float, "weight decay of AdamW, on matrices only", low=0, high=1e6)
    select: str = option(str, "which weights are kept: the last, or the best of all epochs on in-distribution validation",
                         choices=("last", "best"))
    model: str = option(str, "an open_clip model: ViT-B-16, local-dir:FOLDER, hf-hub:OWNER/NAME, ...")
    pretrained: str = option(str, "the tag of its weights, such as openai, or a file; for names without a schema")
    descriptions: str = option(str, "JSON file of concept descriptions")
    template: tuple = option(str, "default prompts, with {} for the name of the class", many=True)
    device: str = option(str, "cpu, cuda, cuda:1, mps; auto takes the fastest that is there", "auto")
    grad_checkpointing: bool = option(bool, "compute activations twice instead of keeping them: less memory, slower", False)
    draw_texts: bool = option(bool, "per step and class one text, drawn at random, not the mean of all: cheaper, approximate", False)
    workers: int = option(int, "processes that read image files; the number of cores, 8 at most, if left out", low=0, high=1024)
    skip_bad_images: bool = option(bool, "leave out training images that cannot be read, and count them", False)
    save_every: int = option(int, "steps between two checkpoints; 0 for none before the end", low=0, high=10**9)
    resume: bool = option(bool, "go on from the checkpoints in --out", False)
    eval_only: bool = option(bool, "evaluate --model, a folder that a run left, with its own prompts", False)
    out: str = option(str, "folder for results.json, tradeoff.png and the models; runs/DATASET if left out")

    def __post_init__(self):
        recipe = DATASETS.get(self.dataset, {}) if isinstance(self.dataset, str) else {}
        if self.eval_only:
            if not str(self.model).startswith("local-dir:"):
                raise BadInput(f"--eval-only --model {self.model}: allowed: local-dir:FOLDER, a model that a run left")
            for name in ("descriptions", "template"):
                if getattr(self, name):
                    raise BadInput(f"--eval-only --{name}: allowed without it; the prompts are the model's own")
        if self.model is not None and self.pretrained is None:  # the tag in the recipe belongs to the model in the recipe
            recipe = {k: v for k, v in recipe.items() if k != "pretrained"}
        for f in dataclasses.fields(self):
            value, name = getattr(self, f.name), "--" + f.name.replace("_", "-")
            value = recipe.get(f.name) if value is None else value
            if f.metadata["many"]:
                values = value if isinstance(value, (tuple, list)) and (value or f.default == ()) else (value,)
                value = tuple(dict.fromkeys(_checked(v, name, **f.metadata) for v in values))
            elif value is not None or f.default is not None or f.name in recipe:
                value = _checked(value, name, **f.metadata)
            object.__setattr__(self, f.name, value)
        for template in self.template:
            if template.count("{}") != 1:
                raise BadInput(f"--template {template}: must hold one {{}}, for the name of the class")
        if self.accumulate > 1 and (self.loss == "flyp" or "flyp" in self.method):
            raise BadInput(f"--accumulate {self.accumulate}: only 1 with a contrastive loss, which needs the whole batch at once")
        if self.eval_only and (self.alpha != (1.0,) or self.seeds > 1):
            raise BadInput("--eval-only: allowed: one seed, and --alpha 1; WiSE-FT needs the zero-shot weights too")
        for name, values in (("--sweep", (self.lam, *self.sweep)), ("--alpha", self.alpha)):
            if len({f"{value:g}" for value in values}) < len(set(values)):  # tables and folders could not tell them apart
                raise BadInput(f"{name} {' '.join(map(repr, values))}: allowed: values that differ in six digits")
        object.__setattr__(self, "out", self.out or f"runs/{self.dataset}" + "-eval" * self.eval_only)

    def beta_of(self, lam):
        """The weight of the default head after training with this lambda; a single head is never mixed."""
        return 1 / (1 + lam) if self.beta is None or lam in (0, math.inf) else self.beta


def _checked(value, name, kind, choices, low, high, **_):
    """-> value as `kind`, or BadInput."""
    if choices and value not in choices:
        raise BadInput(f"{name} {value}: unknown; allowed: {', '.join(choices)}")
    if kind is str:
        ok, allowed = isinstance(value, str) and value != "", "a text"
    elif kind is bool:
        ok, allowed = isinstance(value, bool), "True or False"
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
    images: object                # (N, 3, H, W) uint8, or N paths
    labels: torch.Tensor          # (N,) int64
    oracle: torch.Tensor = None   # (N, C) the true p(y | x_c), where the generator knows it
    groups: dict = field(default_factory=dict)  # name -> (N,) bool
    group_kind: str = None        # what the groups are, if the worst of them counts: "group", "region"
    columns: torch.Tensor = None  # (C,) the label that each class of the model counts for, -1 for none; None: its own
    border: int = 0               # pixels that are no part of the picture, on each side

    def take(self, kept):
        """The split of some images only, by their numbers (M,)."""
        images = self.images[kept] if isinstance(self.images, torch.Tensor) else [self.images[i] for i in kept]
        return dataclasses.replace(self, images=images, labels=self.labels[kept], groups={k: v[kept] for k, v in self.groups.items()},
                                   oracle=None if self.oracle is None else self.oracle[kept])


class Data(NamedTuple):
    classes: dict     # key (as in the description file) -> name (as in the default prompt), in the order of the labels
    train: Split
    val: Split        # in-distribution: the only images that may choose anything
    tests: dict       # domain -> Split; the first is in-distribution, the rest is not
    ceilings: dict = {}  # domain -> the best accuracy without seeing hidden things, where it is known
    metrics: tuple = ("accuracy", "accuracy")  # what counts in distribution, and out of it
    group_weights: dict = None  # group -> its images in training: accuracies of groups, each in one domain, are averaged so too


def load_data(config, seed=0):
    """The data of a run. On the toy world a seed draws everything anew: training, validation and test images. Raises BadInput."""
    if config.dataset == "toy":
        from toy import world  # here, because toy/pretrain.py imports this file

        def draw(n, domain, stream):
            pictures = world.draw(n, domain, torch.Generator().manual_seed(1000 * seed + stream))
            return Split(pictures.images, pictures.things, pictures.oracle, {"visible": pictures.visible, "hidden": ~pictures.visible})

        return Data({name: name for name in world.THINGS}, draw(6000, "id", 0), draw(1000, "id", 1),
                    {domain: draw(2000, domain, 2 + i) for i, domain in enumerate(world.DOMAINS)},
                    {domain: world.ceiling(domain) for domain in world.DOMAINS})
    root, entry = config.data_root, DATASETS[config.dataset]
    if root is None:
        raise BadInput(f"--data-root: {config.dataset} needs it; {entry['layout']}")
    try:
        classes, rows, id_test, merged, border = READERS[config.dataset](Path(root))
    except OSError as e:
        raise BadInput(f"--data-root {root}: {e.filename or e}: {e.strerror}; {entry['layout']}") from None
    names = {key: " ".join(name.replace("_", " ").split()) for key, name in classes.items()}  # as they are said in a prompt
    nameless = [key for key, name in names.items() if not name or not name.isprintable()]
    if nameless or not all(row.split.isprintable() for row in rows):
        raise BadInput(f"--data-root {root}: a class or a domain has no name that can be said or printed; "
                       "allowed: letters, figures, blanks")
    groups = sorted({row.group for row in rows} - {""})

    def split(name):
        own = [row for row in rows if row.split == name]
        keys_of = merged.get(name) or {key: [key] for key in classes}  # label -> the classes whose best score it gets
        number = {label: i for i, label in enumerate(keys_of)}
        column = {key: number[label] for label, keys in keys_of.items() for key in keys}
        for row in own:
            if row.label not in number:
                raise BadInput(f"--data-root {root}: {row.image} has the label {row.label!r}; allowed in {name}: "
                               + ", ".join(list(number)[:20]) + ", ..." * (len(number) > 20))
            if isinstance(row.image, Path) and not os.path.isfile(row.image) and not (name == "train" and config.skip_bad_images):
                raise BadInput(f"--data-root {root}: {row.image} is not there; it is an image of {name}")
        in_memory = own and isinstance(own[0].image, torch.Tensor)
        return Split(torch.stack([row.image for row in own]) if in_memory else [str(row.image) for row in own],
                     torch.tensor([number[row.label] for row in own], dtype=torch.int64),
                     groups={group: torch.tensor([row.group == group for row in own], dtype=torch.bool) for group in groups},
                     group_kind=entry.get("group"),
                     columns=torch.tensor([column.get(key, -1) for key in classes]) if name in merged else None,
                     border=border.get(name, 0))

    train, val = split("train"), split("val")
    tests = {name: split(name) for name in dict.fromkeys(row.split for row in rows) if name not in ("train", "val")}
    id_test = id_test if id_test in tests else "val"
    tests = {id_test: tests.get(id_test, val)} | tests  # in-distribution first
    if not len(val.labels):
        raise BadInput(f"--data-root {root}: no validation images; {entry['layout']}")
    for name, part in tests.items():
        empty = [group for group, members in part.groups.items() if not members.any()]
        if empty:
            log(f"{name}: no images of {', '.join(empty)}, so no accuracy there")
    log(f"{config.dataset}: {len(names)} classes ({', '.join(list(names.values())[:20])}{', ...' if len(names) > 20 else ''}); images: "
        + ", ".join(f"{name} {len(part.labels)}" for name, part in [("train", train), ("val", val), *tests.items()]))
    return Data(names, train, val, tests, {}, entry["metrics"], entry.get("group_weights"))


# --------------------------------------------------------------------------------------------------- model and heads

class Texts(NamedTuple):
    tokens: torch.Tensor  # (T, L)
    owner: torch.Tensor   # (T,) the class of each text


def tokenize(tokenizer, texts, source="texts", device="cpu"):
    """Lists of texts, one list per class -> Texts. A text longer than the context would be cut without a word: BadInput."""
    flat = [(text, c) for c, of_class in enumerate(texts) for text in of_class]
    pad = tokenizer([""], context_length=4096).mode().values.item()

    def count(text, length=4096):  # tokens that are no padding, for whatever a tokenizer puts around a text
        if isinstance(tokenizer, open_clip.SimpleTokenizer):  # its padding is also the token of "!"
            return min(length, len(tokenizer.encode(text)) + 2)
        return int((tokenizer([text], context_length=length) != pad).sum())

    length, room = tokenizer.context_length, count("a " * 4096, tokenizer.context_length)  # SigLIP's end token pads too: one less
    for text, _ in flat:
        n = count(text) + length - room
        if n > length:
            raise BadInput(f"{source}: a text of {n} tokens, {text[:60]!r}...; this model reads {length} at most")
    return Texts(tokenizer([text for text, _ in flat]).to(device), torch.tensor([c for _, c in flat], device=device))


def encode_text(model, tokens):
    """Tokens (T, L) -> unit text embeddings (T, D). Texts of like length are read together, and only up to the longest one's end token.

    Under causal attention no token sees the padding behind it, so this is exact, and several times cheaper than all 77 for each.
    A text tower that pads otherwise is given all L tokens.
    """
    tower, prefix = (model, "") if hasattr(model, "positional_embedding") else (model.text, "text.")
    pool, mask = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None)), getattr(tower, "attn_mask", None)
    if pool != "argmax" or mask is None or getattr(tower, "cls_emb", None) is not None:
        return model.encode_text(tokens, normalize=True)
    lengths = tokens.argmax(1) + 1  # the end token has the largest id
    parts, features = max(1, min(8, len(tokens) // 32)), []
    order = lengths.argsort() if parts > 1 else torch.arange(len(tokens), device=tokens.device)
    for part in order.chunk(parts):
        n = int(lengths[part].max())
        short = {prefix + "positional_embedding": tower.positional_embedding[:n], prefix + "attn_mask": mask[:n, :n]}
        out = functional_call(model, short, (), dict(text=tokens[part, :n]))
        features.append(out["text_features"] if isinstance(out, dict) else out[1])
    return torch.cat(features)[order.argsort()]  # (T, D)


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


def draw_texts(texts):
    """One text of each class, drawn at random -> Texts (C, L)."""
    key = torch.randperm(len(texts.owner)).to(texts.owner)  # another number for each text; of a class, the one with the highest stays
    chosen = key == torch.zeros_like(key).scatter_reduce(0, texts.owner, key, "amax")[texts.owner]
    return Texts(texts.tokens[chosen], texts.owner[chosen])


def image_features(model, images):
    """Images (B, 3, H, W), uint8 or already prepared as float -> unit embeddings (B, D)."""
    if images.dtype == torch.uint8:
        prepared = open_clip.get_model_preprocess_cfg(model)
        mean, std = (torch.tensor(prepared[k], device=images.device)[:, None, None] for k in ("mean", "std"))
        images = (images.float() / 255 - mean) / std
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
    """Estimate p_c(y | x) on the training images with the zero-shot model. Method section 5.

    features (N, D), kept in whatever precision, and concept head (C, D) are unit embeddings, labels (N,), scale is the logit
    scale; "oracle" needs the true p(y | x_c) (N, C). Returns a function: numbers of images (B,) or a slice -> their core targets
    (B, C), rows that sum to one; N x C is never held at once, so that ImageNet fits. All of the estimators are derived here:
    the paper's exact one is not published.
    """
    def affinity(batch):
        return features[batch].to(head) @ head.T  # (B, C)

    def softmax(batch):
        return (scale * affinity(batch)).softmax(1)

    def onehot(batch):
        return F.one_hot(labels[batch], len(head)).to(head)

    if estimator == "oracle":
        return lambda batch: oracle[batch].to(head)
    if estimator == "onehot":
        return onehot
    if estimator == "softmax":
        return softmax
    if estimator == "normalized":  # every class's affinities brought to one range, so that none is favoured for its wording
        columns = (features.to(head) @ some.T for some in head.split(max(1, 2**24 // len(labels))))  # what quantile takes at once
        low, high = torch.cat([c.quantile(c.new_tensor([0.01, 0.99]), dim=0) for c in columns], 1)  # (C,) each

        def normalized(batch):
            return ((affinity(batch) - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

        some = torch.arange(0, len(labels), -(-len(labels) // 20_000))  # enough images for one number
        at_some, candidates = normalized(some), torch.logspace(-1, 3, 200).tolist()
        k = min(candidates, key=lambda k: F.cross_entropy(k * at_some, labels[some]).item())  # temperature scaling
        return lambda batch: (k * normalized(batch)).softmax(1)
    # "label": the label, as far as the zero-shot model recognises it in this image
    recognised = torch.cat([softmax(part).gather(1, labels[part, None])[:, 0] for part in torch.arange(len(labels)).split(8192)])  # (N,)
    trust = torch.ones_like(recognised)  # stays 1 in a class whose images are all recognised alike, such as a class of one
    for c in labels.unique():
        low, high = recognised[labels == c].quantile(0.02), recognised[labels == c].quantile(0.98)
        if high > low:
            trust[labels == c] = ((recognised[labels == c] - low) / (high - low)).clamp(0, 1)
    return lambda batch: trust[batch, None] * onehot(batch) + (1 - trust[batch, None]) / len(head)


def target_quality(estimator, targets, labels, oracle=None):
    """What core targets, a function as above, give the true class on average and, where an oracle knows, KL(oracle || targets)
    in nats (None when infinite)."""
    true_class, kl = 0.0, 0.0 if oracle is not None else None
    for part in torch.arange(len(labels)).split(8192):
        p = targets(part)  # (B, C)
        true_class += p.gather(1, labels[part, None]).sum().item()
        if oracle is not None:
            p_c = oracle[part].to(p)
            kl += (torch.xlogy(p_c, p_c) - torch.xlogy(p_c, p)).sum().item()
    quality = dict(estimator=estimator, true_class=true_class / len(labels))
    return quality if kl is None else quality | dict(kl_from_oracle=kl / len(labels) if math.isfinite(kl) else None)


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

def check_training(split, config, contrastive):
    """Count the steps before any is taken. Raises BadInput where nothing can be learned."""
    n = len(split.labels)
    if n == 0:
        raise BadInput(f"--dataset {config.dataset}: 0 training images, so training would take no step; allowed: 2 or more")
    if len(split.labels.unique()) == 1:
        raise BadInput(f"--dataset {config.dataset}: all {n} training images are of one class; allowed: 2 classes or more")
    if contrastive and min(config.batch_size, n) == 1:
        raise BadInput("--batch-size 1: a contrastive loss on a batch of one is always 0; allowed: 2 or more")


def train(model, split, default_texts, concept_texts, targets, config, lam, form, seed, name=None, score=None, keep=None):
    """Fine-tune `model` in place, both towers, and return the loss of every step.

    targets: numbers of training images (B,) -> their core targets (B, C); None for lam = 0. `form`: "ce" (over all classes), "flyp"
    (contrastive, over the classes of the batch) or "flyp-released" (the baseline; lam = 0). With a name, a progress bar is
    shown. score(model): the weights of the epoch at which it is highest are kept, instead of the last. `keep`: Checkpoints.
    Raises BadInput as soon as a loss is not finite, and Stopped.
    """
    device, n, size = next(model.parameters()).device, len(split.labels), config.batch_size
    check_training(split, config, form != "ce")
    if config.accumulate > 1 and any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise BadInput(f"--accumulate {config.accumulate}: this model has batch norms, for which parts of a batch are not the batch; "
                       "allowed: 1")
    order = torch.Generator().manual_seed(seed)
    # Whole batches only (a batch of all images if there are fewer); the few left out change with the shuffle.
    per_epoch = max(1, n // size)
    batches = [batch for _ in range(config.epochs) for batch in torch.randperm(n, generator=order).split(size)[:per_epoch]]
    warmup = max(1, min(config.warmup, len(batches) // 10))

    def lr_factor(step):  # linear warm-up, then a cosine to 0
        return min((step + 1) / warmup, (1 + math.cos(math.pi * max(0, step - warmup) / (len(batches) - warmup + 1))) / 2)

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]  # norms, biases and the logit scale are not decayed
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=config.weight_decay), dict(params=vectors, weight_decay=0.0)],
                                  lr=config.lr, fused=True)
    on_cuda = device.type == "cuda"
    native = on_cuda and torch.cuda.get_device_capability(device)[0] >= 8  # before that, bf16 is emulated and slow
    half = torch.bfloat16 if native else torch.float16  # weights stay float32
    scaler = torch.amp.GradScaler("cuda", enabled=on_cuda and half is torch.float16)
    highest_scale = max(math.log(100), logit_scale(model).log().item())  # SigLIP starts above 100
    every_class = torch.arange(int(default_texts.owner.max()) + 1, device=device)
    # CoCa's text decoder, which no loss here reaches, may hold whatever the memory held.
    sound = [p for p in model.parameters() if p.isfinite().all()]
    losses, best = keep.load(model, optimizer, scaler) if keep else ([], {})
    if keep and keep.finished:
        return losses

    def refuse(what):
        last = f"; the last good checkpoint is {keep.last}" if keep and keep.last else ""
        raise BadInput(f"--lr {config.lr}: {what}; allowed: a rate at which it stays finite{last}")

    first = len(losses)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
    model.train()
    pictures = prepared_batches(model, split, batches[first:], config.workers, seed, first)
    bar = tqdm(pictures, name, len(batches), initial=first, unit="step", mininterval=0.5, disable=name is None)
    with stop_requested(keep) as stop:
        for step, (images, bad) in enumerate(bar, first):
            for reason in bad.values():
                raise BadInput(reason)
            batch = batches[step]
            labels = split.labels[batch].to(device)
            torch.manual_seed(seed * 1_000_003 + step)  # texts that are drawn, dropout and the like: alike before and after a resume
            texts = [draw_texts(of_head) if config.draw_texts else of_head for of_head in (default_texts, concept_texts)]
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(step)
            classes, columns = (every_class, labels) if form == "ce" else labels.unique(return_inverse=True)  # (K,), (B,)
            with torch.autocast("cuda", half, enabled=on_cuda):
                default_head = build_head(model, texts[0], classes) if lam < math.inf else None  # (K, D)
                concept_head = build_head(model, texts[1], classes) if lam > 0 else None  # (K, D)
            # Each part of the batch sends its gradient as far as the heads; from there it is sent through the text tower once.
            heads = [None if head is None else head.detach().float().requires_grad_() for head in (default_head, concept_head)]
            losses.append(0.0)
            for part in torch.arange(len(batch)).chunk(config.accumulate):
                with torch.autocast("cuda", half, enabled=on_cuda):
                    features = image_features(model, images[part].to(device))  # (B, D)
                features, scale = features.float(), logit_scale(model)
                if form == "flyp-released":
                    loss = flyp_loss(features, heads[0][columns[part]], scale)
                else:
                    p_c = targets(batch[part])[:, classes] if lam > 0 else None  # (B, K)
                    loss = dual_loss(features, *heads, scale, columns[part], p_c, lam, form)
                loss = loss * (len(part) / len(batch))
                losses[-1] += loss.item()
                if not math.isfinite(losses[-1]):
                    refuse(f"the loss of step {len(losses)} is {losses[-1]}")
                scaler.scale(loss).backward()
            for head, leaf in zip((default_head, concept_head), heads):
                if head is not None:
                    head.backward(leaf.grad.to(head))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            with torch.no_grad():
                model.logit_scale.clamp_(0, highest_scale)
            if score and (step + 1) % per_epoch == 0:
                value = score(model)
                log(f"{name}: epoch {(step + 1) // per_epoch}, validation {value:.4f}")
                if not best or value > best["score"]:
                    best = dict(score=value, epoch=(step + 1) // per_epoch,
                                state={k: v.cpu().clone() for k, v in model.state_dict().items()})
            if keep and (stop or config.save_every and (step + 1) % config.save_every == 0):
                if not all(p.isfinite().all() for p in sound):
                    refuse(f"the weights after step {len(losses)} are not finite")
                keep.save(model, optimizer, scaler, losses, best)
            if stop:
                raise Stopped(f"stopped after step {step + 1} of {len(batches)}; to go on, give the same command with --resume")
        if best:
            model.load_state_dict(best["state"])
        with torch.no_grad():  # a last step may have spoilt what its loss did not show
            if not all(p.isfinite().all() for p in sound) or not build_head(model, default_texts).isfinite().all():
                refuse(f"after {len(losses)} steps the model is not finite")
        if config.grad_checkpointing:
            model.set_grad_checkpointing(False)
        model.eval()
        if keep:
            keep.finish(model, losses)
    return losses


# ------------------------------------------------------------------------------------------------------- evaluation

def mix(p_default, p_concept, beta):
    """p = beta * p_default + (1 - beta) * p_concept: probabilities are mixed, not logits. Method section 7."""
    return beta * p_default + (1 - beta) * p_concept


@torch.no_grad()
def encode_images(model, split, workers=None, bad=None):
    """All images of a split -> unit embeddings (N, D), with the model in eval mode.

    Images that cannot be read are left out and noted in `bad`, {index: reason}; without it they raise BadInput.
    """
    device, in_memory = next(model.parameters()).device, isinstance(split.images, torch.Tensor)
    was_training = model.training
    model.eval()
    features = []
    for images, unreadable in prepared_batches(model, split, torch.arange(len(split.labels)).split(500 if in_memory else 128), workers):
        if unreadable and bad is None:
            raise BadInput(next(iter(unreadable.values())))
        if unreadable:
            bad.update(unreadable)
        if len(images):
            features.append(image_features(model, images.to(device)))
    model.train(was_training)
    return torch.cat(features) if features else torch.empty(0, device=device)


@torch.no_grad()
def predict(model, split, default_texts, concept_texts, workers=None):
    """(p_default, p_concept), (N, C) each, from one pass of the image encoder; in double precision on the CPU, so that the
    log of a small probability stays finite. Where labels are not classes, a label's logit is the highest of its classes, and
    classes that are no label's are left out before the softmax. Method section 7."""
    features, scale = encode_images(model, split, workers).cpu().double(), logit_scale(model).cpu().double()

    def probabilities(texts):
        logits = scale * features @ build_head(model, texts).cpu().double().T  # (N, C)
        if split.columns is not None:
            kept = split.columns >= 0
            columns = split.columns[kept].expand(len(logits), -1)
            logits = torch.full((len(logits), int(split.columns.max()) + 1), -math.inf, dtype=logits.dtype).scatter_reduce(
                1, columns, logits[:, kept], "amax")
        return logits.softmax(1)

    return probabilities(default_texts), probabilities(concept_texts)


def metrics(p, split):
    """Probabilities (N, C) -> accuracy, macro F1, macro recall (0 to 1), log loss (nats) and n; accuracy and n of each group.

    As WILDS defines them, on the whole split: macro means over the classes that are present in the labels, of which one that is
    never predicted counts 0; groups without images have no accuracy and are not the worst, nor is a region "Other".
    """
    predicted, labels, size = p.argmax(1), split.labels, p.shape[1]
    correct = (predicted == labels).double()
    hits, truth, guesses = (torch.bincount(which, minlength=size).double() for which in (labels[predicted == labels], labels, predicted))
    present = truth > 0
    result = dict(accuracy=correct.mean().item(), n=len(correct), log_loss=-p.gather(1, labels[:, None]).log().mean().item(),
                  macro_f1=(2 * hits / (truth + guesses))[present].mean().item(), macro_recall=(hits / truth)[present].mean().item())
    for name, members in split.groups.items():
        if members.any():
            result |= {f"accuracy_{name}": correct[members].mean().item(), f"n_{name}": int(members.sum())}
    if split.group_kind:
        ranked = [result[f"accuracy_{name}"] for name, members in split.groups.items() if members.any() and name != "Other"]
        result[f"worst_{split.group_kind}_accuracy"] = min(ranked, default=None)
    return result


def evaluate(model, data, default_texts, concept_texts, betas, workers=None):
    """One result for each beta: metrics on validation and every test domain, and their summary. Log losses in nats.

    The summary's mean and worst leave out the first, in-distribution domain; the worst log loss is over all. Raises BadInput.
    """
    p_val = predict(model, data.val, default_texts, concept_texts, workers)
    results = [dict(beta=beta, validation=metrics(mix(*p_val, beta), data.val), domains={}) for beta in betas]
    for domain, split in data.tests.items():
        p = p_val if split is data.val else predict(model, split, default_texts, concept_texts, workers)
        for result in results:
            result["domains"][domain] = metrics(mix(*p, result["beta"]), split)
    id_metric, ood_metric = data.metrics
    for result in results:
        in_distribution, *shifted = result["domains"].values()
        if not all(math.isfinite(m["log_loss"]) for m in result["domains"].values()):
            raise BadInput("the model's probabilities are not finite; allowed: a smaller --lr")
        result["summary"] = summary = {f"id_{id_metric}": in_distribution[id_metric]}
        if any(m[ood_metric] is not None for m in shifted):
            values = [m[ood_metric] for m in shifted if m[ood_metric] is not None]
            summary |= {f"ood_mean_{ood_metric}": statistics.fmean(values), f"ood_worst_{ood_metric}": min(values)}
        summary["worst_log_loss"] = max(m["log_loss"] for m in result["domains"].values())
        if data.group_weights:
            of_group = {g: m[f"accuracy_{g}"] for m in result["domains"].values() for g in data.group_weights if f"accuracy_{g}" in m}
            weights = {g: data.group_weights[g] for g in of_group}
            summary |= dict(worst_group_accuracy=min(of_group.values()),
                            adjusted_accuracy=sum(weights[g] * a for g, a in of_group.items()) / sum(weights.values()))
    return results


# ------------------------------------------------------------------------------------------------------- experiment

RECIPE = ("dataset", "model", "pretrained", "epochs", "batch_size", "accumulate", "lr", "warmup", "weight_decay", "select",
          "core_targets", "loss", "draw_texts", "skip_bad_images", "beta")  # what decides a training, beside method, lambda and prompts


def prompts_of(config, data, saved=None):
    """The prompts of a run -> {"default": {key: [texts]}, "concept": {key: [texts]}}, keys in the order of the labels. Raises BadInput."""
    if saved:
        if [set(saved["prompts"][head]) for head in ("default", "concept")] != [set(data.classes)] * 2:
            raise BadInput(f"--eval-only --model {config.model}: its drm.json has prompts for other classes than --dataset "
                           f"{config.dataset}")
        return {head: {key: saved["prompts"][head][key] for key in data.classes} for head in ("default", "concept")}
    if config.descriptions is None:
        raise BadInput(f"--descriptions: {config.dataset} needs them; allowed: a JSON file, see descriptions/toy.json for the form")
    names, descriptions = load_names_and_descriptions(config.descriptions, data.classes)
    default = {key: [template.replace("{}", name) for template in config.template] for key, name in names.items()}
    owner = {}
    for key, texts in default.items():
        other = owner.setdefault(texts[0].lower(), key)
        if other != key:
            fault = f"classes {other!r} and {key!r} have one default prompt, {texts[0]!r}; a model cannot tell them apart by it"
            if config.dataset in ("folder", "csv"):  # elsewhere an id tells them apart, and description files may name them
                raise BadInput(f"--data-root {config.data_root}: {fault}")
            log(fault)
    return dict(default=default, concept=dict(zip(data.classes, descriptions)))


@torch.no_grad()
def survey(zero_shot, data, texts, config):
    """What core targets are made of, said how good it is -> (data, features (N, D), labels (N,), concept head (C, D), logit scale).

    data is that without the images that --skip-bad-images leaves out; features of files are in half precision.
    """
    bad = {} if config.skip_bad_images else None
    features = encode_images(zero_shot, data.train, config.workers, bad)
    if bad:
        log(f"left out: {len(bad)} of {len(data.train.labels)} training images; the first: {next(iter(bad.values()))}")
        data = data._replace(train=data.train.take([i for i in range(len(data.train.labels)) if i not in bad]))
        check_training(data.train, config, config.loss == "flyp" or "flyp" in config.method)
    features = features if isinstance(data.train.images, torch.Tensor) else features.half()
    labels, heads = data.train.labels.to(features.device), [build_head(zero_shot, of_head) for of_head in texts]
    for name, head in zip(("default", "concept"), heads):
        right = sum((part.to(head) @ head.T).argmax(1).eq(y).sum().item() for part, y in zip(features.split(8192), labels.split(8192)))
        log(f"zero-shot {name} head: accuracy {100 * right / len(labels):.1f} % on the {len(labels)} training images")
    return data, features, labels, heads[1], logit_scale(zero_shot)


def run(config, out=None):
    """Everything a config asks for -> {"config", "about", "results"}, ready for JSON. Raises BadInput.

    results: one row for each method, seed, lambda and alpha; lam is null for zero-shot (no training) and wrm (infinite).
    `out`, a folder, is made and written to before training, so that no training is lost to it; trained models go there too.
    """
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where autocast is off: evaluation
    saved = read_saved(find(config.model.removeprefix("local-dir:")), METHODS) if config.eval_only else None
    # What is wrong with data and prompts shows sooner than a model loads.
    data = load_data(config, saved["seed"] if saved else config.seed)
    prompts = prompts_of(config, data, saved)
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    zero_shot, tokenizer = load_clip(config.model, config.pretrained, device)
    texts = [tokenize(tokenizer, prompts[head].values(), source, device) for head, source in (
        ("default", "the default prompts"), ("concept", f"--model {config.model}" if saved else f"--descriptions {config.descriptions}"))]
    if config.core_targets == "oracle" and data.train.oracle is None:
        raise BadInput(f"--core-targets oracle: {config.dataset} does not know p(y | x_c); allowed: {', '.join(CORE_TARGETS[:-1])}")
    plan = {  # method -> (lambda, estimator of the core targets, form of the loss) of each of its trainings
        "erm": [(0.0, None, config.loss)], "wrm": [(math.inf, config.core_targets, config.loss)],
        "drm": [(lam, config.core_targets, config.loss) for lam in dict.fromkeys((config.lam, *config.sweep))],
        "dual": [(config.lam, "onehot", config.loss)], "flyp": [(0.0, None, "flyp-released")], "zero-shot": []}
    trainings = [] if saved else [(method, *training) for method in config.method for training in plan[method]]
    if trainings:
        check_training(data.train, config, any(form != "ce" for *_, form in trainings))

    def folder(method, lam, seed):
        return Path(out) / (method + (f"-lambda-{lam:g}" if method in ("drm", "dual") else "") + f"-seed-{seed}")

    if out is not None:
        make_folder(out)
        for method, lam, *_ in trainings:
            for seed in range(config.seed, config.seed + config.seeds):
                make_folder(folder(method, lam, seed), "model")

    rows, versions = [], dict(torch=torch.__version__, open_clip=open_clip.__version__)
    if saved:
        rows = [dict(method=saved["method"], seed=saved["seed"], lam=saved["lam"], alpha=1.0, seconds=None, core_targets=None) | result
                for result in evaluate(zero_shot, data, *texts, [saved["beta"] if config.beta is None else config.beta], config.workers)]
    for seed in range(config.seed, config.seed + config.seeds) if not saved else ():
        if seed == config.seed or config.dataset == "toy":  # files are the same for every seed
            data = data if seed == config.seed else load_data(config, seed)
            if trainings:
                data, features, labels, concept_head, scale = survey(zero_shot, data, texts, config)
        for method in config.method:
            if method == "zero-shot":  # each head, and their mixture
                betas = dict.fromkeys((1.0, 0.0, config.beta_of(config.lam)))
                rows += [dict(method=method, seed=seed, lam=None, alpha=0.0, seconds=0.0, core_targets=None) | result
                         for result in evaluate(zero_shot, data, *texts, betas, config.workers)]
            for lam, estimator, form in plan[method]:
                targets = quality = None
                if lam > 0:
                    targets = core_targets(estimator, features, labels, concept_head, scale, data.train.oracle)
                    quality = target_quality(estimator, targets, labels, data.train.oracle)
                    log(f"core targets `{estimator}`: the true class gets {quality['true_class']:.3f} on average")
                beta, name = config.beta_of(lam), f"{method}, seed {seed}"
                recipe = {key: getattr(config, key) for key in RECIPE} | dict(lam=str(lam), seed=seed, training_images=len(labels))
                about = dict(method=method, lam=None if lam == math.inf else lam, beta=beta, seed=seed, dataset=config.dataset,
                             prompts=prompts, recipe=recipe, versions=versions)
                keep = Checkpoints(folder(method, lam, seed), tokenizer, about, config.resume) if out is not None else None

                def score(model):  # on in-distribution validation only
                    return metrics(mix(*predict(model, data.val, *texts, config.workers), beta), data.val)[data.metrics[0]]

                model, start = copy.deepcopy(zero_shot), time.perf_counter()
                train(model, data.train, *texts, targets, config, lam, form, seed, name,
                      score if config.select == "best" else None, keep)
                seconds = None if config.resume else round(time.perf_counter() - start, 1)  # of the whole training, or of none
                for alpha in config.alpha:
                    at_alpha = interpolate_weights(zero_shot, model, alpha) if alpha < 1 else model
                    [result] = evaluate(at_alpha, data, *texts, [beta], config.workers)
                    rows.append(dict(method=method, seed=seed, lam=about["lam"], alpha=alpha, seconds=seconds, core_targets=quality) | result)
    about = versions | dict(device=str(device), model=config.model, pretrained=config.pretrained, descriptions=config.descriptions,
                            prompts_sha256=digest, template=config.template, classes=data.classes, metrics=data.metrics,
                            ceilings=data.ceilings)
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


def words(metric):
    """worst_region_accuracy -> worst region accuracy."""
    return metric.replace("_", " ").replace(" f1", " F1")


def spread(values):
    """-> (mean, standard deviation over seeds; 0 for a single one)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(report):
    """The results as lines of a Markdown table: a row per method, accuracies and F1 in %, log losses in nats."""
    grouped, ceilings, (id_metric, ood_metric) = by_name(report["results"]), report["about"]["ceilings"], report["about"]["metrics"]
    domains, several = list(report["results"][0]["domains"]), report["config"]["seeds"] > 1
    metric_of = {domain: ood_metric if i else id_metric for i, domain in enumerate(domains)}
    mean, worst = f"ood_mean_{ood_metric}", f"ood_worst_{ood_metric}"
    drm = next((rows for rows in grouped.values() if rows[0]["method"] == "drm" and rows[0]["alpha"] == 1), None)
    best = {}  # (method, lambda) -> the name of the row whose WiSE-FT alpha below 1 is best on validation: no test image chooses it
    for name, rows in sorted(grouped.items(), key=lambda item: spread([r["validation"][id_metric] for r in item[1]])[0]):
        if 0 < rows[0]["alpha"] < 1:
            best[rows[0]["method"], rows[0]["lam"]] = name

    def cell(values, scale=1, digits=1):
        if not values or None in values:  # no domain but the in-distribution one, or no group that counts in it
            return "-"
        mean, sd = spread([scale * v for v in values])
        return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if several else "")

    plain = id_metric == ood_metric
    lines = [[f"{words(id_metric)} % (log loss)" if plain else "% (log loss)",
              *(domain if plain else f"{domain}: {words(metric_of[domain])}" for domain in domains),
              "OOD mean", "OOD worst", "worst log loss"]]
    for name, rows in grouped.items():
        in_domain = [[r["domains"][d] for r in rows] for d in domains]
        summary = {k: [r["summary"][k] for r in rows] for k in rows[0]["summary"]}
        lines.append([name + " *" * (name in best.values()),
                      *(f"{cell([m[metric_of[d]] for m in ms], 100)} ({cell([m['log_loss'] for m in ms], 1, 2)})"
                        for d, ms in zip(domains, in_domain)),
                      cell(summary.get(mean), 100), cell(summary.get(worst), 100), cell(summary["worst_log_loss"], 1, 2)])
        if several and drm and mean in summary:  # seeds pair the rows: the same images, the same order
            lead = [100 * (a["summary"][mean] - b["summary"][mean]) for a, b in zip(drm, rows)]
            lines[-1].append(f"{spread(lead)[0]:+.2f} ± {spread(lead)[1] / math.sqrt(len(lead)):.2f}" if rows is not drm else "")
    if len(lines[-1]) > len(lines[0]):
        lines[0].append("DRM's lead in OOD mean ± s.e.")
    if ceilings:
        lines.append(["best possible, domain known", *(f"{100 * c:.1f}" for c in ceilings.values())])
    width = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    lines = [line + [""] * (len(width) - len(line)) for line in lines]
    lines.insert(1, ["-" * w for w in width])
    return ["| " + " | ".join(text.ljust(w) for text, w in zip(line, width)) + " |" for line in lines]


def details(report):
    """All that was measured in each domain, as lines of text: metrics and groups in %, each with its n; means over seeds.
    None where accuracy says it all."""
    lines, first = [], report["results"][0]["domains"]
    if report["about"]["metrics"][0] == "accuracy" and not any(k.startswith("worst_") for m in first.values() for k in m):
        return lines
    for name, rows in by_name(report["results"]).items():
        for domain, first in rows[0]["domains"].items():
            mean = {k: 100 * statistics.fmean(r["domains"][domain][k] for r in rows) for k, v in first.items() if isinstance(v, float)}
            shown = [f"{words(k)} {v:.1f}" + (f" (n {first['n_' + k[9:]]})" if "n_" + k[9:] in first else "")
                     for k, v in mean.items() if k != "log_loss"]
            lines.append(f"{name}, {domain} (n {first['n']}): {', '.join(shown)}")
        extra = [k for k in rows[0]["summary"] if not k.startswith(("id_", "ood_", "worst_log"))]
        if extra:
            values = (f"{words(k)} {100 * statistics.fmean(r['summary'][k] for r in rows):.1f}" for k in extra)
            lines.append(f"{name}, all: {', '.join(values)}")
    return lines


def plot(report, path):
    """The trade-off as a picture: the path of lambda from ERM to WRM, and every other row beside it."""
    from matplotlib.figure import Figure  # no backend and no global state; imported here, as nothing else needs it

    grouped, (first, *_, last) = by_name(report["results"]), report["results"][0]["domains"]
    ceiling, (id_metric, ood_metric) = report["about"]["ceilings"].get(last), report["about"]["metrics"]
    shown_first, shown_last = (domain.replace("$", r"\$") for domain in (first, last))  # no mathematics
    panels = (("worst-domain risk: log loss (nats), lower is better", lambda r: r["summary"]["worst_log_loss"],
               f"mean out-of-distribution {words(ood_metric)} (%)", lambda r: 100 * r["summary"][f"ood_mean_{ood_metric}"]),
              (f"in-distribution {words(id_metric)}, `{shown_first}` (%)", lambda r: 100 * r["domains"][first][id_metric],
               f"{words(ood_metric)} under shift, `{shown_last}` (%)", lambda r: 100 * r["domains"][last][ood_metric]))
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for axes, (x_name, x_of, y_name, y_of) in zip(figure.subplots(1, 2), panels):
        path_of_lambda, legend = [], {}
        for name, rows in grouped.items():
            (x, dx), (y, dy) = spread([x_of(r) for r in rows]), spread([y_of(r) for r in rows])
            method, wise = rows[0]["method"], rows[0]["method"] != "zero-shot" and rows[0]["alpha"] < 1
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
        axes.annotate(f"best possible on `{shown_last}`", (0.02, 100 * ceiling), (0, 4), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=9)
    n = report["config"]["seeds"]
    figure.suptitle(f"ERM-vs-WRM trade-off, {report['config']['dataset']}: " + (f"mean ± s.d. of {n} seeds" if n > 1 else "one seed"))
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, format="png")


# ----------------------------------------------------------------------------------------------------- command line

def parse(argv=None):
    """Command line -> Config. Raises BadInput."""
    parser = Parser(
        prog="drm_min.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Dual Risk Minimization: fine-tune a zero-shot model on ERM + lambda * WRM and compare it with its parts.",
        epilog="Without options: the toy world, offline, in under a minute. Examples:\n"
               "  python drm_min.py --seeds 5 --sweep 0.3 3 10                 the trade-off curve with error bars\n"
               "  python drm_min.py --dataset iwildcam --data-root DATA        a real data set, with its own defaults")
    recipe = DATASETS["toy"]
    for f in dataclasses.fields(Config):
        m, default = f.metadata, recipe.get(f.name) if f.default is None else f.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        notes = ([f"one of: {', '.join(m['choices'])}"] if m["choices"] and f.name not in ("method", "loss") else []) + (
            [f"default: {shown}" + (" (toy)" if f.default is None else "")] if default not in (None, (), False) else [])
        form = dict(action="store_true") if m["kind"] is bool else dict(
            type=m["kind"], nargs="+" if m["many"] else None, metavar={str: "NAME", int: "N", float: "X"}[m["kind"]])
        parser.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, **form,
                            help=(m["help"] + (f" [{'; '.join(notes)}]" if notes else "")).replace("%", "%%"))
    return Config(**vars(parser.parse_args(argv)))


def main(argv=None):
    """Run what the command line says, print the table, write results.json and tradeoff.png. Returns the exit code."""
    try:
        config = parse(argv)
        out = Path(config.out)
        with dead_workers_named():
            report = run(config, out)
        write(out / "results.json", lambda path: path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8"))
        domains = report["results"][0]["domains"]
        picture = all(m[report["about"]["metrics"][1]] is not None for m in list(domains.values())[1:]) and len(domains) > 1
        if picture:
            write(out / "tradeoff.png", lambda path: plot(report, path))
    except BadInput as e:
        print(f"drm_min.py: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as e:
        print(f"drm_min.py: {str(e) or 'stopped; what was trained is kept, and --resume goes on from it'}", file=sys.stderr)
        return 130
    lines = [*table(report), *details(report)]
    for quality in [row["core_targets"] for row in report["results"] if row["core_targets"]][:1]:
        lines.append(f"core targets `{quality['estimator']}`, seed {config.seed}: the true class gets {quality['true_class']:.2f} on average" + (
            f"; KL(oracle || targets) {quality['kl_from_oracle']:.2f} nats" if quality.get("kl_from_oracle") is not None else ""))
    if any(0 < row["alpha"] < 1 for row in report["results"]):
        lines.append("* of the WiSE-FT weights below 1, the one with the best validation " + words(report["about"]["metrics"][0]))
    counts = ", ".join(f"{domain} {m['n']}" for domain, m in domains.items())
    lines.append(f"images: {counts}; log losses in nats; ± is the standard deviation over seeds; written: {out / 'results.json'}"
                 + f", {out / 'tradeoff.png'}" * picture)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ± shows a question mark
    try:
        print("\n".join(lines), flush=True)
    except OSError as e:
        print(f"drm_min.py: the table cannot be written to the standard output ({e.strerror}); the files are there", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
