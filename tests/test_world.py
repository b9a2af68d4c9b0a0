"""The toy world: what its pictures show, and what is known of them."""

import itertools

import torch

from support.texts import load_descriptions
from toy import pretrain, world


def test_domains_pair_things_and_places_as_they_say(g):
    for domain, (rho, share_visible) in world.DOMAINS.items():
        p = world.draw(4000, domain, g)
        regular = (p.places == torch.tensor(world.CAMERA)[p.things]).float().mean().item()
        assert abs(regular - (0 if rho < 0 else rho + (1 - rho) / world.C)) < 0.03 and (
            rho >= 0 or regular == 0
        )
        assert abs(p.visible.float().mean().item() - share_visible) < 0.03
        assert torch.bincount(p.things, minlength=world.C).min() > 400


def test_oracle_is_one_hot_for_visible_things_and_uniform_for_hidden_ones(g):
    p = world.draw(500, "id", g)
    for thing, visible, truth in zip(p.things, p.visible, p.oracle):
        expected = torch.eye(world.C)[thing] if visible else torch.full((world.C,), 1 / world.C)
        assert torch.equal(truth, expected)


def test_oracle_is_what_the_generator_does(g):
    """Where the place says nothing, each thing has a share of 1 / C among the hidden pictures of each place.

    And hidden things leave hardly a trace: pictures with and without one differ by less than the noise.
    """
    p = world.draw(8000, (0.0, 0.0), g)
    for place in range(world.C):
        share = torch.bincount(p.things[p.places == place], minlength=world.C) / (p.places == place).sum()
        assert (share - 1 / world.C).abs().max() < 0.05
    things, places = torch.arange(world.C), torch.arange(world.C)

    def painted(things, visible):
        chance, shown = torch.Generator().manual_seed(1), torch.full((world.C,), visible)
        return world.paint(things, places, shown, chance, 0.0, 0.0).float() / 255

    def trace(visible):
        return (painted(things, visible) - painted((things + 1) % world.C, visible)).abs().mean().item()

    assert trace(False) < 0.005 and trace(True) > 8 * trace(False)


def test_colour_and_position_carry_no_label(g):
    """Things in one place, drawn from one seed: pictures differ where the shapes differ and nowhere else."""
    same = torch.zeros(2, dtype=torch.long)
    for thing in range(1, world.C):
        visible = torch.tensor([True, True])
        a = world.paint(same, same, visible, torch.Generator().manual_seed(3), 0.0, 0.0)
        b = world.paint(same + thing, same, visible, torch.Generator().manual_seed(3), 0.0, 0.0)
        corners = slice(None, None, world.SIZE - 1)  # the first and the last, both ways
        assert torch.equal(a[..., corners, corners], b[..., corners, corners]) and not torch.equal(a, b)


def test_same_seed_same_pictures_and_no_two_splits_alike(toy):
    first, again, other = (world.draw(50, "id", torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert first.images.dtype == torch.uint8 and first.images.shape == (50, 3, 32, 32)
    splits = [toy.train, toy.val, *toy.tests.values()]
    assert len({s.images[:100].float().sum().item() for s in splits}) == len(splits)


def test_ceilings_are_those_of_a_guesser_who_knows_the_domain(monkeypatch):
    """Visible things by sight, hidden ones by the place's most frequent thing: nobody does better."""
    no_picture = torch.zeros(0, dtype=torch.uint8)  # nobody looks at them, and they take long
    monkeypatch.setattr(world, "paint", lambda things, *_: no_picture.expand(len(things), 0))
    for domain, (rho, _) in world.DOMAINS.items():
        p = world.draw(20000, (rho, 0.0), torch.Generator().manual_seed(9))
        table = torch.zeros(world.C, world.C).index_put_(
            (p.places, p.things), torch.ones(20000), accumulate=True
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
    of_class = load_descriptions("descriptions/toy.json", {name: name for name in world.THINGS})
    shipped = set(itertools.chain(*of_class))
    assert len(shipped) == 16 and not shipped & captions
    places = {*world.PLACES, "slope", "snowy", "water", "grass", "sand"}
    assert not any(places & set(text.split()) for text in shipped)
