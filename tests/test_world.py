"""The toy world: what its pictures show, and what is known of them."""

import itertools

import pytest
import torch

import drm_min
from support import settings
from support.texts import load_descriptions
from toy import pretrain, world


def test_domains_pair_things_and_places_as_they_say(g):
    for domain, (rho, share_visible) in world.DOMAINS.items():
        p = world.draw(4000, domain, g)
        regular = (p.places == torch.tensor(world.CAMERA)[p.objects]).float().mean().item()
        assert abs(regular - (0 if rho < 0 else rho + (1 - rho) / world.C)) < 0.03 and (
            rho >= 0 or regular == 0
        )
        assert abs(p.visible.float().mean().item() - share_visible) < 0.03
        assert torch.bincount(p.objects, minlength=world.C).min() > 400


def test_oracle_is_one_hot_for_visible_things_and_uniform_for_hidden_ones(g):
    p = world.draw(500, "same site", g)
    for object, visible, truth in zip(p.objects, p.visible, p.oracle):
        expected = torch.eye(world.C)[object] if visible else torch.full((world.C,), 1 / world.C)
        assert torch.equal(truth, expected)


def test_oracle_is_what_the_generator_does(g):
    """Where the place says nothing, each object has a share of 1 / C among the hidden pictures of each place.

    And hidden objects leave hardly a trace: pictures with and without one differ by less than the noise.
    """
    p = world.draw(8000, (0.0, 0.0), g)
    for place in range(world.C):
        share = torch.bincount(p.objects[p.places == place], minlength=world.C) / (p.places == place).sum()
        assert (share - 1 / world.C).abs().max() < 0.05
    objects, places = torch.arange(world.C), torch.arange(world.C)

    def painted(objects, visible):
        chance, shown = torch.Generator().manual_seed(1), torch.full((world.C,), visible)
        return world.paint(objects, places, shown, chance, 0.0, 0.0).float() / 255

    def trace(visible):
        return (painted(objects, visible) - painted((objects + 1) % world.C, visible)).abs().mean().item()

    assert trace(False) < 0.005 and trace(True) > 8 * trace(False)


def test_colour_and_position_carry_no_label(g):
    """Objects in one place, drawn from one seed: pictures differ where the shapes differ and nowhere else."""
    same = torch.zeros(2, dtype=torch.long)
    for object in range(1, world.C):
        visible = torch.tensor([True, True])
        a = world.paint(same, same, visible, torch.Generator().manual_seed(3), 0.0, 0.0)
        b = world.paint(same + object, same, visible, torch.Generator().manual_seed(3), 0.0, 0.0)
        corners = slice(None, None, world.SIZE - 1)  # the first and the last, both ways
        assert torch.equal(a[..., corners, corners], b[..., corners, corners]) and not torch.equal(a, b)


def test_same_seed_same_pictures_and_no_two_splits_alike(toy):
    first, again, other = (world.draw(50, "same site", torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert first.images.dtype == torch.uint8 and first.images.shape == (50, 3, 32, 32)
    splits = [toy.train, toy.val, *toy.tests.values()]
    assert len({s.images[:100].float().sum().item() for s in splits}) == len(splits)


# --------------------------------------------------------------------------------------------------- in fog


def drawn(camera, n=2500, domain="same site"):
    return world.draw(n, domain, torch.Generator().manual_seed(4), camera=camera)


def test_fog_leaves_the_pictures_of_the_clear_camera_alone():
    plain, clear = world.draw(1500, "same site", torch.Generator().manual_seed(4)), drawn("toy", 1500)
    assert all(torch.equal(a, b) for a, b in zip(plain, clear))
    again = world.in_fog(clear.images, *world.CAMERAS["toy"])
    assert torch.equal(again, clear.images) and again.dtype == torch.uint8


def test_fog_changes_what_is_seen_and_nothing_of_what_is_there():
    clear, fog = drawn("toy"), drawn("toy-fog")
    for name in ("objects", "places", "visible", "oracle"):
        assert torch.equal(getattr(clear, name), getattr(fog, name)), name
    assert fog.images.dtype == torch.uint8 and fog.images.shape == clear.images.shape
    before, after = ((p.images.float() - 127.5).flatten(1) for p in (clear, fog))
    contrast, blurs = world.CAMERAS["toy-fog"]
    assert after.abs().amax() <= contrast * 127.5 + 0.5  # 0.5: rounded
    assert (after.std(1) < contrast * before.std(1)).all(), "each picture: less contrast, and blurred"
    assert after.mean(1) == pytest.approx((contrast * before.mean(1)).numpy(), abs=2.0)  # but for the border
    assert blurs == 2 and contrast < 0.5


def test_fog_by_hand():
    """A white dot on black: contrast 0.5 makes it 191.25 on 63.75, a mean of nine spreads the difference."""
    images = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    images[..., 2, 2] = 255
    hazy = world.in_fog(images, 0.5, 0)
    assert hazy[..., 2, 2].unique().tolist() == [191] and hazy[..., 0, :].unique().tolist() == [64]
    spread = world.in_fog(images, 0.5, 1)
    assert spread[..., 1:4, 1:4].unique().tolist() == [78]  # 63.75 + 127.5 / 9
    assert spread[..., 0, :].unique().tolist() == [64]  # the border repeats itself: no dark frame


def test_the_data_set_in_fog_is_the_toy_world_in_fog(toy, monkeypatch):
    draw, cameras = world.draw, []

    def few(n, *rest, camera):
        cameras.append(camera)
        return draw(n // 20, *rest, camera=camera)

    monkeypatch.setattr(world, "draw", few)
    clear, fog, other = (
        drm_min.load_data(drm_min.Config(dataset=dataset), seed)
        for dataset, seed in (("toy", 3), ("toy-fog", 3), ("toy-fog", 4))
    )
    assert cameras == ["toy"] * 6 + ["toy-fog"] * 12
    assert list(fog.tests) == list(world.DOMAINS) and fog.ceilings == clear.ceilings
    assert fog.classes == clear.classes and settings.RECIPES["toy-fog"] == settings.RECIPES["toy"]
    names = [clear.train, *clear.tests.values()], [fog.train, *fog.tests.values()]
    for a, b in zip(*names):
        assert torch.equal(a.labels, b.labels) and torch.equal(a.oracle, b.oracle)
        assert torch.equal(a.groups["visible"], b.groups["visible"]) and not torch.equal(a.images, b.images)
    assert not torch.equal(fog.train.labels, other.train.labels), "a seed draws everything anew"


@torch.no_grad()
def accuracies(model, prompts, camera):
    """(zero-shot concept head, linear probe), on the same 2000 visible objects in any place."""
    g = torch.Generator().manual_seed(7)
    pictures = world.draw(8000, (0.0, 1.0), g, camera=camera)
    split = drm_min.Split(pictures.images, pictures.objects)
    features, labels = drm_min.encode_images(model, split).double(), pictures.objects
    head = drm_min.build_head(model, prompts.concept).double()
    zero_shot = (features[6000:] @ head.T).argmax(1) == labels[6000:]
    train = features[:6000]
    standard = (features - train.mean(0)) / train.std(0)
    probe = torch.nn.Linear(features.shape[1], world.C).double()
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = torch.nn.functional.cross_entropy(probe(standard[:6000]), labels[:6000])
            loss.backward()
        return loss

    optimizer.step(closure)
    right = probe(standard[6000:]).argmax(1) == labels[6000:]
    return zero_shot.double().mean().item(), right.double().mean().item()


def test_in_fog_features_know_more_than_the_zero_shot_head_says_and_in_clear_air_hardly(clip, prompts):
    """Why fog is there: the image tower still sees the objects, while their names no longer fit."""
    lead = {}
    for camera in world.CAMERAS:
        by_name, by_probe = accuracies(clip[0], prompts, camera)
        lead[camera] = by_probe - by_name
    assert lead["toy"] < 0.10 and lead["toy-fog"] >= 0.25, lead


# ------------------------------------------------------------------------------------------ what is known


def test_ceilings_are_those_of_a_guesser_who_knows_the_domain(monkeypatch):
    """Visible objects by sight, hidden ones by the place's most frequent object: nobody does better."""
    no_picture = torch.zeros(0, dtype=torch.uint8)  # nobody looks at them, and they take long
    monkeypatch.setattr(world, "paint", lambda objects, *_: no_picture.expand(len(objects), 0))
    for domain, (rho, _) in world.DOMAINS.items():
        p = world.draw(20000, (rho, 0.0), torch.Generator().manual_seed(9))
        table = torch.zeros(world.C, world.C).index_put_(
            (p.places, p.objects), torch.ones(20000), accumulate=True
        )
        by_place = (table.amax(1).sum() / table.sum()).item()
        share = world.DOMAINS[domain][1]
        assert abs(world.ceiling(domain) - (share + (1 - share) * by_place)) < 0.02


def test_descriptions_are_none_of_the_captions():
    """The tiny CLIP never read the shipped sentences, as no CLIP read an LLM's: only their words."""
    captions = set()
    for parts in pretrain.PARTS:
        for form, one, other in itertools.product(pretrain.DESCRIPTION_CAPTIONS, *parts):
            captions.add(form.format(one, other))
    assert len(captions) == 8 * 3 * 3 * 4
    of_class = load_descriptions("descriptions/toy.json", {name: name for name in world.OBJECTS})
    shipped = set(itertools.chain(*of_class))
    assert len(shipped) == 16 and not shipped & captions
    places = {*world.PLACES, "slope", "snowy", "water", "grass", "sand"}
    assert not any(places & set(text.split()) for text in shipped)
