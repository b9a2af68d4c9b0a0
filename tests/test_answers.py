"""What a trained model answers: predictions.csv of an evaluation, and --predict on pictures of one's own."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from conftest import CLASSES, DRM, ROOT, noise, run

import drm_min
from support import images
from support.images import ImageFiles
from support.readers import tables
from support.weights import load_clip


def rows_in(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A run with several readings of two models, on files."""
    out = tmp_path_factory.mktemp("done")
    report = run(out, world, method=("zero-shot", "erm", "erm-mixed", "drm"), epochs=1, alpha=(0.5, 1.0))
    return out, report


def read_again(folder, files):
    """What both heads of a saved model say of files."""
    model, tokenizer = load_clip(f"local-dir:{folder}")
    texts = json.loads((folder / "drm.json").read_text())["prompts"]
    prompts = [drm_min.tokenize(tokenizer, texts[head].values()) for head in drm_min.Prompts._fields]
    split = drm_min.Split(ImageFiles(files), torch.zeros(len(files)))
    return drm_min.predict(model, split, drm_min.Prompts(*prompts))


def test_every_evaluated_model_leaves_its_predictions(done):
    out, report = done
    found = {str(path.relative_to(out)) for path in out.glob("*/predictions*.csv")}
    own = ["erm-seed-0", "erm-mixed-seed-0", DRM]
    files = {f"{name}/predictions{wise}.csv" for name in own for wise in ("", "-alpha-0.5")}
    assert found == files | {"zero-shot-seed-0/predictions.csv"}


def test_predictions_count_to_the_metrics_and_hold_what_each_head_says(done, world):
    out, report = done
    for row in report["results"]:
        if row["method"] == "zero-shot":
            continue
        name = f"{row['method']}{'-lambda-1-posterior' if row['method'] == 'drm' else ''}-seed-0"
        wise = "" if row["alpha"] == 1 else "-alpha-0.5"
        said = rows_in(out / name / f"predictions{wise}.csv")
        for domain, metrics in ({"val": row["validation"]} | row["domains"]).items():
            own = [line for line in said if line["domain"] == domain]
            right = [line["label"] == line["prediction"] for line in own]
            assert sum(right) / len(right) == pytest.approx(metrics["accuracy"]) and len(own) == metrics["n"]
    sketch = [line for line in said if line["domain"] == "sketch"]
    assert {line["image"] for line in sketch} == {str(p) for p in (world / "data/sketch").glob("*/*.png")}
    p_default, p_concept = read_again(out / DRM / "model", [line["image"] for line in sketch])
    for i, line in enumerate(sketch):
        assert CLASSES[p_default[i].argmax()] == line["default_head"]
        assert float(line["p_concept"]) == pytest.approx(p_concept[i].max().item(), rel=1e-5)
        mixed = (p_default[i] + p_concept[i]) / 2
        assert float(line["probability"]) == pytest.approx(mixed.max().item(), rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_zero_shot_predictions_were_of_a_head_where_beta_is_that_of_the_other(world, tmp_path, beta):
    report = run(tmp_path, world, method="zero-shot", beta=beta)
    head = {0.0: "concept_head", 1.0: "default_head"}.get(beta)
    said = rows_in(tmp_path / "zero-shot-seed-0/predictions.csv")
    assert head is None or all(line["prediction"] == line[head] for line in said)
    own = [line["prediction"] == line["label"] for line in said if line["domain"] == "sketch"]
    [row] = [row for row in report["results"] if row["beta"] == beta]
    assert sum(own) / len(own) == pytest.approx(row["domains"]["sketch"]["accuracy"])


def test_of_merged_classes_the_first_stands_for_its_label():
    split = drm_min.Split(None, torch.tensor([0]), label_of_class=torch.tensor([1, -1, 0, 1]))
    assert drm_min.answers.labels_of(split, dict.fromkeys("abcd")) == ["c", "a"]


def asked(out, model, *pictures):
    return drm_min.main(
        ["--predict", *map(str, pictures), "--model", f"local-dir:{model}", "--out", str(out)]
    )


def test_a_picture_is_answered_with_the_models_own_prompts(done, tmp_path, capsys):
    model = done[0] / DRM / "model"
    (tmp_path / "more/.hidden").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "more/b.jpg", "more/c.png", "more/.hidden/d.png")):
        noise(tmp_path / name, seed)
    (tmp_path / "more/notes.txt").write_text("no picture")
    assert asked(tmp_path / "out", model, tmp_path / "a.png", tmp_path / "more") == 0
    said = rows_in(tmp_path / "out/predictions.csv")
    assert [line["file"] for line in said] == [
        str(tmp_path / name) for name in ("a.png", "more/b.jpg", "more/c.png")
    ]
    p_default, p_concept = read_again(model, [line["file"] for line in said])
    mixed = drm_min.mix(p_default, p_concept, 0.5)
    for i, line in enumerate(said):
        for p, (name, value) in (
            (mixed, ("prediction", "probability")),
            (p_default, ("default_head", "p_default")),
            (p_concept, ("concept_head", "p_concept")),
        ):
            assert line[name] == CLASSES[p[i].argmax()]
            assert float(line[value]) == pytest.approx(p[i].max().item(), rel=1e-5)
    table = capsys.readouterr().out.splitlines()
    assert (
        table[0].startswith("| file ")
        and len(table) == 5
        and all(said[0][k] in table[2] for k in ("file", "prediction"))
    )


def test_a_picture_that_cannot_be_read_costs_no_answer_for_the_others(done, tmp_path, capfd):
    noise(tmp_path / "a.png", 0)
    (tmp_path / "b.png").write_text("no picture")
    assert asked(tmp_path / "out", done[0] / DRM / "model", tmp_path) == 0
    assert [line["file"] for line in rows_in(tmp_path / "out/predictions.csv")] == [str(tmp_path / "a.png")]
    assert "left out: " in capfd.readouterr().err


def test_photos_and_linked_folders_of_a_folder_were_dropped_without_a_word(
    done, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(tables, "HELP", {".heic": "pip install something"})
    monkeypatch.setattr(images, "EXTENSIONS", images.EXTENSIONS - {".heic"})
    for name in ("photos/a.png", "photos/deep/B.PNG", "far/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise(tmp_path / name, 0)
    (tmp_path / "photos/x.HEIC").touch()
    (tmp_path / "photos/notes.txt").touch()
    (tmp_path / "photos/link").symlink_to(tmp_path / "far")
    assert asked(tmp_path / "out", done[0] / DRM / "model", tmp_path / "photos") == 0
    said = [line["file"].rpartition("photos/")[2] for line in rows_in(tmp_path / "out/predictions.csv")]
    assert said == ["a.png", "deep/B.PNG", "link/c.png"]
    err = capfd.readouterr().err
    assert (
        "opened here: 1 .heic: pip install something\n" in err and "no images: " in err and "notes.txt" in err
    )


@pytest.mark.parametrize("kind", ["one file", "a folder"])
def test_pictures_of_which_none_can_be_read_were_a_traceback(done, tmp_path, capfd, kind):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        (photos / name).write_text("no picture")
    given, n = (photos / "a.png", 1) if kind == "one file" else (photos, 2)
    assert asked(tmp_path / "out", done[0] / DRM / "model", given) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"of {n} images none can be read: {photos / 'a.png'}: no image" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["nothing.png"], "nothing.png: not there"),
        (["."], "no pictures"),
        (["x.png", "--lam", "2"], "--predict --lam"),
        (["x.png", "--dataset", "folder"], "--predict --dataset"),
    ],
)
def test_predict_refuses_in_one_line(done, tmp_path, monkeypatch, capfd, words, said):
    monkeypatch.chdir(tmp_path)
    noise(tmp_path / "x.png", 0)
    (tmp_path / "x.png").rename(tmp_path / "x.png" if words[0] == "x.png" else tmp_path / "x.txt")
    model = ["--model", f"local-dir:{done[0] / DRM / 'model'}"]
    assert drm_min.main(["--predict", *words, *model]) == 2
    err = capfd.readouterr().err
    assert err.count("drm_min.py: ") == 1 and said in err and "Traceback" not in err
    assert drm_min.main(["--predict", "x.png", "--model", "ViT-B-32"]) == 2


def test_the_lines_of_your_data_that_need_open_clip_alone_say_the_same(done, tmp_path):
    model = done[0] / DRM / "model"
    noise(tmp_path / "a.png", 5, (32, 32))
    assert asked(tmp_path / "out", model, tmp_path / "a.png") == 0
    [said] = rows_in(tmp_path / "out/predictions.csv")
    code = (ROOT / "docs/your_data.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    words = [sys.executable, "-c", code, str(model), str(tmp_path / "a.png")]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert printed[0] == said["prediction"]
    assert float(printed[1]) == pytest.approx(float(said["probability"]), rel=1e-4)
