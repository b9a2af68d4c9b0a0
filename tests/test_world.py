import torch

from toy import world


def test_domains_pair_things_and_places_as_they_say(g):
    for domain, (rho, share_visible) in world.DOMAINS.items():
        p = world.draw(4000, domain, g)
        regular = (p.places == torch.tensor(world.CAMERA)[p.things]).float().mean().item()
        assert abs(regular - (0 if rho < 0 else rho + (1 - rho) / world.C)) < 0.03 and (rho >= 0 or regular == 0)
        assert abs(p.visible.float().mean().item() - share_visible) < 0.03
        assert torch.bincount(p.things, minlength=world.C).min() > 400


def test_oracle_is_one_hot_for_visible_things_and_uniform_for_hidden_ones(g):
    p = world.draw(500, "id", g)
    for thing, visible, truth in zip(p.things, p.visible, p.oracle):
        expected = torch.eye(world.C)[thing] if visible else torch.full((world.C,), 1 / world.C)
        assert torch.equal(truth, expected)


def test_oracle_is_what_the_generator_does(g):
    """Where the place says nothing, the share of each thing among the hidden pictures of each place is 1 / C, and hidden
    things leave hardly a trace: the picture with and without the thing differ by less than the noise."""
    p = world.draw(8000, (0.0, 0.0), g)
    for place in range(world.C):
        share = torch.bincount(p.things[p.places == place], minlength=world.C) / (p.places == place).sum()
        assert (share - 1 / world.C).abs().max() < 0.05
    things, places = torch.arange(world.C), torch.arange(world.C)

    def trace(visible):
        one, other = (world.paint((things + k) % world.C, places, torch.full((world.C,), visible),
                                  torch.Generator().manual_seed(1), 0.0, 0.0).float() / 255 for k in (0, 1))
        return (one - other).abs().mean().item()

    assert trace(False) < 0.005 and trace(True) > 8 * trace(False)


def test_colour_and_position_carry_no_label(g):
    """Things in one place, drawn from one seed: the pictures differ where the shapes differ and nowhere else."""
    same = torch.zeros(2, dtype=torch.long)
    for thing in range(1, world.C):
        a = world.paint(same, same, torch.tensor([True, True]), torch.Generator().manual_seed(3), 0.0, 0.0)
        b = world.paint(same + thing, same, torch.tensor([True, True]), torch.Generator().manual_seed(3), 0.0, 0.0)
        corners = [(slice(None), slice(None), y, x) for y in (0, -1) for x in (0, -1)]
        assert all(torch.equal(a[c], b[c]) for c in corners) and not torch.equal(a, b)


def test_same_seed_same_pictures_and_no_two_splits_alike(toy):
    first, again, other = (world.draw(50, "id", torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert first.images.dtype == torch.uint8 and first.images.shape == (50, 3, 32, 32)
    splits = [toy.train, toy.val, *toy.tests.values()]
    assert len({s.images[:100].float().sum().item() for s in splits}) == len(splits)


def test_ceilings_are_those_of_a_guesser_who_knows_the_domain(toy):
    """Visible things by sight, hidden ones by the place's most frequent thing: nobody does better."""
    for domain, (rho, _) in world.DOMAINS.items():
        p = world.draw(20000, (rho, 0.0), torch.Generator().manual_seed(9))
        table = torch.zeros(world.C, world.C).index_put_((p.places, p.things), torch.ones(20000), accumulate=True)
        by_place = (table.amax(1).sum() / table.sum()).item()
        share = world.DOMAINS[domain][1]
        assert abs(world.ceiling(domain) - (share + (1 - share) * by_place)) < 0.02


def test_descriptions_are_none_of_the_captions():
    """The tiny CLIP never read the shipped sentences, as no CLIP read an LLM's: only their words."""
    from describe import load_descriptions
    from toy import pretrain

    captions = {c.format(a, b) for c in pretrain.DESCRIPTION_CAPTIONS for ones, others in pretrain.PARTS for a in ones for b in others}
    shipped = {t for of_class in load_descriptions("descriptions/toy.json", {n: n for n in world.THINGS}) for t in of_class}
    assert len(shipped) == 16 and not shipped & captions
    places = {w for p in (*world.PLACES, "slope", "snowy", "water", "grass", "sand") for w in [p]}
    assert not any(word in text.split() for text in shipped for word in places)
