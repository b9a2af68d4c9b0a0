"""Estimators of p_c(y | x), against independent formulas, and how good they are."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drm_min import core_targets
from support.settings import ESTIMATORS
from support.targets import (
    TRUST,
    bootstrap_targets,
    normalized_targets,
    posterior_targets,
    target_quality,
)

N = 400
ALL = torch.arange(N)


def unit(*shape, g):
    return F.normalize(torch.randn(*shape, generator=g), dim=-1)


@pytest.fixture
def sample(g):
    """Features (N, 8), concept head (3, 8), labels (N,) that have something to do with them."""
    head, labels = unit(3, 8, g=g), torch.randint(3, (N,), generator=g)
    return F.normalize(unit(N, 8, g=g) + 0.5 * head[labels], dim=-1), head, labels


def all_targets(estimator, features, labels, head, oracle=None):
    """The targets of all images, (N, C)."""
    return core_targets(estimator, features, labels, head, 7.0, oracle)(ALL)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_core_targets_are_distributions(sample, estimator, g):
    features, head, labels = sample
    p = all_targets(estimator, features, labels, head, torch.rand(N, 3, generator=g).softmax(1))
    assert p.shape == (N, 3) and (p >= 0).all() and torch.allclose(p.sum(1), torch.ones(N), atol=1e-5)


def test_core_targets_softmax_onehot_oracle(sample, g):
    features, head, labels = sample
    oracle = torch.rand(N, 3, generator=g).softmax(1)
    softmax = all_targets("softmax", features, labels, head)
    assert torch.allclose(softmax, (7 * features @ head.T).softmax(1))
    assert torch.equal(all_targets("onehot", features, labels, head), torch.eye(3)[labels])
    assert torch.equal(all_targets("oracle", features, labels, head, oracle), oracle)


def test_core_targets_label_by_an_independent_formula(sample):
    features, head, labels = sample
    got = all_targets("label", features, labels, head)
    own = (7 * features @ head.T).softmax(1).numpy()[range(N), labels]
    for i in range(N):
        low, high = np.percentile(own[labels == labels[i]], [2, 98])
        trust = min(max((own[i] - low) / (high - low), 0), 1)
        expected = [float((1 - trust) / 3 + trust * (c == int(labels[i]))) for c in range(3)]
        assert got[i].tolist() == pytest.approx(expected, abs=1e-4)


def test_core_targets_label_of_a_class_with_one_image_is_its_label(sample):
    features, head, labels = sample
    alone = torch.cat([torch.tensor([2]), labels[1:] % 2])
    first = all_targets("label", features, alone, head)[0]
    assert torch.equal(first, torch.tensor([0.0, 0.0, 1.0]))


def test_core_targets_normalized_by_an_independent_formula(sample):
    features, head, labels = sample
    got = all_targets("normalized", features, labels, head).numpy()
    affinity = (features @ head.T).numpy()
    low, high = np.percentile(affinity, [1, 99], axis=0)
    unit_range = np.clip((affinity - low) / (high - low), 0, 1)

    def softmax(k):
        e = np.exp(k * unit_range)
        return e / e.sum(1, keepdims=True)

    def log_loss(k):
        return -np.log(softmax(k)[range(N), labels]).mean()

    best = min(np.linspace(0.1, 20, 2000), key=log_loss)
    assert np.abs(got - softmax(best)).max() < 0.01 and 0.5 < best < 19


def q_and_labels(sample):
    """What the refined targets are made of, in numpy: (`normalized` targets, one-hot labels), (N, C) each."""
    features, head, labels = sample
    return all_targets("normalized", features, labels, head).double().numpy(), np.eye(3)[labels.numpy()]


def test_core_targets_bootstrap_by_an_independent_formula(sample):
    features, head, labels = sample
    q, onehot = q_and_labels(sample)
    got = all_targets("bootstrap", features, labels, head).numpy()
    for i, label in enumerate(labels.tolist()):
        trust = q[i, label]
        assert got[i] == pytest.approx(trust * onehot[i] + (1 - trust) * q[i], abs=1e-5)
    assert (got[range(N), labels] >= q[range(N), labels] - 1e-6).all() and np.abs(got - q).max() > 0.1


def test_core_targets_posterior_by_an_independent_formula(sample):
    """By counting: of worlds where the core is k, the label is the witness's word or a draw from all C."""
    features, head, labels = sample
    q, _ = q_and_labels(sample)
    got = all_targets("posterior", features, labels, head).numpy()
    for i, label in enumerate(labels.tolist()):
        joint = [q[i, k] * ((TRUST if k == label else 0) + (1 - TRUST) / 3) for k in range(3)]
        assert got[i] == pytest.approx([one / sum(joint) for one in joint], abs=1e-5)
    odds = got[range(N), labels] / (1 - got[range(N), labels])
    before = q[range(N), labels] / (1 - q[range(N), labels])
    assert odds / before == pytest.approx(1 + 3 * TRUST / (1 - TRUST), rel=1e-3)  # C = 3: 1.75


def test_posterior_targets_without_trust_are_q_and_with_full_trust_the_label(sample):
    of_sample = [torch.from_numpy(p).__getitem__ for p in q_and_labels(sample)]
    q, onehot = (p(ALL) for p in of_sample)
    ends = {trust: posterior_targets(*of_sample, trust=trust)(ALL) for trust in (0.0, 0.5, 1 - 1e-9)}
    assert torch.allclose(ends[0.0], q, atol=1e-12) and torch.allclose(ends[1 - 1e-9], onehot, atol=1e-4)
    own = [p[range(N), sample[2]] for p in ends.values()]
    assert (own[0] < own[1]).all() and (own[1] < own[2]).all()
    assert not torch.allclose(ends[0.5], bootstrap_targets(*of_sample)(ALL), atol=0.01)


def test_normalized_targets_do_not_favour_a_class_for_its_wording(sample):
    features, head, labels = sample
    shifted = F.normalize(features + 3 * head[0], dim=-1)  # all affinities to class 0 raised alike

    def share_of_class_0(estimator):
        return all_targets(estimator, shifted, labels, head).argmax(1).eq(0).float().mean()

    assert share_of_class_0("softmax") > 0.9
    assert share_of_class_0("normalized") < 0.7


def test_target_quality_by_hand():
    targets, labels = torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 1])
    oracle = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    got = target_quality("x", targets.__getitem__, labels, oracle)
    kl = (-math.log(0.8) + 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)) / 2
    by_hand = {"true_class": pytest.approx(0.7), "kl_from_oracle": pytest.approx(kl, abs=1e-6)}
    assert got == {"estimator": "x", **by_hand}
    infinite = target_quality("onehot", torch.eye(2).__getitem__, labels, oracle)
    assert infinite["kl_from_oracle"] is None  # JSON has no such number
    assert "kl_from_oracle" not in target_quality("x", targets.__getitem__, labels)


def test_what_is_fitted_once_looks_at_no_more_images_than_it_needs():
    """With a million images and a thousand classes, all of them would take minutes and gigabytes."""
    g, seen = torch.Generator().manual_seed(0), []
    features, head, labels = unit(50_000, 8, g=g), unit(3, 8, g=g), torch.randint(3, (50_000,), generator=g)

    def affinity(batch, classes=slice(None)):
        seen.append(len(batch))
        return features[batch] @ head[classes].T

    targets = normalized_targets(affinity, labels, 3)
    assert 10_000 < max(seen) <= 20_000
    assert targets(torch.tensor([49_999])).shape == (1, 3)


def test_targets_kept_the_graph_of_a_scale_that_learns():
    features, head = torch.eye(3), torch.eye(3)
    scale = torch.tensor(7.0, requires_grad=True)
    targets = core_targets("softmax", features, torch.arange(3), head, scale)(torch.arange(3))
    assert not targets.requires_grad and targets.argmax(1).tolist() == [0, 1, 2]
