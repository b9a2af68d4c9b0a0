import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drm_min import Config, contrastive_loss, core_targets, dual_loss, flyp_loss, mix, target_quality


def unit(*shape, g):
    return F.normalize(torch.randn(*shape, generator=g), dim=-1)


def test_contrastive_loss_on_perfect_pairs():
    """Four perfect pairs at scale 100, two of them of one class: identity targets have a floor, shared ones have none."""
    four_classes = 100 * torch.eye(4)
    assert contrastive_loss(four_classes, torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
    classes = torch.tensor([0, 0, 1, 2])
    same_text = (100 * (classes[:, None] == classes[None]).float()).requires_grad_()
    identity = contrastive_loss(same_text, torch.eye(4))
    assert identity.item() == pytest.approx(math.log(2) / 2, abs=1e-6)  # 0.347
    assert torch.autograd.grad(identity, same_text)[0].abs().max() > 0.05  # and it pulls perfect pairs apart
    # The form of dual_loss: a column for each of the three distinct classes. Rows are perfect; the column of the shared class
    # has two right images, so its cross-entropy is that target's entropy, log 2, and nothing is left to gain.
    columns = (100 * F.one_hot(classes, 3).float()).requires_grad_()
    shared = contrastive_loss(columns, F.one_hot(classes, 3).float())
    assert shared.item() == pytest.approx(math.log(2) / 3 / 2, abs=1e-6)  # 0.116
    assert torch.autograd.grad(shared, columns)[0].abs().max() < 1e-6


def test_contrastive_loss_worked_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    e = math.e
    rows = (math.log(e + 1) - 1) + (math.log(1 + e * e) - 1) + math.log(2)  # minus the target's mean logit
    columns = (math.log(2 * e + 1) - (1 * 1.0 + 0.5 * 0.0) / 1.5) + (math.log(1 + e * e + e) - (0.5 * 2.0 + 1.0 * 1.0) / 1.5)
    assert contrastive_loss(logits, targets).item() == pytest.approx((rows / 3 + columns / 2) / 2, abs=1e-6)


def test_contrastive_loss_with_a_class_that_no_image_points_to():
    loss = contrastive_loss(torch.randn(3, 2, requires_grad=True), torch.tensor([[1.0, 0.0]] * 3))
    assert loss.isfinite()


def test_flyp_loss_equals_the_formula(g):
    images, texts = unit(5, 8, g=g), unit(5, 8, g=g)
    logits = 20 * images @ texts.T
    p_rows, p_columns = logits.softmax(1).diagonal(), logits.softmax(0).diagonal()
    by_hand = -(p_rows.log().mean() + p_columns.log().mean()) / 2
    assert flyp_loss(images, texts, 20.0).item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_dual_loss_is_erm_plus_lambda_wrm(g):
    features, w_df, w_cd = unit(6, 8, g=g), unit(4, 8, g=g), unit(4, 8, g=g)
    labels, p_c = torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(6, 4, generator=g).softmax(1)
    erm = -(5 * features @ w_df.T).log_softmax(1)[range(6), labels].mean()
    wrm = -(p_c * (5 * features @ w_cd.T).log_softmax(1)).sum(1).mean()
    for lam in (0.0, 0.5, 3.0):
        assert dual_loss(features, w_df, w_cd, 5.0, labels, p_c, lam).item() == pytest.approx((erm + lam * wrm).item(), abs=1e-5)
    assert dual_loss(features, None, w_cd, 5.0, labels, p_c, math.inf).item() == pytest.approx(wrm.item(), abs=1e-6)
    assert dual_loss(features, w_df, None, 5.0, labels, None, 0.0).item() == pytest.approx(erm.item(), abs=1e-6)


def test_probabilities_are_mixed_not_logits(g):
    a, b = torch.randn(5, 3, generator=g) * 4, torch.randn(5, 3, generator=g) * 4
    p = mix(a.softmax(1), b.softmax(1), 0.3)
    assert torch.allclose(p, 0.3 * a.softmax(1) + 0.7 * b.softmax(1)) and torch.allclose(p.sum(1), torch.ones(5))
    assert (p - (0.3 * a + 0.7 * b).softmax(1)).abs().max() > 0.05


def test_beta_follows_lambda():
    assert Config().beta_of(1.0) == 0.5 and Config().beta_of(3.0) == 0.25
    assert Config().beta_of(0.0) == 1 and Config().beta_of(math.inf) == 0
    assert Config(beta=0.9).beta_of(3.0) == 0.9
    assert Config(beta=0.9).beta_of(0.0) == 1, "ERM has one head: nothing to mix"


@pytest.fixture
def sample(g):
    """Features (400, 8), concept head (3, 8), labels (400,) that have something to do with them."""
    head, labels = unit(3, 8, g=g), torch.randint(3, (400,), generator=g)
    return F.normalize(unit(400, 8, g=g) + 0.5 * head[labels], dim=-1), head, labels


@pytest.mark.parametrize("estimator", ["softmax", "normalized", "label", "onehot", "oracle"])
def test_core_targets_are_distributions(sample, estimator, g):
    features, head, labels = sample
    p = core_targets(estimator, features, labels, head, 7.0, torch.rand(400, 3, generator=g).softmax(1))(slice(None))
    assert p.shape == (400, 3) and (p >= 0).all() and torch.allclose(p.sum(1), torch.ones(400), atol=1e-5)


def test_core_targets_softmax_onehot_oracle(sample, g):
    features, head, labels = sample
    oracle = torch.rand(400, 3, generator=g).softmax(1)
    assert torch.allclose(core_targets("softmax", features, labels, head, 7.0)(slice(None)), (7 * features @ head.T).softmax(1))
    assert torch.equal(core_targets("onehot", features, labels, head, 7.0)(slice(None)), torch.eye(3)[labels])
    assert torch.equal(core_targets("oracle", features, labels, head, 7.0, oracle)(slice(None)), oracle)


def test_core_targets_label_by_an_independent_formula(sample):
    features, head, labels = sample
    got = core_targets("label", features, labels, head, 7.0)(slice(None))
    own = (7 * features @ head.T).softmax(1).numpy()[range(400), labels]
    for i in range(400):
        low, high = np.percentile(own[labels == labels[i]], [2, 98])
        trust = min(max((own[i] - low) / (high - low), 0), 1)
        expected = [float((1 - trust) / 3 + trust * (c == int(labels[i]))) for c in range(3)]
        assert got[i].tolist() == pytest.approx(expected, abs=1e-4)


def test_core_targets_label_of_a_class_with_one_image_is_its_label(sample):
    features, head, labels = sample
    alone = torch.cat([torch.tensor([2]), labels[1:] % 2])
    assert torch.equal(core_targets("label", features, alone, head, 7.0)(slice(None))[0], torch.tensor([0.0, 0.0, 1.0]))


def test_core_targets_normalized_by_an_independent_formula(sample):
    features, head, labels = sample
    got = core_targets("normalized", features, labels, head, 7.0)(slice(None)).numpy()
    affinity = (features @ head.T).numpy()
    low, high = np.percentile(affinity, [1, 99], axis=0)
    unit_range = np.clip((affinity - low) / (high - low), 0, 1)

    def log_loss(k):
        e = np.exp(k * unit_range)
        return -np.log((e / e.sum(1, keepdims=True))[range(400), labels]).mean()

    best = min(np.linspace(0.1, 20, 2000), key=log_loss)
    e = np.exp(best * unit_range)
    assert np.abs(got - e / e.sum(1, keepdims=True)).max() < 0.01 and 0.5 < best < 19


def test_normalized_targets_do_not_favour_a_class_for_its_wording(sample):
    features, head, labels = sample
    shifted = F.normalize(features + 3 * head[0], dim=-1)  # all affinities to class 0 raised alike
    assert core_targets("softmax", shifted, labels, head, 7.0)(slice(None)).argmax(1).eq(0).float().mean() > 0.9
    assert core_targets("normalized", shifted, labels, head, 7.0)(slice(None)).argmax(1).eq(0).float().mean() < 0.7


def test_target_quality_by_hand():
    targets, labels = torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 1])
    oracle = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    got = target_quality("x", targets.__getitem__, labels, oracle)
    kl = (-math.log(0.8) + 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)) / 2
    assert got == {"estimator": "x", "true_class": pytest.approx(0.7), "kl_from_oracle": pytest.approx(kl, abs=1e-6)}
    assert target_quality("onehot", torch.eye(2).__getitem__, labels, oracle)["kl_from_oracle"] is None  # infinite, and JSON has no such number
    assert "kl_from_oracle" not in target_quality("x", targets.__getitem__, labels)
