"""Files of classes and of descriptions: read, checked, compared; and the descriptions that are shipped."""

import importlib.resources
import json

import open_clip
import pytest
from conftest import (
    CSV,
    DRM,
    IDS,
    ROOT,
    argv,
    dumps,
    evaluation,
    iwildcam,
    load,
    own_folder,
    pictures,
    results,
    run,
    shipped,
    table,
)

import describe
import drm_min
from support import settings
from support.errors import BadInput
from support.texts import load_names_and_descriptions, prompts_of, read_classes, read_descriptions
from toy import world as toy_world

pytestmark = pytest.mark.usefixtures("one_tokenizer")


def rows_of(lines):
    """The rows of a Markdown table, less its heading."""
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines if line[0] == "|"][2:]


WNIDS = (importlib.resources.files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text().split()


# ---------------------------------------------------------------------------------------------- classes

FORM = {"classes": {k: {"name": v, "descriptions": ["x"]} for k, v in IDS.items()}}
SAME = {name: name for name in IDS.values()}
CONTENTS = {
    "lines": ("\n".join(SAME), SAME),
    "CRLF": ("\r\n\r\n".join(SAME) + "\r\n", SAME),
    "object": (dumps(IDS), IDS),
    "tabs": ("".join(f"{k}\t {v} \n" for k, v in IDS.items()), IDS),
    "list": (dumps([*SAME]), SAME),
    "descriptions": (dumps(FORM), IDS),
    "authors": (dumps({name: ["x", "y"] for name in SAME}), SAME),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", CONTENTS)
def test_classes_are_read_from(tmp_path, form, encoding):
    content, classes = CONTENTS[form]
    (tmp_path / "c").write_bytes(content.encode(encoding))
    assert list(read_classes(tmp_path / "c").items()) == list(classes.items())


@pytest.mark.parametrize(
    "content",
    [
        "crane\ncrane\nski",
        "0\ta\n0\tb\n1\tc",
        '["crane", "crane", "ski"]',
        '{"0": "a", "0": "b", "1": "c"}',
        "",
        "crane",
        "cr\xe4n\nski",
        '{"0":\n"crane",\n"1":',
        '{"classes":\n["crane",\n"ski"]}',
    ],
)
def test_classes_twice_or_none_or_half_a_file_are_refused(stub, capfd, content):
    (stub.folder / "c.txt").write_bytes(content.encode("latin-1"))
    assert stub.generate() == 2 and stub.requests == []
    err = capfd.readouterr().err
    assert err.startswith("describe.py: ") and err.count("\n") == 1 and "c.txt" in err


# -------------------------------------------------------------------------------------------- the check

LOOKS = {
    "0": ["long gray neck over thin stilts", "red cap and pale plumes"],
    "1": ["sleek brown body with broad flippers", "small ear flaps and long whiskers"],
    "2": ["tiny antelope with a long snout", "spiky horns between large ears"],
}
GOOD = {key: dict(name=name, descriptions=LOOKS[key]) for key, name in IDS.items()}
NOUNS = """
    plank board panel brick stone steel glass paper cotton leather silver golden copper wooden plastic
    rubber velvet silk marble clay sand ivory pearl crystal diamond ruby amber coral jade bronze iron
    metal wire chain rope string ribbon button zipper pocket sleeve collar fringe stripe dot circle
    square triangle cube cone tube ring disc wheel axle handle lever lock key knob pedal spring bolt
    nail screw hammer blade edge corner curve arch tower column beam roof wall floor door window frame
    step ladder bridge tunnel pipe tank barrel bucket basket bottle
""".split()  # a token each


def nouns(n):
    return " ".join(NOUNS[:n])


FIN = "a fin that is broad"
LONG = "broad flat paddle of pale wood whose edge is bound with dark leather strips and six round brass nails"
NEAR, LESS_NEAR = LONG.replace("brass", "iron"), LONG.replace("brass", "big").replace("dark", "red")
RAW = dumps(GOOD)
TWO_ONES = RAW.replace('"2": {', '"1": {"descriptions": ["two small pointed ear flaps"]}, "2": {')


def one(*own, key="1", file=GOOD, **entry):
    """A file, with other texts, or whatever else, for one class."""
    return file | {key: file[key] | (dict(descriptions=list(own)) if own else {}) | entry}


STOP = {  # what training cannot use -> (content, its kind, its class, words beside it)
    "missing": ({k: v for k, v in GOOD.items() if k != "2"}, "missing", "2", "dik-dik"),
    "extra": (
        GOOD | {"9": dict(name="ski", descriptions=["two long flat planks of wood"])},
        "extra",
        "9",
        "",
    ),
    "repeated key": (TWO_ONES, "repeated key", "1", "2 times"),
    "by key and by name": (GOOD | {"crane": ["a long pale plume behind"]}, "repeated key", "0", "2 times"),
    "too long": (one(nouns(90)), "too long", "1", "92 tokens"),
    "one token too long": (one(nouns(76)), "too long", "1", "78 tokens"),
    "utf-8-sig": (RAW.encode("utf-8-sig"), "encoding", "-", "byte-order mark"),
    "utf-16": (RAW.encode("utf-16"), "encoding", "-", "UTF-16"),
    "latin-1": (RAW.encode("latin-1"), "encoding", "-", "UTF-8"),
}
for bad in (RAW[:-9], "[" * 100000, "[1, 2]", '{"classes": 3}'):
    STOP[f"no JSON: {bad}"[:20]] = (bad, "JSON", "-", "")
for bad in ([], 7, ["a", 7], ["a", " "], {}):
    STOP[f"no texts: {bad}"] = (one(descriptions=bad), "no texts", "1", "allowed")
for bad in (7, " ", None):
    STOP[f"no name: {bad}"] = (one(name=bad), "name", "1", "allowed")
LOOK = {  # what it can use, to look at
    "equal names": (one(name="Crane "), "equal names", "1", "of 0"),
    "text of another class": (one("Long GRAY neck over thin stilts"), "equal texts", "1", "of 0"),
    "text twice in a class": (one(FIN, FIN), "text twice", "1", "a fin"),
    "text twice but for capitals": (one(FIN, FIN.replace("a fin", "A  fin")), "text twice", "1", "fin"),
    "class name": (one("two tall Cranes of steel", key="0"), "class name", "0", "crane"),
    "context word": (one("a shy shape in the Forest"), "context word", "1", "'forest'"),
    "long": (one(nouns(21)), "long", "1", "21 tokens"),
    "near-duplicate": (one(LONG, file=one(NEAR, key="2")), "near-duplicate", "1", "and 2"),
}
FINE = {
    "none": GOOD,
    "just not long": one(nouns(20)),
    "class name in a word": one("a supercrane beak, long and gray", key="0"),
    "two words of 15 differ": one(LONG, file=one(LESS_NEAR, key="2")),
}
PLANTED = {fault: (1, *rest) for fault, rest in STOP.items()}
PLANTED |= {fault: (0, *rest) for fault, rest in LOOK.items()}
PLANTED |= {fault: (0, content, "", "", "") for fault, content in FINE.items()}


@pytest.mark.parametrize("fault", PLANTED)
def test_check_finds(tmp_path, capsys, fault):
    code, content, kind, key, words = PLANTED[fault]
    content = dumps(dict(about={}, classes=content)) if isinstance(content, dict) else content
    (tmp_path / "d.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "c.json").write_text(json.dumps(IDS))
    assert describe.main(["--check", str(tmp_path / "d.json"), "--classes", str(tmp_path / "c.json")]) == code
    *rows, last = capsys.readouterr().out.splitlines()
    found = rows_of(rows)
    expected = {("stop" if code else "look", kind)} if kind else set()
    assert {(mark, of_kind) for mark, of_kind, _, _ in found} == expected, found
    assert not kind or any(of == key and words in what for _, _, of, what in found), found
    assert f": {len(found) * code} faults that" in last
    assert f", {len(found) * (1 - code)} to look at" in last


@pytest.mark.parametrize(
    "content",
    [
        "big_cat\nsea_lion\n",
        "big_cat\tbig_cat\nsea_lion\n",
        '["big_cat", "sea_lion"]',
        '{"big_cat": "big_cat", "sea_lion": []}',
    ],
)
def test_names_of_folders_were_said_with_underscores(tmp_path, content):
    """As `ls train` lists them; the key is the folder's name, and training says it with blanks."""
    (tmp_path / "classes.txt").write_text(content)
    assert read_classes(tmp_path / "classes.txt") == {"big_cat": "big cat", "sea_lion": "sea lion"}


@pytest.mark.parametrize("fault", PLANTED)
def test_training_stops_for_what_the_check_stops_for_and_for_nothing_else(tmp_path, clip, fault):
    code, content, kind, *_ = PLANTED[fault]
    content = dumps(dict(about={}, classes=content)) if isinstance(content, dict) else content
    (tmp_path / "d.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    clip_tokenizer = open_clip.get_tokenizer("ViT-B-32")
    try:
        _, texts = load_names_and_descriptions(tmp_path / "d.json", IDS)
        drm_min.tokenize(clip_tokenizer, texts)
        stopped = 0
    except BadInput as e:
        stopped = 1
        assert kind in str(e) or kind in ("JSON", "encoding", "too long")
    assert stopped == code


def test_check_counted_77_tokens_whatever_model_reads_the_file(tmp_path, capsys, clip):
    texts = {key: entry["descriptions"] for key, entry in shipped("toy").items()}
    long = texts["tent"][0] = nouns(36)
    used = f"36 tokens, 20 are used: {long[:40]!r}"  # of CLIP's 77
    file, of_toy = tmp_path / "own.json", tmp_path / "toy.own.json"
    for path in (file, of_toy):
        path.write_text(dumps(texts))

    def check(*words):
        code = describe.main(["--check", *map(str, words)])
        return code, [what for _, kind, _, what in rows_of(capsys.readouterr().out.splitlines())]

    too_long = 1, [f"38 tokens, 32 fit: {long[:40]!r}"]
    assert check(file, "--dataset", "toy") == too_long
    assert check(of_toy) == too_long  # its name says for which data
    assert check(file, "--model", "local-dir:toy/clip") == too_long
    assert check(file, "--dataset", "toy", "--model", "ViT-B-32") == (0, [used])
    assert check(file) == (0, [used])  # CLIP's
    with pytest.raises(BadInput, match="38 tokens.*32 at most"):
        drm_min.tokenize(clip[1], [[long]])


@pytest.mark.parametrize("model", ["ViT-Z-99", "local-dir:nowhere", "local-dir:toy", "https://x"])
def test_check_took_clips_tokenizer_for_a_model_that_is_none(model, capsys):
    assert describe.main(["--check", "descriptions/toy.json", "--model", model]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("describe.py: --model ") and model.split(":")[-1] in err


COLORS = "red blue green black white brown pink gray gold orange purple".split()
LOOKS_OF = [
    f"{color} {first} with {second} {third}"
    for color, first, second, third in zip(COLORS, NOUNS, NOUNS[20:], NOUNS[40:])
]


def own_csv(root):
    pictures(root, *(f"{name}.png" for name in "abcdef"))
    table(root / "own.csv", "path,label,split,domain", *CSV)


MAKE = {"folder": own_folder, "csv": own_csv, "iwildcam": iwildcam}


@pytest.mark.parametrize("dataset", MAKE)
def test_equal_class_names_stopped_the_check_and_some_trainings_but_not_others(
    dataset, world, tmp_path, capfd
):
    MAKE[dataset](tmp_path)
    root = tmp_path / "own.csv" if dataset == "csv" else tmp_path
    classes = load(dataset, root).classes
    names = dict(zip(classes, ("crane", "Crane ", *classes.values())))
    entries = {
        key: dict(name=name, descriptions=[LOOKS_OF[i]]) for i, (key, name) in enumerate(names.items())
    }
    (tmp_path / "d.json").write_text(json.dumps(dict(classes=entries)))
    (tmp_path / "c.json").write_text(json.dumps(names))
    capfd.readouterr()
    own = dict(dataset=dataset, data_root=str(root), descriptions=str(tmp_path / "d.json"))
    out = tmp_path / "out"
    assert drm_min.main(argv(out, world, **own, method=("erm", "drm"), epochs=1, batch_size=2)) == 0
    [line] = [line for line in capfd.readouterr().err.splitlines() if "one default prompt" in line]
    first, second = list(classes)[:2]
    assert line.startswith(f"{first!r} and {second!r} have one default prompt, 'a drawing of a Crane.': ")
    assert [row["method"] for row in results(out)["results"]] == ["erm", "drm"]
    assert describe.main(["--check", own["descriptions"], "--classes", str(tmp_path / "c.json")]) == 0
    found = rows_of(capfd.readouterr().out.splitlines())
    assert found == [["look", "equal names", second, f"also of {first}: 'Crane'"]]


def test_check_took_names_that_differ_in_underscores_alone_for_different_ones(tmp_path, capsys):
    """Training says blanks for them, in the form of the authors' release."""
    texts = {"hot_tub": "round white basin full of steam", "Hot tub": "wide hot tub of wood"}
    texts["ski"] = "two long planks, bent up in front"
    (tmp_path / "d.json").write_text(json.dumps(texts))
    assert describe.main(["--check", str(tmp_path / "d.json")]) == 0
    found = rows_of(capsys.readouterr().out.splitlines())
    class_name = ["look", "class name", "Hot tub", "'hot tub' in 'wide hot tub of wood'"]
    assert sorted(found) == [class_name, ["look", "equal names", "Hot tub", "also of hot_tub: 'Hot tub'"]]


# --------------------------------------------------------- the authors' six files, in their shapes and faults

LOOK = "long-necked animal of kind {}, with a tail"


def classes_of(dataset):
    """What the data set itself calls its classes."""
    if dataset == "imagenet":
        return dict(zip(WNIDS, open_clip.IMAGENET_CLASSNAMES))
    return {key: entry["name"] for key, entry in shipped(dataset).items()}


def prompts_from(content, dataset, tmp_path, capfd, **more):
    """-> (concept prompts of a run with a file of this content, what is said of it)."""
    (tmp_path / "d.json").write_text(dumps(content), encoding="utf-8")
    config = drm_min.Config(dataset=dataset, descriptions=str(tmp_path / "d.json"), **more)
    capfd.readouterr()
    concept = prompts_of(config, classes_of(dataset))["concept"]
    said = [line for line in capfd.readouterr().err.splitlines() if "d.json: " in line]
    assert len(said) <= 1
    return concept, "".join(said)


def of_imagenet(**renamed):
    """{name: text} of every class, as both files of ImageNet are."""
    names = classes_of("imagenet") | renamed
    return {name: LOOK.format(i) for i, name in enumerate(names.values())}


MISSILE, PROJECTILE, SUNGLASS, SUNGLASSES = "n03773504", "n04008634", "n04355933", "n04356056"


def test_imagenet_files_are_keyed_by_names_of_which_two_mean_two_classes(tmp_path, capfd):
    own = of_imagenet(**{PROJECTILE: "projectile", SUNGLASS: "sunglass"})
    concept, said = prompts_from(own, "imagenet", tmp_path, capfd)
    texts = {key: text for key, [text] in concept.items()}
    assert texts[PROJECTILE] == own["projectile"] and texts[MISSILE] == own["missile"]
    assert texts[SUNGLASS] == own["sunglass"] and texts[SUNGLASSES] == own["sunglasses"]
    assert len(set(texts.values())) == 1000
    assert f"mended key: '{PROJECTILE}', '{SUNGLASS}' ('projectile' in the file)" in said


def test_a_name_of_two_classes_gives_its_text_to_both_and_says_so(tmp_path, capfd):
    own = of_imagenet()  # one "missile" and one "sunglasses", as in open_clip's list
    assert len(own) == 998
    concept, said = prompts_from(own, "imagenet", tmp_path, capfd)
    assert concept[PROJECTILE] == concept[MISSILE] == [own["missile"]]
    assert concept[SUNGLASS] == concept[SUNGLASSES] == [own["sunglasses"]]
    assert f"shared key: '{PROJECTILE}', '{SUNGLASSES}' ('missile' also means {MISSILE})" in said
    assert "equal texts: " in said


def test_five_pairs_of_classes_with_one_text_were_refused(tmp_path, capfd):
    own = {key: LOOK.format(i // 2 if i < 10 else i) for i, key in enumerate(WNIDS)}
    concept, said = prompts_from(own, "imagenet", tmp_path, capfd)
    assert (
        concept[WNIDS[0]] == concept[WNIDS[1]] != concept[WNIDS[2]] and concept[WNIDS[8]] == concept[WNIDS[9]]
    )
    first = ", ".join(repr(key) for key in WNIDS[1:10:2])
    assert f"equal texts: {first} (also of {WNIDS[0]}: {LOOK.format(0)!r})" in said
    (tmp_path / "d.imagenet.json").write_text(dumps(own))
    checked = describe.check(tmp_path / "d.imagenet.json", classes_of("imagenet"))
    assert sum(p.kind == "equal texts" for p in checked) == 5 and not any(p.stops for p in checked)


def test_iwildcam_file_is_keyed_by_capitalised_scientific_names_one_with_a_stray_digit(tmp_path, capfd):
    own, latin = {}, {key: e.get("scientific_name", e["name"]) for key, e in shipped("iwildcam").items()}
    assert list(latin.values()).count("mazama temama") == 2  # one key for two labels
    for i, name in enumerate(latin.values()):
        own.setdefault(name.capitalize(), LOOK.format(i // 2 if i < 22 else i))  # 11 groups share a text
    own["Canis lupus1"] = own.pop("Canis lupus")
    concept, said = prompts_from(own, "iwildcam", tmp_path, capfd, concept_template="{text}")
    assert len(own) == 181 and len(concept) == 182
    assert concept["26"] == [own["Canis lupus1"]] and concept["153"] == concept["181"] == [
        own["Mazama temama"]
    ]
    assert concept["0"] == concept["1"] and concept["20"] == concept["21"] != concept["22"]
    assert "mended key: '0', '1', '2', '3', '4' and 176 more ('Empty' in the file)" in said
    assert "shared key: '181' ('Mazama temama' also means 153)" in said and "equal texts: '1', '3', " in said


def test_iwildcam_default_prompts_are_english_whatever_file_is_given(tmp_path):
    base = tmp_path / "iwildcam_v2.0"
    table(
        base / "categories.csv", "y,name", "0,empty", "1,Tayassu pecari", "2,genus unheard", "99999,elephas"
    )
    table(base / "metadata.csv", "split,filename,y", *(f"{s},{y}.jpg,{y}" for s in SPLITS for y in "012"))
    pictures(base / "train", "0.jpg", "1.jpg", "2.jpg")
    assert load("iwildcam", tmp_path).classes == {
        "0": "empty",
        "1": "white-lipped peccary",
        "2": "genus unheard",
    }


SPLITS = ("train", "id_val", "id_test", "test")


@pytest.mark.parametrize("dataset, n", [("iwildcam", 1), ("fmow", 6)])
def test_files_that_are_keyed_as_the_data_are_need_no_mending(dataset, n, tmp_path, capfd):
    keys = list(classes_of(dataset))
    own = {key: [LOOK.format(f"{i}.{j}") for j in range(n)] for i, key in enumerate(keys)}
    own = {key: texts[0] for key, texts in own.items()} if n == 1 else own
    concept, said = prompts_from(own, dataset, tmp_path, capfd, concept_template="{text}")
    assert said == "" and list(concept) == keys and len(concept[keys[0]]) == n


@pytest.mark.parametrize("name", ["projectile1", "2 projectile", "PROJECTILE", "projec_tile"])
def test_what_may_be_mended_and_what_may_not(tmp_path, name):
    (tmp_path / "d.json").write_text(dumps({name: "a long tube of steel", "n2": "a ball"}))
    read = read_descriptions(tmp_path / "d.json", {"n1": "projectile", "n2": "ball"})
    stops = [p.kind for p in read.problems if p.stops]
    assert stops == (["missing", "extra"] if name == "projec_tile" else [])
    assert name == "projec_tile" or [(p.kind, p.key) for p in read.problems] == [("mended key", "n1")]


def test_a_name_written_with_other_signs_of_unicode_was_another_name(tmp_path):
    """As a file system may write it: é as e and an accent."""
    path = tmp_path / "d.json"
    path.write_text(dumps({"cafe\u0301": "a cup", "no\u00a0ﬁsh": "a wing"}), encoding="utf-8")
    read = read_descriptions(path, {"1": "caf\u00e9", "no fish": "no fish"})
    assert read.texts == {"1": ["a cup"], "no fish": ["a wing"]} and not any(p.stops for p in read.problems)


def test_two_classes_that_are_called_by_each_others_names_were_one_key_twice(tmp_path):
    path, also = tmp_path / "d.json", {"1": ("cougar",), "2": ("puma",)}
    path.write_text(dumps({"puma": "a paw", "cougar": "a tail"}), encoding="utf-8")
    read = read_descriptions(path, {"1": "puma", "2": "cougar"}, also)
    assert read.texts == {"1": ["a paw"], "2": ["a tail"]} and read.problems == []


# ------------------------------------------------------------------------------------ the concept template


@pytest.mark.parametrize(
    "template, said",
    [("{text}", "what"), ("{name}, {text}", "cat, what"), ("{text} ({name})", "what a cat (cat)")],
)
def test_a_concept_template_makes_the_prompts_and_is_in_drm_json(template, said, world, tmp_path):
    report = run(tmp_path, world, epochs=1, concept_template=template)
    about = json.loads((tmp_path / DRM / "model" / "drm.json").read_text(encoding="utf-8"))
    assert about["concept_template"] == report["about"]["concept_template"] == template
    assert about["prompts"]["concept"]["cat"][1].startswith(said)
    again = drm_min.run(evaluation(world, tmp_path / DRM / "model"))
    assert again["results"][0]["domains"] == report["results"][-1]["domains"]


def test_the_concept_template_of_a_data_set_is_in_its_recipe():
    assert {name for name, r in settings.RECIPES.items() if r["concept_template"] != "{text}"} == {"iwildcam"}
    assert drm_min.Config(dataset="iwildcam", data_root=".").concept_template == "{name}, {text}"
    assert (
        drm_min.Config(dataset="iwildcam", data_root=".", concept_template="{text}").concept_template
        == "{text}"
    )


@pytest.mark.parametrize("template", ["{name}", "a text", "{text} {text}", "{name} {name} {text}", ""])
def test_a_concept_template_without_its_places_is_refused(template):
    with pytest.raises(BadInput, match="--concept-template"):
        drm_min.Config(concept_template=template)


# ------------------------------------------------------------------------------- those that are shipped

FMOW = """airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn
border_checkpoint burial_site car_dealership construction_site crop_field dam debris_or_rubble
educational_institution electric_substation factory_or_powerplant fire_station flooded_road fountain
gas_station golf_course ground_transportation_station helipad hospital impoverished_settlement interchange
lake_or_pond lighthouse military_facility multi-unit_residential nuclear_powerplant office_building
oil_or_gas_facility park parking_lot_or_garage place_of_worship police_station port prison race_track
railway_bridge recreational_facility road_bridge runway shipyard shopping_mall single-unit_residential
smokestack solar_farm space_facility stadium storage_tank surface_mine swimming_pool toll_booth tower
tunnel_opening waste_disposal water_treatment_facility wind_farm zoo""".split()
SHIPPED = {
    "toy": list(toy_world.OBJECTS),
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "waterbirds": ["landbird", "waterbird"],
    "fmow": FMOW,
    "iwildcam": [str(y) for y in range(182)],
    "imagenet": WNIDS,
}
SIZES = dict(toy=8, cifar10=10, waterbirds=2, fmow=62, iwildcam=182, imagenet=1000)
SIZES |= {"toy.context": 8, "toy.shuffled": 8}


@pytest.mark.parametrize("name, n", SIZES.items())
def test_shipped_descriptions_are_whole_and_pass_the_check(name, n, capsys):
    path, keys = f"descriptions/{name}.json", SHIPPED[name.split(".")[0]]
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    content = json.loads((ROOT / path).read_text(encoding="utf-8"))
    names, of_class = load_names_and_descriptions(path, {key: key for key in keys})
    flat = [" ".join(text.lower().split()) for own in of_class for text in own]
    assert list(content["classes"]) == keys and len(names) == n and min(map(len, of_class)) >= 2
    assert max(len(tokenizer.encode(text)) for text in flat) <= 20
    source = content["about"]["source"]
    assert "written by a language model" in source and "not the authors'" in source
    assert describe.main(["--check", path]) == 0
    out = capsys.readouterr().out
    assert f"{path}: 0 faults" in out and "classes not compared" not in out


# -------------------------------------------------------------------------------------------- compared


def compared(a, b):
    """{what: its value in each file}."""
    return {what: values for what, *values in rows_of(describe.compare(a, b))}


def test_compare_gives_the_table_made_by_hand(tmp_path):
    (tmp_path / "a").write_text('{"x": "red round ball", "y": ["blue square", "green tall box"]}')
    square = {"name": "square", "descriptions": "blue square in the forest"}
    classes = {"y": square, "x": {"descriptions": ["red flat plate"]}}
    (tmp_path / "b").write_text(dumps({"classes": classes}))
    assert compared(tmp_path / "a", tmp_path / "b") == {
        "classes": ["2", "2"],
        "texts": ["3", "2"],
        "words a text": ["2.67", "4"],
        "tokens a text": ["4.67", "6"],  # start and end of a text are tokens too
        "longest, in tokens": ["5", "7"],
        "context words": ["0", "1"],
        "class names in texts": ["0", "1"],
        # x: 1 of 5, y: 2 of 6, as "in" and "the" do not count
        "words shared by both, of a class": ["0.267", "0.267"],
    }
    # other classes: no words of a class to share
    (tmp_path / "b").write_text('{"x": "red ball", "z": "blue box"}')
    assert [*compared(tmp_path / "a", tmp_path / "b")][-1] == "class names in texts"


def test_core_texts_hear_the_thing_and_context_texts_the_place(capsys):
    rows = compared("descriptions/toy.json", "descriptions/toy.context.json")
    core_thing, context_thing = map(float, rows["toy: change of affinity, foreground swapped"])
    core_place, context_place = map(float, rows["toy: change of affinity, background swapped"])
    assert core_thing > core_place and context_place > core_place and core_thing > context_thing
    assert describe.main(["--compare", "descriptions/toy.json", "none.json"]) == 2
    assert "none.json" in capsys.readouterr().err
