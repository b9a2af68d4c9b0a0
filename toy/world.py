"""A toy world whose truth is known.

32 x 32 pictures of eight objects (the core features x_c) in front of eight places, their backgrounds (the
non-core features x_n). Nature pairs them: skis go with snow. A camera pairs them otherwise: skis with the
forest. The label is the object, so a picture whose object is hidden says nothing about the label but through
its place, and p(y | x_c) is known for every picture: one-hot when the object is visible, uniform when it is
hidden. That is the oracle no real benchmark has. A second camera sees the same world in fog, where the tiny
CLIP's texts fit badly.

`python toy/world.py` draws a sheet of it, toy/world.png.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

OBJECTS = ("ski", "kite", "boat", "tent", "umbrella", "mushroom", "fish", "cactus")
PLACES = ("snow", "sky", "sea", "forest", "street", "meadow", "reef", "desert")
SIZE = 32
C = len(OBJECTS)

# where the web shows each object, in its own place, and where the downstream camera usually sees it
NATURE = tuple(range(C))
CAMERA = tuple((c + 3) % C for c in range(C))

# domain -> (rho, share of visible objects): the object stands in its regular place with probability
# rho + (1 - rho) / C, for rho = -1 never. Training and validation images are drawn as those of `same site`;
# the other three are only ever tested on.
DOMAINS = {
    "same site": (0.8, 0.8),
    "object hidden": (0.8, 0.2),
    "place random": (0.0, 0.8),
    "place misleads": (-1.0, 0.8),
}

# data set -> fog before its camera: contrast about mid-grey, and how many 3 x 3 mean filters come after
CAMERAS = {"toy": (1.0, 0), "toy-fog": (0.16, 2)}


class Pictures(NamedTuple):
    images: torch.Tensor  # (N, 3, 32, 32) uint8
    objects: torch.Tensor  # (N,) the label
    places: torch.Tensor  # (N,)
    visible: torch.Tensor  # (N,) bool
    oracle: torch.Tensor  # (N, C) p(y | x_c)


def ceiling(domain):
    """The best accuracy in a domain, even knowing which it is, for whoever cannot make out hidden objects.

    Their trace of at most a tenth of the contrast, under the noise, leaves little.
    """
    rho, share_visible = DOMAINS[domain]
    place_alone = 1 / (C - 1) if rho < 0 else rho + (1 - rho) / C
    return share_visible + (1 - share_visible) * place_alone


def draw(n, domain, generator, regular=CAMERA, noise=0.08, light=0.25, camera="toy"):
    """Draw n pictures of a domain (a name, or a pair rho, share visible) as the camera sees them.

    `regular[c]` is the place where object c regularly stands. `noise` is the pixel noise (standard deviation,
    1 = full range) and `light` the strength of the camera's changes of brightness and tint. Labels are
    uniform in every domain.
    """
    if n > 1000:  # in pieces that stay in the processor's cache: several times faster
        sizes = [min(1000, n - i) for i in range(0, n, 1000)]
        pieces = [draw(size, domain, generator, regular, noise, light, camera) for size in sizes]
        return Pictures(*map(torch.cat, zip(*pieces)))
    rho, share_visible = DOMAINS[domain] if isinstance(domain, str) else domain
    g = generator
    objects = torch.randint(C, (n,), generator=g)
    regular_place = torch.tensor(regular)[objects]
    if rho < 0:  # any place but the regular one
        places = (regular_place + torch.randint(1, C, (n,), generator=g)) % C
    else:
        anywhere = torch.randint(C, (n,), generator=g)
        places = torch.where(torch.rand(n, generator=g) < rho, regular_place, anywhere)
    visible = torch.rand(n, generator=g) < share_visible
    images = in_fog(paint(objects, places, visible, g, noise, light), *CAMERAS[camera])
    oracle = torch.full((n, C), 1 / C)
    oracle[visible] = F.one_hot(objects[visible], C).float()
    return Pictures(images, objects, places, visible, oracle)


def paint(objects, places, visible, generator, noise, light):
    """Objects (N,) over places (N,) -> uint8 images (N, 3, 32, 32) of random colour, position, size, tilt."""
    g, n = generator, len(objects)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=g)

    opacity = torch.where(visible, uniform(0.6, 1.0), uniform(0.0, 0.1))  # (N,)
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # (32, 32), x to the right and y downwards, both -1..1

    background = _places(places, x, y, uniform)  # (N, 3, 32, 32)
    # The colour that stands out most from the place among six random ones: it says nothing about the object.
    candidates = uniform(0.0, 1.0, 6, 3)
    gap = (candidates - background.mean((2, 3))[:, None]).norm(dim=-1)
    colour = candidates[torch.arange(n), gap.argmax(1)][:, :, None, None]  # (N, 3, 1, 1)

    # From picture coordinates into the object's own: shift, turn, scale, mirror.
    size, tilt = uniform(0.5, 0.75), uniform(-0.35, 0.35)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    dx = x - uniform(-0.3, 0.3)[:, None, None]
    dy = y - uniform(-0.3, 0.3)[:, None, None]
    cos, sin = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    u = (cos * dx + sin * dy) / size[:, None, None] * mirror[:, None, None]
    v = (-sin * dx + cos * dy) / size[:, None, None]
    distance = torch.empty(n, SIZE, SIZE)
    for c, shape in enumerate(_SHAPES):
        distance[objects == c] = shape(u[objects == c], v[objects == c])
    # Signed distance in pixels -> coverage: an edge one pixel wide, with no jagged steps to learn.
    coverage = (0.5 - distance * size[:, None, None] * SIZE / 2).clamp(0, 1)[:, None]

    images = background + (colour - background) * coverage * opacity[:, None, None, None]
    images = images * uniform(1 - light, 1 + light / 2, 1, 1, 1) + light * uniform(-0.2, 0.2, 3, 1, 1)
    images = images + noise * torch.randn(images.shape, generator=g)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def in_fog(images, contrast, blurs):
    """uint8 images (N, 3, H, W) with less contrast, and blurred: the same objects, seen worse."""
    if (contrast, blurs) == (1.0, 0):
        return images
    hazy = 127.5 + contrast * (images.float() - 127.5)
    for _ in range(blurs):
        hazy = F.avg_pool2d(F.pad(hazy, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return hazy.round().to(torch.uint8)


# Shapes: signed distance (below zero inside) in the object's own coordinates, -1..1, u right and v down.
def _box(u, v, half_width, half_height):
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _disc(u, v, radius_u, radius_v):  # an ellipse, to first order
    return ((u / radius_u) ** 2 + (v / radius_v) ** 2).sqrt().sub(1) * min(radius_u, radius_v)


def _triangle(u, v, top, bottom, half_base):  # apex up
    slope = half_base / (bottom - top)
    side = (u.abs() - (v - top) * slope) / math.hypot(1, slope)
    return torch.maximum(side, v - bottom)


def _union(*parts):
    return torch.stack(parts).amin(0)


def _without(shape, hole):
    return torch.maximum(shape, -hole)


def _ski(u, v):
    bend = 0.35 * (-v - 0.4).clamp(min=0)  # the tips curve away at the top
    return _union(_box(u - 0.28 - bend, v, 0.11, 0.95), _box(u + 0.28 - bend, v, 0.11, 0.95))


def _kite(u, v):
    diamond = (u.abs() / 0.55 + (v + 0.3).abs() / 0.62 - 1) * 0.41
    tail = _box(u - 0.16 * torch.sin(7 * (v - 0.3)), v - 0.62, 0.07, 0.36)
    return _union(diamond, tail)


def _boat(u, v):
    hull = torch.maximum(_box(u, v - 0.6, 0.85, 0.2), u.abs() - 1.25 + v * 0.9)
    sail = torch.maximum(torch.maximum(u - 0.55 * (v + 0.95), -u - 0.12), v - 0.28)
    return _union(hull, sail)


def _tent(u, v):
    return _without(_triangle(u, v, -0.75, 0.75, 0.9), _triangle(u, v, -0.05, 0.8, 0.33))


def _umbrella(u, v):
    dome = torch.maximum(_disc(u, v + 0.05, 0.85, 0.75), v + 0.05)
    stick = _box(u, v - 0.3, 0.07, 0.5)
    ring = _without(_disc(u - 0.2, v - 0.75, 0.27, 0.27), _disc(u - 0.2, v - 0.75, 0.13, 0.13))
    return _union(dome, stick, torch.maximum(ring, 0.75 - v))


def _mushroom(u, v):
    cap = torch.maximum(_disc(u, v, 0.8, 0.7), v - 0.05)
    return _union(cap, _box(u, v - 0.42, 0.28, 0.42))


def _fish(u, v):
    body = _disc(u + 0.2, v, 0.62, 0.38)
    tail = torch.maximum((v.abs() - 0.95 * (u - 0.28)) * 0.72, u - 0.88)
    fork = (v.abs() - 0.7 * (u - 0.62)) * 0.82
    return _union(body, _without(tail, fork))


def _cactus(u, v):
    column = _box(u, v, 0.2, 0.95)
    right = _union(_box(u - 0.4, v - 0.15, 0.3, 0.12), _box(u - 0.6, v + 0.13, 0.12, 0.4))
    left = _union(_box(u + 0.4, v - 0.4, 0.3, 0.12), _box(u + 0.6, v - 0.17, 0.12, 0.35))
    return _union(column, right, left)


_SHAPES = (_ski, _kite, _boat, _tent, _umbrella, _mushroom, _fish, _cactus)

# Each place: two colours and the pattern that blends them, with a random phase and pitch.
_COLOURS = torch.tensor(
    [
        [[0.97, 0.97, 1.00], [0.80, 0.82, 0.88]],  # snow
        [[0.36, 0.60, 0.92], [0.66, 0.83, 1.00]],  # sky
        [[0.02, 0.10, 0.40], [0.10, 0.30, 0.70]],  # sea
        [[0.02, 0.12, 0.04], [0.08, 0.38, 0.14]],  # forest
        [[0.28, 0.30, 0.33], [0.68, 0.66, 0.66]],  # street
        [[0.45, 0.70, 0.18], [0.68, 0.88, 0.40]],  # meadow
        [[0.00, 0.38, 0.42], [0.35, 0.80, 0.80]],  # reef
        [[0.93, 0.80, 0.50], [0.78, 0.60, 0.28]],  # desert
    ]
)


def _places(places, x, y, uniform):
    """Places (N,) -> backgrounds (N, 3, 32, 32)."""
    phase = uniform(0, 2 * math.pi)[:, None, None]
    pitch = uniform(0.8, 1.25)[:, None, None]
    cx, cy = uniform(-0.3, 0.3)[:, None, None], uniform(-0.3, 0.3)[:, None, None]
    patterns = (
        lambda p, f, cx, cy: 0.5 + 0.5 * torch.sin(2 * f * (x + y) + p),  # snow: soft drifts
        lambda p, f, cx, cy: (
            ((y + 1) / 2).expand(len(p), -1, -1) + 0.1 * torch.sin(f * x + p)
        ),  # sky: pale below
        lambda p, f, cx, cy: 0.5 + 0.5 * torch.sin(11 * f * y + 1.5 * torch.sin(4 * x + p)),  # sea: waves
        lambda p, f, cx, cy: 0.5 + 0.5 * torch.sin(10 * f * x + p) * torch.cos(2 * y + p),  # forest: trunks
        lambda p, f, cx, cy: 0.5 + 2 * (torch.sin(7 * f * x + p) * torch.sin(7 * f * y + p)),  # street: slabs
        lambda p, f, cx, cy: 0.5 + 0.5 * torch.sin(9 * f * (x + 0.6 * y) + p),  # meadow: blades
        lambda p, f, cx, cy: (
            0.5 + 0.5 * torch.sin(12 * f * ((x - cx) ** 2 + (y - cy) ** 2).sqrt() + p)
        ),  # reef: rings
        lambda p, f, cx, cy: 0.5 + 0.5 * torch.sin(8 * f * y + 2.5 * torch.sin(2.5 * x + p)),  # desert: dunes
    )
    blend = torch.empty(len(places), SIZE, SIZE)
    for k, pattern in enumerate(patterns):
        at = places == k
        blend[at] = pattern(phase[at], pitch[at], cx[at], cy[at])
    colours = _COLOURS[places] + uniform(-0.06, 0.06, 2, 3)  # (N, 2, 3)
    dark, bright = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    return dark + (bright - dark) * blend.clamp(0, 1)[:, None]


def sheet(path):
    """A column an object: in nature's place, the camera's and two others, hidden in the first two, in fog."""
    from matplotlib.figure import Figure

    g = torch.Generator().manual_seed(1)
    objects = torch.arange(C)
    rows = (
        ("nature's place", 0, True, "toy"),
        ("the camera's place", 3, True, "toy"),
        ("another place", 1, True, "toy"),
        ("another place", 5, True, "toy"),
        ("hidden, nature's place", 0, False, "toy"),
        ("hidden, the camera's", 3, False, "toy"),
        ("the camera's place, in fog", 3, True, "toy-fog"),
    )
    figure = Figure(figsize=(9, 7.6), layout="constrained")
    for axes, (title, shift, seen, camera) in zip(figure.subplots(len(rows), C), rows):
        images = paint(objects, (objects + shift) % C, torch.full((C,), seen), g, noise=0.08, light=0.25)
        for c, image in enumerate(in_fog(images, *CAMERAS[camera])):
            axes[c].imshow(image.permute(1, 2, 0), interpolation="nearest")
            axes[c].set(xticks=[], yticks=[])
            if shift == 0 and seen:
                axes[c].set_title(OBJECTS[c], fontsize=10)
        axes[0].set_ylabel(
            title.replace(", ", ",\n").replace(" place", "\nplace"),
            rotation=0,
            ha="right",
            va="center",
            fontsize=9,
        )
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    from pathlib import Path

    sheet(Path(__file__).with_name("world.png"))
