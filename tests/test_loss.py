"""The losses, by hand and by independent formulas, and the mixture at test time."""

import math

import pytest
import torch
import torch.nn.functional as F

from drm_min import Config, beta_of, contrastive_loss, dual_loss, jobs_of, mix


def unit(*shape, g):
    return F.normalize(torch.randn(*shape, generator=g), dim=-1)


def test_contrastive_loss_on_perfect_pairs():
    """Four perfect pairs at scale 100, two of them of one class.

    Identity targets have a floor, shared ones have none.
    """
    four_classes = 100 * torch.eye(4)
    assert contrastive_loss(four_classes, torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
    classes = torch.tensor([0, 0, 1, 2])
    same_text = (100 * (classes[:, None] == classes[None]).float()).requires_grad_()
    identity = contrastive_loss(same_text, torch.eye(4))
    assert identity.item() == pytest.approx(math.log(2) / 2, abs=1e-6)  # 0.347
    assert torch.autograd.grad(identity, same_text)[0].abs().max() > 0.05  # and it pulls perfect pairs apart
    # The form of dual_loss: a column for each of the three distinct classes. Rows are perfect; the column of
    # the shared class has two right images, so its cross-entropy is that target's entropy, log 2, and nothing
    # is left to gain.
    columns = (100 * F.one_hot(classes, 3).float()).requires_grad_()
    shared = contrastive_loss(columns, F.one_hot(classes, 3).float())
    assert shared.item() == pytest.approx(math.log(2) / 3 / 2, abs=1e-6)  # 0.116
    assert torch.autograd.grad(shared, columns)[0].abs().max() < 1e-6


def test_contrastive_loss_worked_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    e = math.e
    # each is the log of a sum, minus the target's mean logit
    rows = (math.log(e + 1) - 1) + (math.log(1 + e * e) - 1) + math.log(2)
    first = math.log(2 * e + 1) - (1 * 1.0 + 0.5 * 0.0) / 1.5
    second = math.log(1 + e * e + e) - (0.5 * 2.0 + 1.0 * 1.0) / 1.5
    by_hand = (rows / 3 + (first + second) / 2) / 2
    assert contrastive_loss(logits, targets).item() == pytest.approx(by_hand, abs=1e-6)


def test_contrastive_loss_with_a_class_that_no_image_points_to():
    loss = contrastive_loss(torch.randn(3, 2, requires_grad=True), torch.tensor([[1.0, 0.0]] * 3))
    assert loss.isfinite()


def test_flyp_loss_equals_the_formula(g):
    """FLYP's loss, each image with a text of its own, is the contrastive loss with identity targets."""
    images, texts = unit(5, 8, g=g), unit(5, 8, g=g)
    logits = 20 * images @ texts.T
    p_rows, p_columns = logits.softmax(1).diagonal(), logits.softmax(0).diagonal()
    by_hand = -(p_rows.log().mean() + p_columns.log().mean()) / 2
    assert contrastive_loss(logits, torch.eye(5)).item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_dual_loss_is_erm_plus_lambda_wrm(g):
    features, default, concept = unit(6, 8, g=g), unit(4, 8, g=g), unit(4, 8, g=g)
    labels, p_c = torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(6, 4, generator=g).softmax(1)
    erm = -(5 * features @ default.T).log_softmax(1)[range(6), labels].mean().item()
    wrm = -(p_c * (5 * features @ concept.T).log_softmax(1)).sum(1).mean().item()

    def terms(default, concept, p_c, lam):
        """(loss, ERM term, WRM term)"""
        return torch.stack(dual_loss(features, default, concept, 5.0, labels, p_c, lam)).tolist()

    for lam in (0.0, 0.5, 3.0):
        assert terms(default, concept, p_c, lam) == pytest.approx([erm + lam * wrm, erm, wrm], abs=1e-5)
    assert terms(None, concept, p_c, 1.0) == pytest.approx([wrm, 0, wrm], abs=1e-6)
    assert terms(default, None, None, 0.0) == pytest.approx([erm, erm, 0], abs=1e-6)


def test_probabilities_are_mixed_not_logits(g):
    a, b = torch.randn(5, 3, generator=g) * 4, torch.randn(5, 3, generator=g) * 4
    p = mix(a.softmax(1), b.softmax(1), 0.3)
    assert torch.allclose(p, 0.3 * a.softmax(1) + 0.7 * b.softmax(1))
    assert torch.allclose(p.sum(1), torch.ones(5))
    assert (p - (0.3 * a + 0.7 * b).softmax(1)).abs().max() > 0.05


def test_beta_follows_lambda():
    assert beta_of(Config(), 1.0) == 0.5 and beta_of(Config(), 3.0) == 0.25
    assert beta_of(Config(), 0.0) == 1
    assert beta_of(Config(beta=0.9), 3.0) == 0.9
    drm, wider = jobs_of("drm", Config(sweep=3), 0)
    assert (drm.lam, drm.beta, wider.lam, wider.beta) == (1, 0.5, 3, 0.25)
    for config in (Config(), Config(beta=0.9)):
        (erm,), (wrm,), (flyp,) = (jobs_of(method, config, 0) for method in ("erm", "wrm", "flyp"))
        assert (erm.beta, wrm.beta, flyp.beta) == (1, 0, 1), "one head: nothing to mix"


def test_each_estimator_of_core_targets_is_a_training_of_drm_and_wrm_and_of_no_other_method():
    config = Config(core_targets=("softmax", "label"), sweep=(3,))
    drm, wrm = ([(job.estimator, job.lam) for job in jobs_of(m, config, 0)] for m in ("drm", "wrm"))
    assert drm == [("softmax", 1), ("softmax", 3), ("label", 1), ("label", 3)]
    assert wrm == [("softmax", 1), ("label", 1)]
    (erm,), (flyp,), (dual,) = (jobs_of(method, config, 0) for method in ("erm", "flyp", "dual"))
    assert (erm.estimator, flyp.estimator, dual.estimator) == (None, None, "onehot")
    assert not any(jobs_of(method, config, 0) for method in ("zero-shot", "erm-mixed", "ensemble"))
