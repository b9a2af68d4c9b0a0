"""What --check looks at in texts: for each kind two texts that must be reported, and two that must not."""

import json

import open_clip
import pytest
from conftest import ROOT
from test_texts import rows_of

import describe
from support.texts import other_names
from support.wording import check, check_texts, near_duplicates

pytestmark = pytest.mark.usefixtures("one_tokenizer")

NAMES = {
    "0": "kite (bird of prey)",
    "1": "gray fox",
    "2": "red fox",
    "3": "sea lion",
    "4": "Günther's dik-dik",
}
ALSO = {"0": ["chicken hawk", "Milvus milvus"], "3": ["eared seal"]}
# kind -> (texts of class 0 that must be reported, texts of class 0 that must not)
KINDS = {
    "long": (
        [
            "plank " * 21,
            "a broad brown wing with long dark fingers, a deep fork in the tail, a hooked beak, two talons",
        ],
        ["plank " * 20, "a broad brown wing with long dark fingers and a deep fork in the tail"],
    ),
    "short": (["thing", "long forked red tail"], ["a long forked red tail", "tail long, forked and red"]),
    "negation": (
        ["a small pale head with no raised crest", "a tailless brown body with a hooked beak"],
        ["a small nodding head with a flat crest", "a seamless brown body and stainless claws"],
    ),
    "person": (
        ["a leather strap worn around the wrist", "a small dark bag held by two women"],
        ["a weathered leather strap with a buckle", "a small bag with two handles on top"],
    ),
    "comparison": (
        ["a spoon-like bill with a broad tip", "a dark sharp claw resembling a sickle"],
        ["a heart-shaped white face with dark eyes", "a likeable round face with dark eyes"],
    ),
    "size in units": (
        ["a brown body about 60 cm from end to end", "a slim tail of three to five inches"],
        ["a brown body with two yellow feet", "a slim tail with five dark bands"],
    ),
    "use": (
        ["a hooked beak used to tear meat apart", "two broad wings for gliding in circles"],
        [
            "a hooked beak with a yellow base",
            "two broad wings that bend like long bows".replace("like ", "as "),
        ],
    ),
    "sense": (
        ["a dark oily coat with a strong smell", "a loud bird with a forked tail"],
        ["a dark oily coat with a strong shine", "a cloud gray bird with a forked tail"],
    ),
    "vague": (
        ["a thing with a long forked tail", "some brown object with two broad wings"],
        [
            "something is said of nothing here".replace("something", "somebody"),
            "a bird with a long forked tail",
        ],
    ),
    "spelling": (
        ["a grey head over a reddish body", "a body of one dark colour all over"],
        ["a gray head over a reddish body", "a greyhound slim body of one dark color"],
    ),
    "context word": (
        ["a brown bird on a bare branch in a forest", "a jeep parked at a muddy waterhole"],
        ["a brown bird with a forked rusty tail", "a jeep with four muddy wheels and doors"],
    ),
    "language": (
        ["ein Vogel mit langem Schnabel und rotem Kopf", "длинный красный хвост и крылья"],
        ["a café au lait body with a pâté tone", "a body the color of crème and lait, et al"],
    ),
    "unknown word": (
        ["a qwzrtplk with two broad brown wings", "a brown blorgnaxxu with a forked tail"],
        ["a weathered wing with brown freckles", "a cylindrical fuselage with a forked tail"],
    ),
    "repetition": (
        ["brown brown brown brown brown wings", "a tail, a tail, a tail, a tail"],
        ["a brown wing with a brown edge", "a long tail with a dark end"],
    ),
    "chatter": (
        ["Sure! Here is what you asked for:", "1. a brown bird with a forked tail"],
        ["a bird unsure of its long forked tail", "a brown bird with 2.5 dark bands"],
    ),
    "class name": (
        ["two brown kites with forked tails", "a brown bird of prey, its tail forked"],
        ["a brown bird with a forked tail", "a brown kitelet with a forked tail"],
    ),
    "synonym": (
        ["a brown chicken hawk with a forked tail", "a Milvus milvus with a long red tail"],
        ["a brown chicken with a forked tail", "a hawk with a long forked red tail"],
    ),
    "another class's name": (
        ["a body as of red foxes, tail forked", "a sleek sea lion with broad flippers"],
        ["a red body and a forked tail end", "a sleek lion of the sea, so to say"],
    ),
    "text twice": (
        ["a long forked red tail", "A long forked  red tail"],
        ["a long forked red tail", "two brown wings, broad and bent"],
    ),
    "near-duplicate": (
        ["a hooked beak over a pale streaked breast", "a hooked beak over a pale streaked breats"],
        ["a hooked beak over a pale streaked breast", "a curved bill above a whitish lined chest"],
    ),
}


def kinds_of(own, key="0"):
    clip = open_clip.get_tokenizer("ViT-B-32")
    return {problem.kind for problem in check_texts({key: own}, NAMES, clip, ALSO)}


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_kind_two_texts_are_reported_and_two_are_not(kind):
    bad, good = KINDS[kind]
    if kind in ("text twice", "near-duplicate"):  # it takes two
        assert kind in kinds_of(bad) and kind not in kinds_of(good)
    else:
        assert [kind in kinds_of([text]) for text in (*bad, *good)] == [True, True, False, False]


def test_a_last_word_that_several_classes_share_is_their_category_and_any_other_a_part_of_the_name():
    assert "part of a name" in kinds_of(["a sleek brown lion with two flippers"], "3")
    assert "part of a name" in kinds_of(["two tiny diks with pointed dark horns"], "4")
    assert "part of a name" in kinds_of(["a fox, slim and all gray, no stripe"], "1")
    assert "part of a name" not in kinds_of(["a slim fox with a dark stripe"], "1")
    assert "part of a name" not in kinds_of(["a sleek brown seal with two flippers"], "3")


def test_a_name_that_many_texts_hold_is_a_common_word():
    """ "orange" and "muzzle" are classes of ImageNet."""
    names = {"0": "orange"} | {str(i): f"beast {i}" for i in range(1, 20)}
    texts = {"0": ["a round fruit with a dimpled skin"]}
    clip = open_clip.get_tokenizer("ViT-B-32")
    for holders, reported in ((10, True), (11, False)):
        texts |= {str(i): [f"a beast of an orange hue and {i} spots"] for i in range(1, 1 + holders)}
        found = {p.kind for p in check_texts(texts, names, clip)}
        assert ("another class's name" in found) == reported


def test_near_duplicates_of_two_classes_are_named_once_each_and_equal_ones_elsewhere():
    first = "a hooked beak over a pale streaked breast"
    pairs = [("0", first), ("1", first), ("2", first.replace("pale", "pal"))]
    found = near_duplicates(pairs)
    assert [problem.key for problem in found] == ["0", "1"] and all("and 2's" in p.what for p in found)


PLANTED = {  # texts that an older check let pass; a wrong animal is what no check of form can see
    "thing": "short",
    "ein großer Vogel mit langem Schnabel": "language",
    "zxqv brrplt gnorfk wubble dwxx": "unknown word",
    "a jeep at a waterhole beside some zebras": "context word",
    "a strong smelling animal with dark fur": "sense",
    "a fox with no stripe on its tail": "negation",
    "two gray foxes with bushy tails": "class name",
    "a slim body and a tail as of a red fox": "another class's name",
}


@pytest.mark.parametrize("text", PLANTED)
def test_planted_bad_texts_passed_the_check(text):
    assert PLANTED[text] in kinds_of([text, "a slim animal with a dark stripe"], "1")


def test_strict_makes_what_is_to_look_at_stop_and_counts_come_by_kind(tmp_path, capsys):
    file = tmp_path / "d.json"
    file.write_text(
        json.dumps({"crane": ["a long gray neck, no crest", "a neck without any feathers"], "ski": "b"})
    )
    assert describe.main(["--check", str(file)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "0 faults" in last and "3 to look at (negation 2, short 1)" in last and "seen by you alone" in last
    assert describe.main(["--check", str(file), "--strict"]) == 1
    *rows, last = capsys.readouterr().out.splitlines()
    assert {row[0] for row in rows_of(rows)} == {"stop"} and "3 faults" in last and "0 to look at" in last


# Where two classes are one thing, they share their texts; and what the check reports that stays.
SHARED = {
    "iwildcam": ["3 148", "19 174", "153 181", "82 178", "13 89", "9 86"],
    "imagenet": ["n03642806 n03832673", "n04355933 n04356056"],
}
STAYS = {
    "imagenet": {
        "person": ["n10148035"],  # groom
        "part of a name": ["n02389026"],  # the only horse
    },
}


@pytest.mark.parametrize("name", ["cifar10", "waterbirds", "fmow", "iwildcam", "imagenet"])
def test_shipped_texts_are_short_distinct_and_clean(name):
    classes = json.loads((ROOT / f"descriptions/{name}.json").read_text(encoding="utf-8"))["classes"]
    clip = open_clip.get_tokenizer("ViT-B-32")
    per_class = 2 if name == "imagenet" else 3
    owners = {}
    for key, entry in classes.items():
        assert len(entry["descriptions"]) == per_class
        for text in entry["descriptions"]:
            assert len(clip.encode(text)) <= 20 and text.isascii(), text
            owners.setdefault(text.lower(), []).append(key)
    shared = {" ".join(keys) for keys in owners.values() if len(keys) > 1}
    assert shared == set(SHARED.get(name, ()))
    names = {key: entry["name"] for key, entry in classes.items()}
    found = check(f"descriptions/{name}.json", names, clip, other_names(name))
    found = {(p.kind, p.key) for p in found if p.kind not in ("equal texts", "equal names")}
    assert found == {(kind, key) for kind, keys in STAYS.get(name, {}).items() for key in keys}
