#!/usr/bin/env python3
"""Dual Risk Minimization (DRM, NeurIPS 2024, arXiv 2411.19757) on one GPU or a laptop. Read it top to bottom.

    python drm_min.py                                          a toy world, about a minute on any computer
    python drm_min.py --dataset iwildcam --data-root FOLDER    a real data set

A zero-shot model such as CLIP loses robustness when it is fine-tuned: it learns that sand means "camel". DRM
reads two kinds of text for each class. The text tower encodes both, and each kind makes a head:

    default:  "a photo of a camel."         concept:  "an animal with a hump and long legs"
    q(y | x) = softmax over y of  scale * cosine(image, head[y])        q_default or q_concept, by its head

A training minimises the weighted sum of two risks; both towers and the scale learn. Heads are no
parameters: they are encoded anew at every step, and that is how the text tower learns.

    loss = ERM + lambda * WRM                                           (1)
    ERM  = mean of  -log q_default(y | x)                               (2)  empirical risk
    WRM  = mean of  -sum_k p_c(k | x) log q_concept(k | x)              (3)  for the worst-case risk
    p    = beta * q_default + (1 - beta) * q_concept                    (4)  at test time
    p_c(k | x) = q_concept(k | x) of the model before training          (5)  core targets

p_c, c for core, estimates p(y | x_c), where x_c is the part of x that shows the object itself. Who predicts
just that does best in his worst domain, so (3) teaches it to the concept head. The right p_c is unknown, the
paper's not in our sources: --core-targets chooses a guess, (5) is the simplest, the recipe has the default.

    erm: (2) alone   wrm: (3) alone   drm: both   dual: both, p_c one-hot labels   flyp: FLYP, to compare
    erm-mixed: (4) of erm's two heads             ensemble: (4) of erm and the zero-shot q_concept

Letters in the shapes: B batch, N images, C classes, K classes of a head, T texts, L tokens, D embedding.
"""

import copy
import dataclasses
import math
import sys
from dataclasses import dataclass, field
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay

import toy
from support import answers, errors, flyp, report, weights
from support.checkpoints import Checkpoints, about_job, about_training, read_saved
from support.images import ImageFiles, image_batches
from support.metrics import best_of_label, metrics, summarise
from support.options import command_line
from support.readers import READERS, tables
from support.settings import METHODS, OF_ERM, OF_FEATURES, Config
from support.targets import REFINED, label_targets, normalized_targets, target_quality
from support.texts import prompts_of, saved_prompts
from toy import world

# ---------------------------------------------------------------------------------------------- 1 two heads


class Texts(NamedTuple):
    tokens: torch.Tensor  # (T, L)
    owner: torch.Tensor  # (T,) the class of each text


class Prompts(NamedTuple):
    default: Texts
    concept: Texts


def build_head(model, texts, classes=None):
    """Texts -> head (C, D): for each class the mean of its unit text embeddings, brought back to unit length.

    With `classes` (K,), sorted and distinct, only their rows are built: (K, D).
    """
    tokens, owner = texts
    if classes is not None:
        own = torch.isin(owner, classes)
        tokens, owner = tokens[own], torch.searchsorted(classes, owner[own])
    features = weights.encode_text(model, tokens)  # (T, D)
    sums = features.new_zeros(int(owner.max()) + 1, features.shape[1]).index_add(0, owner, features)  # (C, D)
    return F.normalize(sums, dim=-1)


def tokenize(tokenizer, texts, source="texts", device="cpu"):
    """Lists of texts, one list a class -> Texts. Raises BadInput for one that the model cannot read whole."""
    flat = [text for own in texts for text in own]
    owner = [c for c, own in enumerate(texts) for _ in own]
    weights.check_lengths(tokenizer, flat, source)
    return Texts(tokenizer(flat).to(device), torch.tensor(owner, device=device))


def image_features(model, images):
    """Images (B, 3, H, W), uint8 or already prepared as float -> unit embeddings (B, D)."""
    if images.dtype == torch.uint8:
        cfg = open_clip.get_model_preprocess_cfg(model)
        channels = torch.tensor([cfg["mean"], cfg["std"]]).to(images.device, non_blocking=True)  # (2, 3)
        mean, std = channels[:, :, None, None]
        images = (images.float() / 255 - mean) / std
    return model.encode_image(images, normalize=True)


def logit_scale(model):
    """What cosines are multiplied by before the softmax: an inverse temperature, 100 in CLIP."""
    return model.logit_scale.exp()


# ------------------------------------------------------------------------------------------- 2 core targets


def core_targets(estimator, features, labels, head, scale, oracle=None):
    """Estimate p_c(y | x) of the training images before training, equation (5) or another guess.

    features (N, D) and concept head (C, D) are unit embeddings of the zero-shot model, labels (N,), scale its
    logit scale; "oracle" needs the true p(y | x_c) (N, C). Returns a function: numbers of images (B,) ->
    their targets (B, C), rows that sum to one, made when asked for: N x C would be 5 GB for ImageNet.
    """

    def affinity(batch, classes=slice(None)):
        return features[batch].to(head) @ head[classes].T  # (B, C): cosines

    def softmax(batch):  # what the zero-shot concept head says
        return (scale * affinity(batch)).softmax(1).detach()

    def onehot(batch):  # the label, whatever made it: WRM becomes a second ERM
        return F.one_hot(labels[batch], len(head)).to(head)

    if estimator in REFINED:  # a softmax of affinities, each class's brought to 0..1, and what labels add
        return REFINED[estimator](normalized_targets(affinity, labels, len(head)), onehot)
    if estimator == "label":  # g * onehot + (1 - g) / C, where g tells how well the image shows its label
        return label_targets(softmax, labels, len(head))
    return {"softmax": softmax, "onehot": onehot, "oracle": lambda batch: oracle[batch].to(head)}[estimator]


# ---------------------------------------------------------------------------------------------- 3 dual loss


def contrastive_loss(logits, targets):
    """Cross-entropy over rows and over columns, averaged: logits and non-negative targets (B, K) -> scalar.

    Targets are normalised along the rows for the one and along the columns for the other, so images of one
    class share a column instead of being each other's negatives. With identity targets, (B, B), it is
    FLYP's loss.
    """
    tiny = torch.finfo(targets.dtype).tiny
    over_rows = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True).clamp(min=tiny))
    over_columns = F.cross_entropy(logits.T, (targets / targets.sum(0).clamp(min=tiny)).T)
    return (over_rows + over_columns) / 2


def dual_loss(features, default_head, concept_head, scale, labels, p_c, lam=1.0, risk=F.cross_entropy):
    """Equations (1) to (3) on a batch -> (loss, ERM term, WRM term), scalars.

    features (B, D); heads (K, D); labels (B,) index their rows; core targets p_c (B, K). A head that is
    None has no term: without the concept head this is ERM, without the default head WRM. `risk`, of logits
    and targets (B, K), is cross-entropy over all classes or contrastive_loss over those of the batch.
    """
    erm_loss = wrm_loss = features.new_zeros(())
    if default_head is not None:
        onehot = F.one_hot(labels, len(default_head)).to(features)  # (B, K)
        erm_loss = risk(scale * features @ default_head.T, onehot)  # (2), logits (B, K)
    if concept_head is not None:
        wrm_loss = risk(scale * features @ concept_head.T, p_c)  # (3), logits (B, K)
    return erm_loss + lam * wrm_loss, erm_loss, wrm_loss  # (1)


# ----------------------------------------------------------------------------------------------- 4 training


class Job(NamedTuple):
    """One training, of one seed."""

    method: str
    seed: int
    heads: tuple  # those with a term in the loss: "default" has the ERM term, "concept" the WRM term
    lam: float = 1.0  # lambda, the weight of the WRM term
    beta: float = 0.5  # weight of the default head at test time, equation (4); see beta_of
    estimator: str = None  # of the core targets; None without a concept head
    loss: str = "ce"  # ce, flyp (contrastive) or flyp-released (the baseline)


def lr_factor(step, steps, warmup):
    """Linear warm-up, never more than a tenth of the run, then a cosine to 0."""
    warmup = max(1, min(warmup, steps // 10))
    cosine = (1 + math.cos(math.pi * max(0, step - warmup) / (steps - warmup + 1))) / 2
    return min((step + 1) / warmup, cosine)


def shuffled_batches(n, config, seed, whole=True):
    """The numbers of the images (B,) of every step. Only `whole` batches: what is left out changes."""
    shuffle, batches = torch.Generator().manual_seed(seed), []
    for _ in range(config.epochs):
        of_epoch = torch.randperm(n, generator=shuffle).split(config.batch_size)
        some = max(1, n // config.batch_size) if whole else len(of_epoch)
        batches += of_epoch[:some]  # one of all images if there are fewer
    return batches


def batch_gradients(model, images, labels, batch, prompts, targets_of, job, half, config):
    """Forward and backward of one batch, through both towers -> (loss, ERM term, WRM term), numbers.

    images (B, 3, H, W) with their labels (B,) and numbers `batch` (B,); targets_of: numbers of images ->
    their core targets (., C); half: weights.mixed_precision.
    """
    risk, classes, rows = F.cross_entropy, None, labels  # all C compete; rows: each image's of the heads
    if job.loss != "ce":  # the classes of the batch (K,) compete, in heads of their own
        risk, (classes, rows) = contrastive_loss, labels.unique(return_inverse=True)
    targets = [None] * config.accumulate
    if "concept" in job.heads:  # (B, C), or (B, K), which the loss normalises; in parts, see below
        targets = targets_of(batch)[:, slice(None) if classes is None else classes].chunk(config.accumulate)
    with half.autocast:  # only the towers run in half precision
        built = {name: build_head(model, getattr(prompts, name), classes) for name in job.heads}  # (K, D)
    # --accumulate: the batch goes through the image tower in parts. (The options refuse it with a contrastive
    # loss, which needs the whole batch.) The backward pass of a part stops at `leaves`, copies of the
    # heads; their summed gradient then goes through the text tower, once.
    leaves = {name: head.detach().float().requires_grad_() for name, head in built.items()}
    default_head, concept_head = leaves.get("default"), leaves.get("concept")
    if job.loss == "flyp-released":  # a row an image: even images of one class are each other's negatives
        default_head, rows = default_head[rows], torch.arange(len(labels), device=labels.device)
    total = torch.zeros(3, device=labels.device)
    parts = (of_all.chunk(config.accumulate) for of_all in (images, rows))
    for some, own_rows, p_c in zip(*parts, targets):
        some = some.to(labels.device, non_blocking=True)
        with half.autocast:
            features = image_features(model, some).float()  # (B, D)
        scale = logit_scale(model)
        losses = dual_loss(features, default_head, concept_head, scale, own_rows, p_c, job.lam, risk)
        losses = torch.stack(losses) * (len(some) / len(labels))
        half.scaler.scale(losses[0]).backward()
        total += losses.detach()
    for name, head in built.items():  # all of the text tower's gradient
        head.backward(leaves[name].grad.to(head))
    return total.tolist()


def train(model, split, prompts, targets_of, job, config, score=None, checkpoints=None):
    """Fine-tune both towers of `model` in place and return the loss of every step.

    targets_of: numbers of images (B,) -> their core targets (B, C). With --select best, the weights of the
    epoch with the highest score(model) are kept. Raises BadInput where a loss is not finite, and Stopped.
    """
    device = next(model.parameters()).device
    released = job.loss == "flyp-released"  # support/flyp.py says what is otherwise then
    batches = shuffled_batches(len(split), config, job.seed, whole=not released)
    # Norms, biases and the logit scale are not decayed: only what has two dimensions or more.
    groups = param_groups_weight_decay(model, config.weight_decay)
    if released:  # everything is
        groups = [{"params": [*model.parameters()], "weight_decay": config.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    factor = flyp.lr_factor if released else lr_factor
    half = weights.mixed_precision(config.precision, device)
    max_log_scale = max(math.log(100), model.logit_scale.item())  # SigLIP starts above 100
    checkpoints = checkpoints or Checkpoints(config)
    done = checkpoints.load(model, optimizer, half.scaler)
    if checkpoints.finished:
        return [row["loss"] for row in checkpoints.history]
    model.set_grad_checkpointing(config.grad_checkpointing)
    model.train()
    with checkpoints.watching(model, len(batches)):  # shows the progress; Ctrl-C waits for the end of a step
        for step, images in image_batches(model, split, batches[done:], job.seed, done):
            batch = batches[step]
            torch.manual_seed(job.seed * 1_000_003 + step)  # dropout and the like: the same after a resume
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor(step, len(batches), config.warmup)
            labels = split.labels[batch].to(device)
            own = prompts
            if released:
                drawn, labels = flyp.draw_texts(prompts.default, labels)
                own = prompts._replace(default=drawn)
            losses = batch_gradients(model, images, labels, batch, own, targets_of, job, half, config)
            checkpoints.check(losses)
            half.scaler.step(optimizer)
            half.scaler.update()
            optimizer.zero_grad()
            if not released:
                with torch.no_grad():
                    model.logit_scale.clamp_(0, max_log_scale)
            epoch_ends = (step + 1) % (len(batches) // config.epochs) == 0
            value = score(model) if epoch_ends and config.select == "best" else None
            checkpoints.after_step(model, optimizer, half.scaler, losses, value)  # saves; raises Stopped
        with torch.no_grad():
            checkpoints.finish(model, lambda: build_head(model, prompts.default))  # refuses a spoilt model
    model.set_grad_checkpointing(False)
    model.eval()
    return [row["loss"] for row in checkpoints.history]


# --------------------------------------------------------------------------------------------- 5 evaluation


def mix(p_default, p_concept, beta):
    """Equation (4): probabilities are mixed, not logits."""
    return beta * p_default + (1 - beta) * p_concept


def interpolate_weights(zero_shot, fine_tuned, alpha):
    """WiSE-FT: a new model with the weights (1 - alpha) * zero_shot + alpha * fine_tuned."""
    model = copy.deepcopy(fine_tuned)
    start, end = zero_shot.state_dict(), fine_tuned.state_dict()
    for name, value in end.items():
        if value.is_floating_point():
            end[name] = (1 - alpha) * start[name] + alpha * value
    model.load_state_dict(end)
    return model


@torch.no_grad()
def encode_images(model, split, bad=None):
    """All images of a split -> unit embeddings (N, D). The model is left in eval mode.

    Images that cannot be read are left out and noted in `bad`, {number: reason}; without it they are refused.
    """
    device = next(model.eval().parameters()).device
    batches = torch.arange(len(split)).split(500 if torch.is_tensor(split.images) else 128)
    features = []
    for _, images in image_batches(model, split, batches, bad=bad):
        features.append(image_features(model, images.to(device, non_blocking=True)))
    return torch.cat(features) if features else torch.empty(0, device=device)


@torch.no_grad()
def predict(model, split, prompts, bad=None):
    """(p_default, p_concept), (N, C) each, from one pass of the image tower; `bad`: see encode_images.

    In double precision on the CPU, so that the log of a small probability stays finite.
    """
    was_training = model.training
    features = encode_images(model, split, bad).cpu().double()
    scale = logit_scale(model).cpu().double()

    def probabilities(texts):
        logits = scale * features @ build_head(model, texts).cpu().double().T  # (N, C)
        if split.label_of_class is not None:
            logits = best_of_label(logits, split.label_of_class)  # (N, labels)
        return logits.softmax(1)

    both = probabilities(prompts.default), probabilities(prompts.concept)
    model.train(was_training)
    return both


def predict_all(model, data, prompts):
    """{split: what predict() says of it}: "val", and every test domain."""
    p = {"val": predict(model, data.val, prompts)}
    for domain, split in data.tests.items():
        p[domain] = p["val"] if split is data.val else predict(model, split, prompts)
    return p


def ensemble(p, p_zero_shot):
    """A rival of DRM, of two models: p_default of the fine-tuned one, p_concept of the zero-shot one."""
    return {split: (p_default, p_zero_shot[split][1]) for split, (p_default, _) in p.items()}


def evaluate(p, data, beta):
    """Predictions as of predict_all -> metrics of validation and test domains, a summary. Raises BadInput."""
    domains = {domain: metrics(mix(*p[domain], beta), split) for domain, split in data.tests.items()}
    errors.check_finite(domains)
    summary = summarise(domains, data.metrics, data.group_weights)
    validation = metrics(mix(*p["val"], beta), data.val)
    return {"beta": beta, "validation": validation, "domains": domains, "summary": summary}


# --------------------------------------------------------------------------------------------------- 6 data


@dataclass
class Split:
    """Images with labels, on the CPU. `groups` name subsets whose accuracy is reported apart."""

    images: object  # (N, 3, H, W) uint8, or ImageFiles
    labels: torch.Tensor  # (N,) int64
    oracle: torch.Tensor = None  # (N, C) the true p(y | x_c), where the generator knows it
    groups: dict = field(default_factory=dict)  # name -> (N,) bool
    group_kind: str = None  # what the groups are, if the worst of them counts: "group", "region"
    label_of_class: torch.Tensor = None  # (C,) the label that each class counts for, -1: none; None: its own
    crop: float = 0.9  # what a random crop keeps of a training picture, at least (FLYP's value); 1: no crop

    def __len__(self):
        return len(self.labels)

    def take(self, kept):
        """The split of some images only, by their numbers (M,)."""
        groups = {name: members[kept] for name, members in self.groups.items()}
        some = dataclasses.replace(self, images=self.images[kept], labels=self.labels[kept], groups=groups)
        some.oracle = None if self.oracle is None else self.oracle[kept]
        return some


class Data(NamedTuple):
    classes: dict  # key (in the description file) -> name (in a default prompt), in the order of the labels
    train: Split
    val: Split  # in distribution: the only images that may choose anything
    tests: dict  # domain -> Split; the first is in distribution, the others are not
    ceilings: dict = {}  # domain -> the best accuracy without seeing hidden objects, where it is known
    metrics: tuple = ("accuracy", "accuracy")  # what counts in distribution, and out of it
    group_weights: dict = None  # group -> its images in training, for an average over groups


def load_data(config, seed=0):
    """The data of a run. Of the toy world a seed draws everything anew; files stay. Raises BadInput.

    Your own: --dataset folder (or csv) --data-root FOLDER --descriptions FILE. To add a data set: copy a
    file of support/readers/, the shortest is folders.py, with its RECIPE, and name it in READERS there.
    """
    if config.dataset in world.CAMERAS:
        return toy_data(seed, config.dataset)
    table = tables.read_table(READERS[config.dataset], config)
    splits = {name: Split(**columns) for name, columns in tables.columns_of(table, config.workers).items()}
    train, val = splits.pop("train"), splits.pop("val")
    id_test = table.id_test if table.id_test in splits else "val"
    tests = {id_test: splits.pop(id_test, val)} | splits  # in distribution first
    data = Data(table.classes, train, val, tests, {}, table.metrics, table.group_weights)
    report.say_what_was_read(config.dataset, data)
    return data


def toy_data(seed, camera="toy"):
    """The world of toy/world.py: objects (core) before places (not), whose true p(y | x_c) is known."""

    def draw(n, domain, stream):
        p = world.draw(n, domain, torch.Generator().manual_seed(1000 * seed + stream), camera=camera)
        return Split(p.images, p.objects, p.oracle, {"visible": p.visible, "hidden": ~p.visible}, crop=1.0)

    tests = {domain: draw(2000, domain, 2 + i) for i, domain in enumerate(world.DOMAINS)}
    ceilings = {domain: world.ceiling(domain) for domain in world.DOMAINS}
    classes = {name: name for name in world.OBJECTS}
    return Data(classes, draw(6000, "same site", 0), draw(1000, "same site", 1), tests, ceilings)


# ---------------------------------------------------------------------------------------------- 7 trainings


def beta_of(config, lam):
    """--beta, or the labels' share in the one p that minimises (1), (labels + lambda p_c) / (1 + lambda)."""
    return 1 / (1 + lam) if config.beta is None else config.beta


def jobs_of(method, config, seed):
    """The trainings of a method: for drm one for each estimator and lambda, for wrm for each estimator."""
    both, loss, jobs = Prompts._fields, config.loss, []
    if method == "erm":
        jobs = [Job(method, seed, ("default",), lam=0.0, beta=1.0, loss=loss)]
    if method == "flyp":
        jobs = [Job(method, seed, ("default",), lam=0.0, beta=1.0, loss="flyp-released")]
    if method == "dual":
        jobs = [Job(method, seed, both, config.lam, beta_of(config, config.lam), "onehot", loss)]
    for estimator in config.core_targets:
        if method == "wrm":  # its one term has the weight 1; in results lambda is null, a limit
            jobs.append(Job(method, seed, ("concept",), lam=1.0, beta=0.0, estimator=estimator, loss=loss))
        for lam in dict.fromkeys((config.lam, *config.sweep)) if method == "drm" else ():
            jobs.append(Job(method, seed, both, lam, beta_of(config, lam), estimator, loss))
    return jobs


# --------------------------------------------------------------------------------------------- 8 experiment


class Setup(NamedTuple):
    """What the trainings of a seed share."""

    config: Config
    out: object  # the folder of the run, or None
    data: Data
    zero_shot: torch.nn.Module  # the model before training; with --eval-only the saved one
    tokenizer: object
    texts: dict = None  # "default" and "concept": class -> its texts
    prompts: Prompts = None  # the same as tokens
    features: torch.Tensor = None  # (N, D) zero-shot embeddings of the training images, if needed
    p_zero_shot: dict = None  # see predict_all; if needed


def set_up(config, out=None, saved=None):
    """Data, model and prompts of a run, or of a model that a run saved. Raises BadInput."""
    device = weights.pick_device(config.device)
    data = load_data(config, saved["seed"] if saved else config.seed)
    texts = saved_prompts(saved, data.classes, config) if saved else prompts_of(config, data.classes)
    model, tokenizer = weights.load_clip(config.model, config.pretrained, device)
    return with_texts(Setup(config, out, data, model, tokenizer), texts)


def with_texts(setup, texts):
    """The setup with prompts made of these texts, as of prompts_of. Raises BadInput."""
    config, device = setup.config, next(setup.zero_shot.parameters()).device
    by = "model" if config.eval_only or config.predict else "descriptions"
    sources = {"default": "the default prompts", "concept": f"--{by} {getattr(config, by)}"}
    prompts = [tokenize(setup.tokenizer, texts[k].values(), sources[k], device) for k in Prompts._fields]
    return setup._replace(texts=texts, prompts=Prompts(*prompts))


@torch.no_grad()
def ask_zero_shot(setup, jobs):
    """The setup with what the zero-shot model says, if needed, less images that --skip-bad-images drops."""
    config, split = setup.config, setup.data.train
    if {"zero-shot", "ensemble"} & set(config.method) or 0 in config.alpha:
        setup = setup._replace(p_zero_shot=predict_all(setup.zero_shot, setup.data, setup.prompts))
    if not config.skip_bad_images and not any(job.estimator in OF_FEATURES for job in jobs):
        if setup.p_zero_shot is not None:  # then the training images need no encoding
            labels = setup.data.val.labels
            for name, p in zip(Prompts._fields, setup.p_zero_shot["val"]):
                report.say_accuracy(name, p, torch.eye(p.shape[1]).to(p), labels, "validation")
        return setup
    bad = {} if config.skip_bad_images else None
    features = encode_images(setup.zero_shot, split, bad)  # (N, D)
    if bad:
        errors.log(f"left out: {len(bad)} of {len(split)} training images; the first: {[*bad.values()][0]}")
        split = split.take([i for i in range(len(split)) if i not in bad])
        errors.check_learnable(split, config, setup.zero_shot, jobs)
    if not torch.is_tensor(split.images):
        features = features.half()  # the 1.3 million of ImageNet fit
    for name, texts in zip(Prompts._fields, setup.prompts):
        report.say_accuracy(name, features, build_head(setup.zero_shot, texts), split.labels)
    return setup._replace(data=setup.data._replace(train=split), features=features)


@torch.no_grad()
def targets_for(job, setup):
    """-> (core targets of a training, how good they are), or (None, None) where it needs none."""
    if job.estimator is None:
        return None, None
    split, model = setup.data.train, setup.zero_shot
    head, scale = build_head(model, setup.prompts.concept), logit_scale(model)
    labels = split.labels.to(head.device)
    targets = core_targets(job.estimator, setup.features, labels, head, scale, split.oracle)
    return targets, target_quality(job.estimator, targets, labels, split.oracle)


def fine_tune(job, setup):
    """One training -> a row of results for each alpha of WiSE-FT."""
    config, data = setup.config, setup.data
    if job.method == "flyp" and flyp.templates(config):  # others than ours
        own = dataclasses.replace(config, template=flyp.templates(config))
        setup = with_texts(setup, prompts_of(own, data.classes))._replace(p_zero_shot=None)
    prompts = setup.prompts
    targets, quality = targets_for(job, setup)
    report.say_quality(quality)

    def score(model):  # on in-distribution validation only
        p = mix(*predict(model, data.val, prompts), job.beta)
        return metrics(p, data.val)[data.metrics[0]]

    checkpoints = Checkpoints(config, about_training(job, setup), setup.tokenizer, setup.out)
    model = copy.deepcopy(setup.zero_shot)
    train(model, data.train, prompts, targets, job, config, score, checkpoints)
    read_as = [m for m in OF_ERM if m in config.method] if job.method == "erm" else [job.method]
    betas = {method: job.beta if method == job.method else beta_of(config, config.lam) for method in read_as}

    def rows_at(alpha):
        p = setup.p_zero_shot if alpha == 0 else None  # of the same weights
        if p is None:
            at_alpha = interpolate_weights(setup.zero_shot, model, alpha) if alpha < 1 else model
            p = predict_all(at_alpha, data, prompts)
        about, rows = {**about_job(job), "alpha": alpha, "seconds": checkpoints.seconds()}, []
        for method, beta in betas.items():
            p_of_method = ensemble(p, setup.p_zero_shot) if method == "ensemble" else p
            rows += rows_of(p_of_method, setup, [beta], {**about, "core_targets": quality, "method": method})
        return rows

    return checkpoints.evaluated(setup, betas, rows_at)


def rows_of(p, setup, betas, about):
    """Rows of results: what they are of, and what was measured with each beta. Writes predictions.csv."""
    rows = []
    for beta in betas:
        rows.append({"seconds": None, "core_targets": None, **about, **evaluate(p, setup.data, beta)})
    answers.write_predictions(setup, p, lambda both: mix(*both, betas[-1]), about)
    return rows


def evaluate_saved(config, out):
    """--eval-only: a model that a run saved, with its own prompts -> as run()."""
    saved = read_saved(config.model, METHODS)
    setup = set_up(config, out, saved)
    about = {key: saved.get(key) for key in ("method", "seed", "lam", "estimator")} | {"alpha": 1.0}
    there = {name: s for name, s in {"val": setup.data.val, **setup.data.tests}.items() if len(s)}
    of_images = setup.data._replace(val=next(iter(there.values())), tests=there)
    p = predict_all(setup.zero_shot, of_images, setup.prompts)
    beta = saved["beta"] if config.beta is None else config.beta
    return report.make(rows_of(p, setup, [beta], about), setup)


def answer(config):
    """--predict: what a model that a run saved sees in pictures -> rows of a table. Raises BadInput."""
    saved, files = read_saved(config.model, METHODS), answers.pictures_of(config.predict)
    model, tokenizer = weights.load_clip(config.model, device=weights.pick_device(config.device))
    setup = with_texts(Setup(config, None, None, model, tokenizer), saved["prompts"])
    split, bad = Split(ImageFiles(files, workers=config.workers), torch.zeros(len(files))), {}
    both = predict(model, split, setup.prompts, bad)
    p = mix(*both, saved["beta"] if config.beta is None else config.beta)
    names = saved.get("classes") or {key: key for key in saved["prompts"]["default"]}
    return answers.table_of(files, bad, p, both, list(names.values()))


def run(config, out=None):
    """All that a config asks for -> {"config", "about", "results"}, ready for JSON. Raises BadInput, Stopped.

    results: a row for each method, seed, lambda and alpha, and for zero-shot for each head and their mixture.
    """
    if config.eval_only:
        return evaluate_saved(config, out)
    setup, rows = set_up(config, out), []
    seeds, drawn = range(config.seed, config.seed + config.seeds), config.dataset in world.CAMERAS
    trainings = dict.fromkeys("erm" if method in OF_ERM else method for method in config.method)
    jobs = [job for seed in seeds for method in trainings for job in jobs_of(method, config, seed)]
    errors.check_learnable(setup.data.train, config, setup.zero_shot, jobs)
    report.make_folders(out, jobs if config.save_every >= 0 else [])
    report.say_what_is_to_come(setup, jobs, shuffled_batches)
    for seed in seeds:
        if seed > config.seed and drawn:  # files are the same for every seed
            setup = setup._replace(data=load_data(config, seed))
        if seed == config.seed or drawn:
            setup = ask_zero_shot(setup, jobs)
        if "zero-shot" in config.method:  # each head, and their mixture
            beta = beta_of(config, config.lam)
            betas = [head for head in (1.0, 0.0) if head != beta] + [beta]
            about = {"method": "zero-shot", "seed": seed, "lam": None, "estimator": None, "alpha": 0.0}
            rows += rows_of(setup.p_zero_shot, setup, betas, about)
        for job in (job for job in jobs if job.seed == seed):
            rows += fine_tune(job, setup)
            report.keep(rows, setup)
    return report.make(rows, setup)


@errors.guarded("drm_min.py", "what was trained is kept, and --resume goes on from it")
def main(argv=None):
    config = command_line(Config, argv, "drm_min.py", __doc__.partition("\nA zero")[0], toy.RECIPE)
    with errors.own_folder(config) as out:
        if config.predict:
            errors.print_lines(*errors.markdown(answers.show(answer(config), out)))
        else:
            report.show(run(config, out), out)


if __name__ == "__main__":
    sys.exit(main())
