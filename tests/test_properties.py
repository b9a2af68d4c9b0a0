"""What holds for any input, as hypothesis draws it: of losses, mixture, metrics, core targets and parsers.

Derandomised, so that every run sees the same inputs; a failure prints the smallest one that it finds.
"""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import evaluated

import describe
import drm_min
from drm_min import Split, contrastive_loss, core_targets, dual_loss, metrics, mix
from support.errors import BadInput
from support.settings import ESTIMATORS
from support.targets import target_quality
from support.texts import load_descriptions

hypothesis = pytest.importorskip("hypothesis")  # needed by this file alone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ALLOWED = [HealthCheck.function_scoped_fixture]
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=ALLOWED)
SEEDS, SMALL = st.integers(0, 2**20), st.integers(2, 6)
LAMBDAS = st.one_of(st.floats(0, 100), st.just(0.0), st.just(math.inf))  # inf: the WRM term alone
FORMS = st.sampled_from([F.cross_entropy, contrastive_loss])
SCALES = st.sampled_from([1e-3, 1.0, 14.3, 100.0, 1000.0, 65504.0])
double = torch.double


class Batch:
    """A random batch: B images, C classes, D dimensions, all double."""

    def __init__(self, seed, b, c, d=4):
        g = torch.Generator().manual_seed(seed)

        def unit(n):
            return F.normalize(torch.randn(n, d, generator=g, dtype=double), dim=1)

        self.features, self.default, self.concept = unit(b), unit(c), unit(c)
        self.labels = torch.randint(c, (b,), generator=g)
        self.targets = (3 * torch.randn(b, c, generator=g, dtype=double)).softmax(1)
        self.images = torch.randperm(b, generator=g)  # another order
        self.classes = torch.randperm(c, generator=g)
        self.place = torch.argsort(self.classes)  # where each class has gone

    def loss(self, lam, risk=F.cross_entropy, scale=10.0):
        default, lam = (self.default, lam) if lam < math.inf else (None, 1.0)
        heads = self.features, default, self.concept
        return dual_loss(*heads, scale, self.labels, self.targets, lam, risk)[0]

    def reordered(self):
        """The same batch with its images and classes in another order."""
        other = object.__new__(Batch)
        other.features, other.labels = self.features[self.images], self.place[self.labels[self.images]]
        other.default, other.concept = self.default[self.classes], self.concept[self.classes]
        other.targets = self.targets[self.images][:, self.classes]
        return other


def near(a, b, rel=1e-9):
    a, b = (torch.as_tensor(x, dtype=double) for x in (a, b))
    return torch.allclose(a, b, rtol=rel, atol=1e-9)


# ---------------------------------------------------------------------------------------------- losses


@FEW
@given(SEEDS, SMALL, SMALL, LAMBDAS, FORMS)
def test_the_dual_loss_is_the_same_in_any_order_of_images_and_classes(seed, b, c, lam, risk):
    batch = Batch(seed, b, c)
    assert near(batch.loss(lam, risk), batch.reordered().loss(lam, risk))


@FEW
@given(SEEDS, SMALL, SMALL, st.floats(0, 50), st.floats(0, 50), st.floats(0, 1), FORMS)
def test_the_dual_loss_is_linear_in_lambda_and_its_slope_is_wrm(seed, b, c, low, high, t, risk):
    batch = Batch(seed, b, c)
    between = t * low + (1 - t) * high
    assert near(batch.loss(between, risk), t * batch.loss(low, risk) + (1 - t) * batch.loss(high, risk))
    assert near(batch.loss(low, risk), batch.loss(0.0, risk) + low * batch.loss(math.inf, risk))


@FEW
@given(SEEDS, SMALL, SMALL, SCALES, LAMBDAS, FORMS)
def test_the_dual_loss_and_its_gradient_are_finite_at_any_scale_and_never_below_zero(
    seed, b, c, scale, lam, risk
):
    """Affinities reach 1, so logits reach what float16 holds, 65504."""
    batch = Batch(seed, b, c)
    batch.features[0] = batch.default[0]
    for name in ("features", "default", "concept", "targets"):
        setattr(batch, name, getattr(batch, name).float())
    features = batch.features.requires_grad_()
    loss = batch.loss(lam, risk, scale)
    assert loss.isfinite() and loss >= -1e-6
    assert torch.autograd.grad(loss, features)[0].isfinite().all()


@FEW
@given(SEEDS, SMALL, SMALL)
def test_the_dual_loss_is_smallest_where_the_model_says_the_targets(seed, b, c):
    """Gibbs: with one head's logits free, WRM is smallest at the targets' log, and there their entropy."""
    batch = Batch(seed, b, c)
    entropy = -(batch.targets * batch.targets.log()).sum(1).mean()
    assert batch.loss(math.inf) >= entropy - 1e-9
    logits, head = batch.targets.log(), torch.eye(c, dtype=double)
    loss, _, wrm = dual_loss(logits, None, head, 1.0, batch.labels, batch.targets)
    assert near(loss, entropy) and near(wrm, entropy)


@FEW
@given(SEEDS, SMALL, SMALL, SCALES)
def test_the_contrastive_loss_knows_no_order_no_scale_of_targets_and_no_overflow(seed, b, c, scale):
    batch, g = Batch(seed, b, c), torch.Generator().manual_seed(seed)
    logits = scale * batch.features @ batch.default.T
    loss = contrastive_loss(logits, batch.targets)
    reordered = (x[batch.images][:, batch.classes] for x in (logits, batch.targets))
    assert near(loss, contrastive_loss(*reordered))
    assert near(contrastive_loss(logits, 7 * batch.targets), loss)
    largest = torch.where(torch.rand(b, c, generator=g) < 0.5, -65504.0, 65504.0)
    assert contrastive_loss(largest, batch.targets.float()).isfinite()


@FEW
@given(SEEDS, SMALL)
def test_the_contrastive_loss_of_a_square_is_that_of_its_transpose(seed, b):
    batch = Batch(seed, b, b)
    logits, targets = 5 * batch.features @ batch.default.T, batch.targets
    assert near(contrastive_loss(logits, targets), contrastive_loss(logits.T, targets.T))


@FEW
@given(SEEDS, SMALL, SCALES)
def test_the_flyp_loss_knows_no_order_of_pairs_and_is_contrastive_with_identity_targets(seed, b, scale):
    """By its own formula: minus the log-probability of each image's text, and of each text's image."""
    batch = Batch(seed, b, b)
    images, texts, order = batch.features, batch.default, batch.images

    def flyp_loss(images, texts):
        return contrastive_loss(scale * images @ texts.T, torch.eye(b, dtype=double))

    loss, logits = flyp_loss(images, texts), scale * images @ texts.T
    assert loss.isfinite()
    assert near(loss, flyp_loss(images[order], texts[order])) and near(loss, flyp_loss(texts, images))
    by_formula = -(logits.log_softmax(1) + logits.log_softmax(0)).diagonal().mean() / 2
    assert near(loss, by_formula)


# --------------------------------------------------------------------------------------------- mixture


@FEW
@given(SEEDS, SMALL, SMALL, st.floats(0, 1), SCALES)
def test_a_mixture_is_convex_sums_to_one_at_any_scale_and_has_the_heads_as_its_ends(seed, b, c, beta, scale):
    batch = Batch(seed, b, c)
    default, concept = (
        (scale * batch.features @ head.T).softmax(1) for head in (batch.default, batch.concept)
    )
    p = mix(default, concept, beta)
    assert near(p.sum(1), torch.ones(b)) and (p >= 0).all()
    assert (p >= torch.minimum(default, concept) - 1e-12).all()
    assert (p <= torch.maximum(default, concept) + 1e-12).all()
    assert torch.equal(mix(default, concept, 1.0), default)
    assert torch.equal(mix(default, concept, 0.0), concept)
    assert near(p, mix(concept, default, 1 - beta))

    def risk(p):
        return -p[torch.arange(b), batch.labels].clamp(min=1e-300).log().mean()

    # the risk of the mixture is no more than the mixture of the risks (Jensen)
    assert risk(p) <= beta * risk(default) + (1 - beta) * risk(concept) + 1e-9


# --------------------------------------------------------------------------------------------- metrics


def split_of(labels, groups):
    """A split whose images nobody looks at."""
    return Split([None] * len(labels), labels, group_kind="region", groups=groups)


def measured(seed, n, c):
    """-> probabilities, a split with groups, another order of its images, another order of its classes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(c, (n,), generator=g)
    groups = {name: torch.rand(n, generator=g) < 0.4 for name in ("Asia", "Europe", "Other")}
    p = torch.randn(n, c, generator=g, dtype=double).softmax(1)
    return p, split_of(labels, groups), torch.randperm(n, generator=g), torch.randperm(c, generator=g)


def alike(a, b):
    """The same metrics, whatever their order."""
    assert a.keys() == b.keys()
    for key in a:
        assert a[key] == b[key] or a[key] == pytest.approx(b[key], rel=1e-9), key


@FEW
@given(SEEDS, st.integers(1, 30), SMALL)
def test_metrics_know_no_order_of_images_groups_or_classes(seed, n, c):
    """Macro F1 too: a class is its number nowhere."""
    p, split, images, classes = measured(seed, n, c)
    groups = {name: members[images] for name, members in reversed(split.groups.items())}
    other = split_of(torch.argsort(classes)[split.labels[images]], groups)
    alike(metrics(p, split), metrics(p[images][:, classes], other))


@FEW
@given(SEEDS, st.integers(1, 30), SMALL, st.integers(2, 4))
def test_metrics_are_between_0_and_1_and_the_same_when_every_image_comes_several_times(seed, n, c, times):
    p, split, *_ = measured(seed, n, c)
    groups = {name: members.repeat(times) for name, members in split.groups.items()}
    one, many = metrics(p, split), metrics(p.repeat(times, 1), split_of(split.labels.repeat(times), groups))
    for key, value in one.items():
        if key.startswith("n"):
            assert many[key] == times * value
        else:
            assert many[key] == value or many[key] == pytest.approx(value, rel=1e-9)
            assert value is None or key == "log_loss" and value >= 0 or 0 <= value <= 1


@FEW
@given(SEEDS, st.integers(1, 30), SMALL, st.integers(1, 3))
def test_classes_that_no_image_has_and_nobody_says_change_no_metric(seed, n, c, more):
    p, split, *_ = measured(seed, n, c)
    alike(metrics(p, split), metrics(torch.cat([p, torch.zeros(n, more, dtype=double)], 1), split))


@FEW
@given(SEEDS, st.integers(1, 30), SMALL)
def test_whoever_is_always_right_has_1_in_every_metric(seed, n, c):
    _, split, *_ = measured(seed, n, c)
    got = metrics(F.one_hot(split.labels, c).double(), split)
    assert got["accuracy"] == got["macro_f1"] == got["macro_recall"] == 1 and got["log_loss"] == 0
    assert got["worst_region_accuracy"] in (1, None)


@FEW
@given(SEEDS, st.integers(2, 5), SMALL, st.randoms(use_true_random=False))
def test_the_order_of_shifted_domains_changes_no_summary(seed, domains, c, chance):
    p_of, tests = {}, {}
    for i in range(domains):
        p, split, *_ = measured(seed + i, 6, c)
        p_of[id(split)], tests[f"domain {i}"] = (p, p.flip(0)), split
    first, *shifted = tests
    other = {name: tests[name] for name in (first, *chance.sample(shifted, len(shifted)))}

    def in_order(tests):
        val = tests[first]
        return evaluated(None, drm_min.Data({}, val, val, tests), None, (0.0, 0.3, 1.0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drm_min, "predict", lambda model, split, prompts: p_of[id(split)])
        one, two = in_order(tests), in_order(other)
    assert [row["beta"] for row in one] == [0.0, 0.3, 1.0]
    for a, b in zip(one, two):
        alike(a["summary"], b["summary"])
        assert a["domains"] == b["domains"] and list(b["domains"]) == list(other)


# ---------------------------------------------------------------------------------------- core targets


def targets_of(estimator, batch, scale, images=slice(None), classes=slice(None), place=None):
    labels = batch.labels[images] if place is None else place[batch.labels[images]]
    features, head, oracle = batch.features[images], batch.concept[classes], batch.targets[images][:, classes]
    return core_targets(estimator, features, labels, head, scale, oracle), labels, oracle


@FEW
@given(SEEDS, st.integers(4, 12), SMALL, st.sampled_from(ESTIMATORS), SCALES)
def test_core_targets_are_distributions_at_any_scale(seed, n, c, estimator, scale):
    targets, labels, oracle = targets_of(estimator, Batch(seed, n, c), scale)
    p = targets(torch.arange(n))
    assert p.shape == (n, c) and (p >= 0).all() and near(p.sum(1), torch.ones(n))
    for some in ([1, 2], [2, 0]):  # each image by itself
        assert near(p[some], targets(torch.tensor(some)), 1e-6)
    quality = target_quality(estimator, targets, labels, oracle)
    assert 0 <= quality["true_class"] <= 1 + 1e-9
    assert quality["kl_from_oracle"] is None or quality["kl_from_oracle"] >= -1e-9


@FEW
@given(SEEDS, st.integers(4, 12), SMALL, st.sampled_from(ESTIMATORS))
def test_core_targets_know_no_order_of_images_and_classes(seed, n, c, estimator):
    batch = Batch(seed, n, c)
    plain, *_ = targets_of(estimator, batch, 20.0)
    other, *_ = targets_of(estimator, batch, 20.0, batch.images, batch.classes, batch.place)
    everything = torch.arange(n)
    assert near(plain(everything)[batch.images][:, batch.classes], other(everything), 1e-6)


# --------------------------------------------------------------------------------------------- parsers

LETTERS = st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="{}<>")
WORD = st.text(LETTERS, min_size=1, max_size=8)
PHRASE = st.lists(WORD, min_size=1, max_size=5).map(" ".join)
ALL_BUT_BRACES = st.characters(codec="utf-8", exclude_characters="{}")
PROSE = st.text(ALL_BUT_BRACES, max_size=40).filter(lambda text: "think>" not in text)
BRACES = st.sampled_from(
    ["{", "}", "{x}", "{{", "[{]", '{"', '{"a": ', '{"a": NaN}', "{1: 2}", "{}", '{"other": ["a", "b"]}']
)


@st.composite
def answers(draw):
    """{key: two different texts} of some classes, and what a model might have said of it."""
    keys = draw(st.lists(WORD, min_size=1, max_size=4, unique=True))
    found = {key: draw(st.lists(PHRASE, min_size=2, max_size=2, unique=True)) for key in keys}
    return found, json.dumps(found, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))


@FEW
@given(answers(), PROSE, st.lists(BRACES, max_size=2), PROSE, st.booleans())
def test_the_first_complete_value_is_found_whatever_stands_around_it(answer, before, braces, after, fenced):
    found, said = answer
    said = f"```json\n{said}\n```" if fenced else said
    # an opening quote before would make of the answer a text, as it would for a person
    around = " ".join([before.replace('"', "'"), *[brace for brace in braces if not brace.endswith('"')]])
    assert describe.parse_answer(f"{around}\n{said}\n{after} {' '.join(braces)}", list(found), 2) == found
    assert describe.parse_answer(f"<think>{around} {{}}</think>{said}{after}", list(found), 2) == found


@FEW
@given(answers(), answers())
def test_of_two_complete_values_the_first_counts_and_a_thought_does_not(first, second):
    found, said = first
    assert describe.parse_answer(said + second[1], list(found), 2) == found
    assert describe.parse_answer(f"<think>{second[1]}</think>{said}", list(found), 2) == found


@FEW
@given(answers(), st.data())
def test_an_answer_cut_anywhere_gives_nothing_that_was_not_said(answer, data):
    found, said = answer
    part = said[: data.draw(st.integers(0, len(said) - 1))]
    got = describe.parse_answer(part, list(found), 2)
    assert all(found[key] == texts for key, texts in got.items())


@FEW
@given(st.text(max_size=200), st.lists(WORD, min_size=1, max_size=3), st.integers(1, 3))
def test_any_text_at_all_is_an_answer_or_none(said, keys, n):
    for key, texts in describe.parse_answer(said, keys, n).items():
        assert key in keys and len(texts) == n and all(text.strip() for text in texts)


@st.composite
def described(draw):
    """(classes, {key: entry in any of its shapes}, texts of each class), texts that tell classes apart."""
    keys = draw(st.lists(st.text("abcdefg", min_size=1, max_size=4), min_size=2, max_size=5, unique=True))
    entries, texts = {}, []
    for i, key in enumerate(keys):
        own = [f"{text} {i}" for text in draw(st.lists(PHRASE, min_size=1, max_size=3))]
        shapes = [own, dict(descriptions=own), dict(descriptions=own, name=f"the {key}")]
        if len(own) == 1:
            shapes += own
        entries[key] = draw(st.sampled_from(shapes))
        texts.append(own)
    return {key: f"the {key}" for key in keys}, entries, texts


@FEW
@given(described(), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_the_order_of_a_description_file_and_keys_or_names_change_nothing(
    tmp_path, file, chance, by_name, wrapped
):
    classes, entries, texts = file
    file, shuffled = tmp_path / "d.json", list(entries.items())
    if by_name:
        shuffled = [(chance.choice([key, classes[key]]), entry) for key, entry in shuffled]
    chance.shuffle(shuffled)
    content = dict(about={}, classes=dict(shuffled)) if wrapped else dict(shuffled)
    file.write_text(json.dumps(content, ensure_ascii=chance.random() < 0.5), encoding="utf-8")
    assert load_descriptions(file, classes) == texts
    other = dict(chance.sample(list(classes.items()), len(classes)))  # the order is that of the classes
    assert dict(zip(other, load_descriptions(file, other))) == dict(zip(classes, texts))


@FEW
@given(described(), st.data())
def test_a_class_more_or_less_is_refused_and_named(tmp_path, file, data):
    classes, entries, _ = file
    key = data.draw(st.sampled_from(list(classes)))
    less = {k: v for k, v in entries.items() if k != key}
    for content, said in ((less, f"missing: '{key}'"), (entries | {"zebra": "x"}, "extra: 'zebra'")):
        (tmp_path / "d.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(BadInput, match=said):
            load_descriptions(tmp_path / "d.json", classes)
