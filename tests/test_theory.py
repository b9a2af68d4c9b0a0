"""The statements of the method about risks, held against a world small enough to enumerate.

Core features x_c take four values (the last one tells nothing), non-core features x_n three, labels three.
Domain rho: p(x_n = y | y) = rho + (1 - rho) / 3. Probabilities are whole numbers of pictures, so a batch of
all of them has exactly the risk of the world and `dual_loss` itself can be minimised.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from drm_min import dual_loss

CORE = torch.tensor([[24, 3, 3], [3, 24, 3], [3, 3, 24], [10, 10, 10]])  # 30 p(y | x_c), x_c uniform
P_CORE = CORE.double() / 30
RHOS = torch.linspace(-0.5, 1, 31).tolist()  # from never the own x_n to always
SOURCE = 0.7  # p(x_n | y) in tenths: 8, 1, 1


def joint(rho):
    """p(x_c, x_n, y), (4, 3, 3)."""
    p_n_given_y = rho * torch.eye(3).double() + (1 - rho) / 3  # (x_n, y)
    return P_CORE[:, None, :] / 4 * p_n_given_y[None]


def risk(q, rho):
    """E_d[-log q(y | x)] of a predictor q (4, 3, 3)."""
    return -torch.xlogy(joint(rho), q).sum().item()


@pytest.fixture(scope="module")
def world():
    """Every picture of the source: one-hot features (N, 12), labels (N,), core targets (N, 3)."""
    counts = CORE[:, None, :] * torch.tensor([[8, 1, 1], [1, 8, 1], [1, 1, 8]])[None]
    core, place, labels = counts.nonzero().repeat_interleave(counts.flatten(), dim=0).T
    assert len(labels) == 4 * 30 * 10
    return F.one_hot(core * 3 + place, 12).double(), labels, P_CORE[core]


FOUND = {}


def minimiser(world, lam):
    """The minimiser of the dual risk over all predictors, by gradient descent on dual_loss -> q (4, 3, 3)."""
    if lam not in FOUND:
        FOUND[lam] = descend(*world, lam)
    return FOUND[lam]


def descend(features, labels, targets, lam):
    head = torch.zeros(3, 12, dtype=torch.double, requires_grad=True)  # one predictor serves as both heads
    exact = dict(tolerance_grad=1e-9, tolerance_change=1e-15, line_search_fn="strong_wolfe")
    optimizer = torch.optim.LBFGS([head], max_iter=300, **exact)
    default, lam = (head, lam) if lam < math.inf else (None, 1.0)  # in the limit only the WRM term counts

    def closure():
        optimizer.zero_grad()
        loss, *_ = dual_loss(features, default, head, 1.0, labels, targets, lam)
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.detach().T.softmax(1).view(4, 3, 3)


def posterior(rho):
    return joint(rho) / joint(rho).sum(2, keepdim=True)


P_S, P_C = posterior(SOURCE), P_CORE[:, None, :].expand(4, 3, 3)


@pytest.mark.parametrize("lam", [0, 0.3, 1, 3, 10, math.inf])
def test_minimiser_of_the_dual_risk_is_the_mixture(world, lam):
    expected = P_C if lam == math.inf else (P_S + lam * P_C) / (1 + lam)
    assert (minimiser(world, lam) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("lam", [0.1, 0.3, 1, 3, 10])
def test_both_bounds_hold_in_every_domain(world, lam):
    q = minimiser(world, lam)
    for rho in RHOS:
        assert risk(q, rho) <= risk(P_C, rho) + math.log(1 + 1 / lam) + 1e-6
        assert risk(q, rho) <= risk(P_S, rho) + math.log(1 + lam) + 1e-6
    # With a wrong constant the bound would fail somewhere, so the test can fail:
    assert any(risk(q, rho) > risk(P_C, rho) + 0.2 * math.log(1 + 1 / lam) for rho in RHOS)


def test_wrm_minimiser_is_minimax(world, g):
    q_star = minimiser(world, math.inf)
    best = max(risk(q_star, rho) for rho in RHOS)
    entropy = -(P_CORE * P_CORE.log()).sum(1).mean().item()
    assert all(
        risk(q_star, rho) == pytest.approx(entropy, abs=1e-4) for rho in RHOS
    )  # H(Y | X_c), everywhere
    rivals = [posterior(rho) for rho in RHOS[1:-1]] + [minimiser(world, lam) for lam in (0, 0.3, 1, 3)]
    for s in (0.01, 0.1, 1):
        around = q_star.log() + s * torch.randn(50, 4, 3, 3, generator=g).double()
        rivals += around.softmax(3)
    assert all(max(risk(q, rho) for rho in RHOS) >= best - 1e-6 for q in rivals)


def test_erm_wins_where_the_place_is_honest_and_wrm_where_it_lies(world):
    erm, wrm, drm = (minimiser(world, lam) for lam in (0, math.inf, 1))
    assert risk(erm, SOURCE) < risk(drm, SOURCE) < risk(wrm, SOURCE)
    assert risk(wrm, -0.5) < risk(drm, -0.5) < risk(erm, -0.5)
