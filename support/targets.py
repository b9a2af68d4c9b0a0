"""Estimators of p_c that are derived here, beside the zero-shot model's own softmax.

A public review of the paper says that it applies max-min normalisation to the classification probabilities,
so that items that should be zero are; of these, `normalized` and `label` are nearest to that, and none is
known to be the paper's.
"""

import math

import torch
import torch.nn.functional as F


def normalized_targets(affinity, labels, n_classes):
    """Each class's affinities brought to one range, so that none is favoured for its wording, then a softmax.

    The softmax has the temperature that fits the labels.

    affinity: numbers of images (B,) -> (B, C); labels (N,). Returns the same kind of function, rows that
    sum to one.
    """
    some = torch.arange(0, len(labels), math.ceil(len(labels) / 20_000))  # enough for what is fitted here
    low, high = ranges(affinity, some, n_classes)  # (C,) each

    def normalized(batch):
        return ((affinity(batch) - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

    at_some, scales = normalized(some), torch.logspace(-1, 3, 200).tolist()
    fits = [F.cross_entropy(k * at_some, labels[some]).item() for k in scales]
    best = scales[fits.index(min(fits))]
    return lambda batch: (best * normalized(batch)).softmax(1)


def ranges(affinity, images, n_classes):
    """The 1st and 99th percentile of each class's affinities over images, their numbers (M,) -> (C,) each."""
    low_and_high = []
    for columns in torch.arange(n_classes).split(max(1, 2**24 // len(images))):  # quantile takes no more
        some = affinity(images, columns)  # (M, some of C)
        low_and_high.append(some.quantile(some.new_tensor([0.01, 0.99]), dim=0))
    return torch.cat(low_and_high, 1)


def bootstrap_targets(q, onehot):
    """The label, as far as q recognises it in this image, and q as far as it does not.

    The form is that of bootstrapping on noisy labels (Reed et al., 2015), with a weight for each image.
    q, onehot: numbers of images (B,) -> (B, C), rows that sum to one. Returns the same kind of function.
    """

    def targets(batch):
        label, says = onehot(batch), q(batch)
        trust = (label * says).sum(1, keepdim=True)  # (B, 1)
        return trust * label + (1 - trust) * says

    return targets


TRUST = 0.2  # of the label. Measured on the toy world, in clear air and in fog: notebook 3.


def posterior_targets(q, onehot, trust=TRUST):
    """Bayes' rule: q is what is believed of the core before the label is read, this is what is after.

    The label is taken for a witness: with probability `trust` it names what the image shows, else it says
    nothing. So p(k | x, y) is proportional to q_k (trust [k = y] + (1 - trust) / C): q itself for trust 0,
    the label for trust 1. q, onehot and what is returned are as in bootstrap_targets.
    """

    def targets(batch):
        label = onehot(batch)
        p = q(batch) * (trust * label + (1 - trust) / label.shape[1])
        return p / p.sum(1, keepdim=True)

    return targets


# estimator -> what it makes of q, the `normalized` targets, and the labels
REFINED = {"normalized": lambda q, _: q, "bootstrap": bootstrap_targets, "posterior": posterior_targets}


def label_targets(softmax, labels, n_classes):
    """The label, as far as the zero-shot model recognises it in this image; uniform as far as it does not.

    softmax: numbers of images (B,) -> what the zero-shot concept head says, (B, C); labels (N,). Within
    each class the probability of the label is brought to 0..1 between its 2nd and 98th percentile.
    """
    recognised = softmax(torch.arange(1)).new_empty(len(labels))  # (N,); small pieces would scatter in memory
    for part in torch.arange(len(labels)).split(8192):
        recognised[part] = softmax(part).gather(1, labels[part, None])[:, 0]
    trust = torch.ones_like(recognised)  # stays 1 in a class whose images are all recognised alike
    for c in labels.unique():
        own = labels == c
        low, high = recognised[own].quantile(0.02), recognised[own].quantile(0.98)
        if high > low:
            trust[own] = ((recognised[own] - low) / (high - low)).clamp(0, 1)

    def targets(batch):
        onehot = F.one_hot(labels[batch], n_classes).to(trust)  # (B, C)
        return trust[batch, None] * onehot + (1 - trust[batch, None]) / n_classes

    return targets


def target_quality(estimator, targets, labels, oracle=None):
    """How good core targets, a function as above, are -> dict.

    true_class: what they give the true class on average; kl_from_oracle, where an oracle (N, C) knows the
    truth: KL(oracle || targets) in nats, None when infinite.
    """
    true_class, kl = 0.0, 0.0
    for part in torch.arange(len(labels)).split(8192):
        p = targets(part)  # (B, C)
        true_class += p.gather(1, labels[part, None]).sum().item()
        if oracle is not None:
            p_c = oracle[part].to(p)
            kl += (torch.xlogy(p_c, p_c) - torch.xlogy(p_c, p)).sum().item()
    quality = {"estimator": estimator, "true_class": true_class / len(labels)}
    if oracle is not None:
        quality["kl_from_oracle"] = kl / len(labels) if math.isfinite(kl) else None
    return quality
