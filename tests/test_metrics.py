"""Metrics, against plain counting and by hand."""

import random

import pytest
import torch
from conftest import guessed, of_groups

from drm_min import Split, metrics

REGIONS = ("Africa", "Asia", "Europe", "Other")


def test_metrics_equal_plain_counting_on_a_thousand_random_answers():
    chance = random.Random(0)
    for _ in range(1000):
        n, size = chance.randint(1, 30), chance.randint(2, 9)
        there = chance.sample(range(size), chance.randint(1, size))  # some classes are absent
        truth, guesses = chance.choices(there, k=n), chance.choices(range(size), k=n)
        place = chance.choices(REGIONS[1:], [3, 1, 1], k=n)
        f1, recall, accuracy = {}, {}, {}
        for c in set(truth):
            hits = sum(t == g == c for t, g in zip(truth, guesses))
            f1[c] = 2 * hits / (truth.count(c) + guesses.count(c))
            recall[c] = hits / truth.count(c)
        for name in set(place):
            right = [t == g for t, g, p in zip(truth, guesses, place) if p == name]
            accuracy[name] = pytest.approx(sum(right) / len(right)), len(right)
        groups = {name: torch.tensor([p == name for p in place]) for name in REGIONS}
        split = Split([None] * n, torch.tensor(truth), group_kind="region", groups=groups)
        got = metrics(guessed(guesses, size), split)
        assert got["macro_f1"] == pytest.approx(sum(f1.values()) / len(f1))
        assert got["macro_recall"] == pytest.approx(sum(recall.values()) / len(recall))
        assert of_groups(got) == accuracy
        ranked = [got[f"accuracy_{name}"] for name in accuracy if name != "Other"]
        assert got["worst_region_accuracy"] == min(ranked, default=None)


def test_macro_f1_is_over_the_classes_of_the_truth_and_an_empty_group_is_neither_the_worst_nor_nan():
    got = metrics(guessed([0, 0, 1, 2], 5), Split([None] * 4, torch.tensor([0, 0, 1, 1])))
    # not 0.556 (over guessed ones too) or 0.333 (over all)
    assert got["macro_f1"] == pytest.approx(0.8333, abs=1e-4)
    groups = {name: torch.tensor([0] * 50 + [1] * 4) == i for i, name in enumerate("abc")}
    labels = torch.zeros(54, dtype=torch.long)
    split = Split([None] * 54, labels, group_kind="group", groups=groups)
    got = metrics(guessed([0] * 40 + [1] * 10 + [0] * 3 + [1], 2), split)
    assert of_groups(got) == dict(a=(0.8, 50), b=(0.75, 4)) and got["worst_group_accuracy"] == 0.75
