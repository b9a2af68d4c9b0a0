"""CIFAR-10 as the source, STL-10 as the shifted domain; torchvision downloads both.

torchvision unpickles CIFAR-10's batches, after it has compared their checksums.
"""

import torch
import torchvision

from support.errors import BadInput
from support.readers.tables import PUBLISHED, Row, Table

RECIPE = PUBLISHED | {"epochs": 10, "data_root": "data", "descriptions": "descriptions/cifar10.json"}
RECIPE |= {"domain": "tiny photos, 32 pixels wide, of one thing that fills them"}
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
    names = [{"car": "automobile"}.get(name, name) for name in stl.classes]
    rows = []
    for i, (picture, y) in enumerate(zip(train.data, train.targets)):  # pictures (32, 32, 3)
        rows.append(Row("train" if i % 10 else "val", chw(picture), train.classes[y]))
    rows += [Row("cifar10", chw(picture), test.classes[y]) for picture, y in zip(test.data, test.targets)]
    for picture, y in zip(stl.data, stl.labels):  # pictures (3, 96, 96)
        if names[y] != "monkey":
            rows.append(Row("stl10", torch.from_numpy(picture), names[y]))
    return Table({name: name for name in train.classes}, rows, "cifar10")


def chw(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)
