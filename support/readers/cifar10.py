"""CIFAR-10 as the source, STL-10 as the shifted domain; torchvision downloads both.

torchvision unpickles CIFAR-10's batches, after it has compared their checksums.
"""

import torch
import torchvision

from support.errors import BadInput
from support.readers.tables import PUBLISHED, Row, Table

RECIPE = PUBLISHED | {"epochs": 10, "data_root": "data", "descriptions": "descriptions/cifar10.json"}
LAYOUT = "CIFAR-10 and STL-10 are downloaded to it by torchvision"


def read(root):
    """Every tenth training image is for validation. STL-10 is joined by name; its monkeys are left out."""
    try:
        train = torchvision.datasets.CIFAR10(root, train=True, download=True)
        test = torchvision.datasets.CIFAR10(root, train=False, download=True)
        stl = torchvision.datasets.STL10(root, "test", download=True)
    except (RuntimeError, OSError) as e:  # no network, a damaged archive
        why = f"CIFAR-10 or STL-10 is not there and cannot be downloaded ({str(e)[:200]})"
        raise BadInput(f"--data-root {root}: {why}") from None
    rows = [Row("train" if i % 10 else "val", *pair) for i, pair in enumerate(pictures(train))]
    rows += [Row("cifar10", *pair) for pair in pictures(test)]
    names = [{"car": "automobile"}.get(name, name) for name in stl.classes]
    for picture, y in zip(stl.data, stl.labels):
        if names[y] != "monkey":
            rows.append(Row("stl10", torch.from_numpy(picture), names[y]))
    return Table({name: name for name in train.classes}, rows, "cifar10")


def pictures(cifar):
    """(picture (3, 32, 32), name of its class) of each image."""
    images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2)  # (N, 3, 32, 32)
    return [(image, cifar.classes[y]) for image, y in zip(images, cifar.targets)]
