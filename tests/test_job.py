"""The main job, run as a reader runs it."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import DRM, ROOT, argv, results

import drm_min
from support import images, report
from support.report import row_name


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The default job, in another folder than the repository's: (folder, finished process)."""
    folder = tmp_path_factory.mktemp("job")
    command = [sys.executable, ROOT / "drm_min.py", "--dataset", "toy", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "toy", done


def test_default_job_shows_what_the_readme_says(job):
    rows = {row_name(row): row["summary"] for row in results(job[0])["results"]}
    domains = {row_name(row): row["domains"] for row in results(job[0])["results"]}
    zero_shot = ["zero-shot, default head", "zero-shot, concept head", "zero-shot, both mixed"]
    assert list(rows) == [*zero_shot, "ERM", "ERM + zero-shot concept head", "WRM", "DRM, lambda 1"]
    drm, erm, wrm = rows["DRM, lambda 1"], rows["ERM"], rows["WRM"]
    rival = rows["ERM + zero-shot concept head"]  # of two models; as good on average, which README says
    assert abs(drm["ood_mean_accuracy"] - rival["ood_mean_accuracy"]) < 0.01
    others = [row for row in rows.values() if row is not drm and row is not rival]
    assert drm["ood_mean_accuracy"] > max(row["ood_mean_accuracy"] for row in others)
    assert drm["worst_log_loss"] < min(row["worst_log_loss"] for row in others)
    assert erm["id_accuracy"] > 0.1 + max(rows[name]["id_accuracy"] for name in zero_shot)
    assert drm["id_accuracy"] > erm["id_accuracy"] - 0.015
    fine_tuned = ("ERM", "DRM, lambda 1", "WRM")
    assert max(fine_tuned, key=lambda m: domains[m]["object hidden"]["accuracy"]) == "ERM"
    assert max(fine_tuned, key=lambda m: domains[m]["place misleads"]["accuracy"]) == "WRM"
    assert wrm["id_accuracy"] == min(rows[m]["id_accuracy"] for m in fine_tuned)


def test_job_prints_a_row_a_method_and_a_bar(job):
    table = [line for line in job[1].stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7 + 1 and "100%" in job[1].stderr and "Traceback" not in job[1].stderr
    assert len({len(line) for line in table}) == 1
    assert job[1].stderr.count("arning") == 0


def test_results_have_their_schema(job):
    config, about, rows = (results(job[0])[part] for part in ("config", "about", "results"))
    assert config["epochs"] > 0 and config["lr"] > 0 and config["descriptions"] == "descriptions/toy.json"
    assert {"torch", "open_clip", "model", "pretrained", "descriptions", "prompts_sha256"} <= set(about)
    assert (about["device"], about["precision"]) == ("cpu", "fp32")
    assert len(about["prompts_sha256"]) == 64
    for row in rows:
        assert {"method", "seed", "lam", "estimator", "beta", "alpha"} <= set(row)
        assert {"domains", "summary", "validation"} <= set(row)
        assert list(row["domains"]) == ["same site", "object hidden", "place random", "place misleads"]
        for m in row["domains"].values():
            assert m["n"] == 2000 and 0 <= m["accuracy"] <= 1 and m["log_loss"] > 0
            assert m["n_visible"] + m["n_hidden"] == 2000
            both = m["accuracy_visible"] * m["n_visible"] + m["accuracy_hidden"] * m["n_hidden"]
            assert both / 2000 == pytest.approx(m["accuracy"])
        ood = [row["domains"][d]["accuracy"] for d in ("object hidden", "place random", "place misleads")]
        assert row["summary"] == {
            "id_accuracy": row["domains"]["same site"]["accuracy"],
            "ood_mean_accuracy": pytest.approx(sum(ood) / 3),
            "ood_worst_accuracy": min(ood),
            "worst_log_loss": max(m["log_loss"] for m in row["domains"].values()),
        }
    lams = {row_name(row): (row["lam"], row["beta"]) for row in rows}
    assert lams["ERM"] == (0, 1) and lams["WRM"] == (None, 0) and lams["DRM, lambda 1"] == (1, 0.5)


def test_picture_is_written_and_no_temporary_file_stays(job):
    assert (job[0] / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert not [f for f in job[0].rglob("*") if f.suffix in (".tmp", ".old")]
    written = {"results.json", "tradeoff.png", DRM}
    assert written <= {f.name for f in job[0].iterdir()}


def without_times(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report["results"]]


@pytest.mark.slow
def test_same_seed_same_results(short, capsys):
    methods = ["--method", "zero-shot", "erm", "drm", "dual", "flyp"]
    one, two = (short(*methods, "--sweep", "3", "--alpha", "0.5", "1", "--seed", "3") for _ in range(2))
    assert without_times(one) == without_times(two) and one["about"] == two["about"]
    drawn, again = (drm_min.load_data(drm_min.Config(), seed=3).train for _ in range(2))
    assert torch.equal(drawn.images, again.images) and torch.equal(drawn.labels, again.labels)
    rows = one["results"]
    assert len(rows) == 3 + 2 * 5 and {row["seed"] for row in rows} == {3}
    drm = [(row["lam"], row["beta"], row["alpha"]) for row in rows if row["method"] == "drm"]
    assert drm == [(1, 0.5, 0.5), (1, 0.5, 1), (3, 0.25, 0.5), (3, 0.25, 1)]
    assert len({row["summary"]["ood_mean_accuracy"] for row in rows}) > 8
    assert "WiSE-FT 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "methods", [["zero-shot"], ["dual"], ["flyp"], ["wrm"], ["erm", "wrm"], ["erm-mixed"], ["ensemble"]]
)
def test_any_choice_of_methods_makes_a_table_and_a_picture(short, methods, capsys):
    rows = short("--method", *methods)["results"]  # it looks at the picture
    assert [row["method"] for row in rows] == (["zero-shot"] * 3 if methods == ["zero-shot"] else methods)
    assert capsys.readouterr().out.count("\n| ") >= len(rows)


def test_a_run_that_diverges_ends_in_one_line_and_keeps_the_old_results(tmp_path, capsys):
    (tmp_path / "results.json").write_text("old")
    short = ["--epochs", "1", "--batch-size", "500", "--device", "cpu", "--out", str(tmp_path)]
    assert drm_min.main([*short, "--method", "erm", "--lr", "1e9", "--overwrite"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("drm_min.py:")]
    assert "--lr 1000000000.0" in line and (tmp_path / "results.json").read_text() == "old"


def test_a_stop_outside_training_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def stopped(config, out):
        raise KeyboardInterrupt

    monkeypatch.setattr(drm_min, "run", stopped)
    assert drm_min.main(["--out", str(tmp_path)]) == 130 and "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--save-every", "-1"], ["--predict", "a.png"], ["--eval-only"]])
def test_a_stop_where_nothing_is_kept_said_that_resume_goes_on(monkeypatch, tmp_path, capsys, words):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(drm_min, "run", stopped)
    monkeypatch.setattr(drm_min, "answer", stopped)
    words = words if "-1" in words else [*words, "--model", "local-dir:toy/clip"]
    assert drm_min.main(["--out", str(tmp_path), *words]) == 130
    assert capsys.readouterr().err == "drm_min.py: stopped; nothing is kept to go on from\n"


def test_the_work_ahead_left_out_the_last_batches_of_flyp(world, tmp_path, capfd):
    words = argv(tmp_path, world, method=("erm", "flyp"), batch_size=5, save_every=-1)
    assert drm_min.main(words) == 0
    err = capfd.readouterr().err
    assert "to train: 1 x 4 steps and 1 x 6 steps\n" in err
    assert re.search("flyp-seed-0: 100%.* 6/6 ", err)


def test_drm_and_wrm_are_trained_with_each_estimator_in_folders_of_their_own_and_rows_tell_them_apart(
    world, tmp_path, capfd
):
    more = dict(method=("drm", "erm", "wrm", "dual"), core_targets=("softmax", "label"), sweep=(3.0,))
    assert drm_min.main(argv(tmp_path, world, epochs=1, **more)) == 0
    drm = [f"drm-lambda-{lam}-{estimator}" for estimator in ("softmax", "label") for lam in (1, 3)]
    trainings = [*drm, "erm", "wrm-softmax", "wrm-label", "dual-lambda-1"]
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {f"{name}-seed-0" for name in trainings}
    out, err = capfd.readouterr()
    assert re.findall(r"^(\S+)-seed-0: 100%", err.replace("\r", "\n"), re.M) == trainings
    lines = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    drm = [f"DRM, lambda {lam}, {estimator}" for estimator in ("softmax", "label") for lam in (1, 3)]
    assert lines[2:] == [*drm, "ERM", "WRM, softmax", "WRM, label", "dual one-hot, lambda 1"]
    rows = results(tmp_path)["results"]
    both = ["softmax", "softmax", "label", "label"]
    assert [row["estimator"] for row in rows] == [*both, None, "softmax", "label", "onehot"]
    for row, training in zip(rows, trainings):
        saved = json.loads((tmp_path / f"{training}-seed-0" / "model" / "drm.json").read_text())
        assert saved["estimator"] == saved["recipe"]["core_targets"] == row["estimator"]
        assert (row["core_targets"] or {"estimator": None})["estimator"] == row["estimator"]
    assert len({row["summary"]["worst_log_loss"] for row in rows}) == len(rows)


def test_with_one_estimator_no_row_says_which(world, tmp_path, capfd):
    assert drm_min.main(argv(tmp_path, world, epochs=1, core_targets=("label", "label"))) == 0
    assert "| DRM, lambda 1 " in capfd.readouterr().out
    assert (tmp_path / "drm-lambda-1-label-seed-0" / "model").is_dir()


# ----------------------------------------------------------------------- what a reader was not told, or lost


@pytest.mark.parametrize("wrong", [0, 12, 40, 60, 100])
def test_a_concept_head_at_chance_was_logged_and_not_flagged(capsys, wrong):
    """Of four classes, a hundred images: two standard deviations above chance are 34 right ones."""
    labels = torch.arange(100) % 4
    said = (labels + (torch.arange(100) < wrong)) % 4
    for name in ("default", "concept"):
        report.say_accuracy(name, torch.eye(4)[said], torch.eye(4), labels)
    err = capsys.readouterr().err
    assert ("warning: the concept head" in err) == (100 - wrong < 34) and "the default head is" not in err


@pytest.mark.parametrize("texts, warned", [("toy.json", False), ("toy.shuffled.json", True)])
def test_a_look_at_zero_shot_alone_did_not_say_how_good_the_descriptions_are(tmp_path, capsys, texts, warned):
    drm_min.main(["--method", "zero-shot", "--descriptions", f"descriptions/{texts}", "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert re.search(r"zero-shot concept head: [\d.]+ % right on 1000 validation images", err)
    assert ("no better than chance" in err) == warned


def test_the_kept_epoch_was_not_named(world, tmp_path, capfd):
    assert drm_min.main(argv(tmp_path, world, method=("erm", "drm"), select="best", epochs=3)) == 0
    err = capfd.readouterr().err.replace("\r", "\n")
    for training in ("erm-seed-0", DRM):
        scores = [
            (float(s), -int(e)) for e, s in re.findall(rf"{training}: epoch (\d), validation ([\d.]+)", err)
        ]
        best, epoch = max(scores)
        assert re.findall(rf"{training}: kept (.*)", err) == [f"epoch {-epoch}, validation {best:.4f}"]


@pytest.mark.parametrize("silent", [0, 60])
def test_encoding_was_silent_however_long_it_took(world, tmp_path, capfd, monkeypatch, silent):
    monkeypatch.setattr(images, "SILENT", silent)
    assert drm_min.main(argv(tmp_path, world, method="zero-shot")) == 0
    assert ("encoding: " in capfd.readouterr().err) == (silent == 0)


def test_a_run_can_keep_its_results_alone(world, tmp_path, capfd):
    kept, not_kept = tmp_path / "kept", tmp_path / "not"
    for out, every in ((kept, 0), (not_kept, -1)):
        assert drm_min.main(argv(out, world, method=("erm", "drm"), save_every=every)) == 0
    left = {str(p.relative_to(not_kept)) for p in not_kept.rglob("*") if p.is_file()}
    predictions = {f"{training}/predictions.csv" for training in ("erm-seed-0", DRM)}
    assert left == {"results.json", "tradeoff.png", *predictions}
    assert without_times(results(kept)) == without_times(results(not_kept))


def test_device_precision_and_the_steps_to_come_were_not_said_and_the_bar_had_no_loss(world, tmp_path, capfd):
    assert drm_min.main(argv(tmp_path, world, method=("erm", "drm"))) == 0
    out, err = capfd.readouterr()
    read, domains, ahead = err.splitlines()[:3]
    assert read.startswith("folder: 3 classes (cat, dog, owl); images: train 12, val 6, sketch 6")
    assert domains == "in distribution: val; shifted: sketch"
    assert ahead == "device cpu, precision fp32; to train: 2 x 4 steps"
    for training in ("erm-seed-0", DRM):
        bar = re.findall(rf"{training}: 100%.* 4/4 .*", err)[-1]
        assert re.search(r"loss \d+\.\d{3}, lr \d\.\de[-+]\d\d, \d+ images/s", bar), bar
    assert out.startswith("| accuracy") and "device cpu" not in out


@pytest.mark.parametrize("fault", ["a backend that is not there", "no matplotlib"])
def test_a_picture_cost_the_ending_of_a_run(world, tmp_path, fault):
    """The table and every file but the pictures are there, and one line says why these are not."""
    hidden, out = fault == "no matplotlib", tmp_path / "out"
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")")
    env = os.environ | ({"PYTHONPATH": str(tmp_path)} if hidden else {"MPLBACKEND": "nonsense"})
    command = [sys.executable, ROOT / "drm_min.py", *argv(out, world, method="erm")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("no ")]
    assert len(said) == 1 and said[0].startswith("no tradeoff.png, history.png: "), done.stderr
    assert ("matplotlib" if hidden else "nonsense") in said[0]
    assert "\n| ERM " in done.stdout and done.stdout.splitlines()[-1] == f"written: {out}/results.json"
    assert len(results(out)["results"]) == 1 and not [*out.glob("*.png*")]


def test_results_lacked_the_precision_and_were_lost_with_a_picture(world, tmp_path, capfd, monkeypatch):
    def plot(*_):
        raise OSError("no fonts")

    monkeypatch.setattr(report, "plot_tradeoff", plot)
    assert drm_min.main(argv(tmp_path, world, method="erm", epochs=1, precision="bf16")) == 0
    written = results(tmp_path)
    assert written["about"]["precision"] == "bf16" and written["config"]["precision"] == "bf16"
    [row] = written["results"]
    out, err = capfd.readouterr()
    assert list(row["domains"]) == ["val", "sketch"] and "\n| ERM " in out
    assert err.splitlines()[-1] == "no tradeoff.png: OSError: no fonts" and "tradeoff" not in out
    monkeypatch.undo()
    (tmp_path / "tradeoff.png").mkdir()
    assert drm_min.main(argv(tmp_path, world, method="erm", epochs=1, overwrite=True)) == 2
    out, err = capfd.readouterr()
    assert re.search(r"^drm_min.py: \S*tradeoff.png: cannot be written", err, re.M) and "\n| ERM " in out
    assert "written:" not in out
    assert results(tmp_path)["about"]["precision"] == "fp32" and len(results(tmp_path)["results"]) == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_history_was_not_drawn_or_was_drawn_of_a_single_epoch(world, tmp_path, capfd, epochs):
    assert drm_min.main(argv(tmp_path, world, method=("zero-shot", "erm"), epochs=epochs)) == 0
    pictures = {"tradeoff.png", "history.png"} if epochs > 1 else {"tradeoff.png"}
    assert {f.name for f in tmp_path.glob("*.png")} == pictures
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    [said] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("written: ")]
    assert set(re.findall(r"\w+\.png", said)) == pictures
