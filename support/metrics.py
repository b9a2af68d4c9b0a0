"""What is measured, as WILDS defines it, and what of it counts."""

import math
import statistics

import torch


def metrics(p, split):
    """Probabilities (N, C) -> accuracy, macro F1, macro recall (0 to 1), log loss (nats) and n, and by group.

    As WILDS defines them, on the whole split: macro means over the classes that are present; groups without
    images have no accuracy and are not the worst, nor is a region "Other". A split without images has n = 0.
    """
    if not len(split):
        worst = [f"worst_{split.group_kind}_accuracy"] if split.group_kind else []
        return dict.fromkeys(["accuracy", "log_loss", "macro_f1", "macro_recall", *worst]) | {"n": 0}
    predicted, labels = p.argmax(1), split.labels
    correct = (predicted == labels).double()
    hits = torch.bincount(labels[predicted == labels], minlength=p.shape[1]).double()
    truth = torch.bincount(labels, minlength=p.shape[1]).double()
    guesses = torch.bincount(predicted, minlength=p.shape[1]).double()
    present = truth > 0
    result = {
        "accuracy": correct.mean().item(),
        "n": len(labels),
        "log_loss": -p.gather(1, labels[:, None]).log().mean().item(),
        "macro_f1": (2 * hits / (truth + guesses))[present].mean().item(),
        "macro_recall": (hits / truth)[present].mean().item(),
    }
    ranked = []
    for name, members in split.groups.items():
        if members.any():
            result |= {f"accuracy_{name}": correct[members].mean().item(), f"n_{name}": int(members.sum())}
            ranked += [result[f"accuracy_{name}"]] if name != "Other" else []
    if split.group_kind:
        result[f"worst_{split.group_kind}_accuracy"] = min(ranked, default=None)
    return result


def best_of_label(logits, label_of_class):
    """Logits (N, C) -> of labels: the highest of a label's classes. label_of_class (C,): -1 for none."""
    kept = label_of_class >= 0
    labels = label_of_class[kept].expand(len(logits), -1)
    empty = torch.full((len(logits), int(label_of_class.max()) + 1), -math.inf, dtype=logits.dtype)
    return empty.scatter_reduce(1, labels, logits[:, kept], "amax")


def summarise(domains, metrics, group_weights=None):
    """The numbers that count: in distribution, mean and worst out of it, and the worst log loss of all.

    With group_weights also the worst group, and WILDS' adjusted accuracy, an average by size in training.
    """
    (id_metric, ood_metric), (in_distribution, *shifted) = metrics, domains.values()
    summary = {f"id_{id_metric}": in_distribution[id_metric]}
    values = [m[ood_metric] for m in shifted if m[ood_metric] is not None]
    if values:
        summary[f"ood_mean_{ood_metric}"] = statistics.fmean(values)
        summary[f"ood_worst_{ood_metric}"] = min(values)
    summary["worst_log_loss"] = max(m["log_loss"] for m in domains.values() if m["n"])
    accuracy = {}
    for measured in domains.values():
        accuracy |= {g: measured[f"accuracy_{g}"] for g in group_weights or () if f"accuracy_{g}" in measured}
    if accuracy:
        total = sum(group_weights[g] for g in accuracy)
        summary["worst_group_accuracy"] = min(accuracy.values())
        summary["adjusted_accuracy"] = sum(group_weights[g] * value for g, value in accuracy.items()) / total
    return summary
