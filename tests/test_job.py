"""The main job, run as a reader runs it."""
import json
import subprocess
import sys

import pytest

import drm_min


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The default job, in another folder than the repository's: (folder, finished process)."""
    folder = tmp_path_factory.mktemp("job")
    done = subprocess.run([sys.executable, drm_min.ROOT / "drm_min.py", "--dataset", "toy"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "toy", done


def test_default_job_shows_what_the_readme_says(job):
    rows = {drm_min.label(r): r["summary"] for r in results(job[0])["results"]}
    domains = {drm_min.label(r): r["domains"] for r in results(job[0])["results"]}
    assert list(rows) == ["zero-shot, default head", "zero-shot, concept head", "zero-shot, both mixed", "ERM", "WRM", "DRM, lambda 1"]
    drm, erm, wrm = rows["DRM, lambda 1"], rows["ERM"], rows["WRM"]
    assert drm["ood_mean_accuracy"] > max(r["ood_mean_accuracy"] for name, r in rows.items() if name != "DRM, lambda 1")
    assert drm["worst_log_loss"] < min(r["worst_log_loss"] for name, r in rows.items() if name != "DRM, lambda 1")
    assert erm["id_accuracy"] > 0.1 + max(rows[name]["id_accuracy"] for name in list(rows)[:3])
    assert drm["id_accuracy"] > erm["id_accuracy"] - 0.015
    fine_tuned = ("ERM", "DRM, lambda 1", "WRM")
    assert max(fine_tuned, key=lambda m: domains[m]["dim"]["accuracy"]) == "ERM"
    assert max(fine_tuned, key=lambda m: domains[m]["spurious"]["accuracy"]) == "WRM"
    assert wrm["id_accuracy"] == min(rows[m]["id_accuracy"] for m in fine_tuned)


def test_job_prints_a_row_a_method_and_a_bar(job):
    table = [line for line in job[1].stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 6 + 1 and "100%" in job[1].stderr and "Traceback" not in job[1].stderr
    assert len({len(line) for line in table}) == 1
    assert job[1].stderr.count("arning") == 0


def test_results_have_their_schema(job):
    report = results(job[0])
    assert report["config"]["epochs"] > 0 and report["config"]["lr"] > 0 and report["config"]["descriptions"] == "descriptions/toy.json"
    assert {"torch", "open_clip", "model", "pretrained", "descriptions", "descriptions_sha256"} <= set(report["about"])
    assert len(report["about"]["descriptions_sha256"]) == 64
    for row in report["results"]:
        assert {"method", "seed", "lam", "beta", "alpha", "domains", "summary", "validation"} <= set(row)
        assert list(row["domains"]) == ["id", "dim", "neutral", "spurious"]
        for m in row["domains"].values():
            assert m["n"] == 2000 and 0 <= m["accuracy"] <= 1 and m["log_loss"] > 0
            assert m["n_visible"] + m["n_hidden"] == 2000
            both = (m["accuracy_visible"] * m["n_visible"] + m["accuracy_hidden"] * m["n_hidden"]) / 2000
            assert both == pytest.approx(m["accuracy"])
        ood = [row["domains"][d]["accuracy"] for d in ("dim", "neutral", "spurious")]
        assert row["summary"] == {"id_accuracy": row["domains"]["id"]["accuracy"], "ood_mean_accuracy": pytest.approx(sum(ood) / 3),
                                  "ood_worst_accuracy": min(ood),
                                  "worst_log_loss": max(m["log_loss"] for m in row["domains"].values())}
    lams = {drm_min.label(r): (r["lam"], r["beta"]) for r in report["results"]}
    assert lams["ERM"] == (0, 1) and lams["WRM"] == (None, 0) and lams["DRM, lambda 1"] == (1, 0.5)


def test_picture_is_written_and_no_temporary_file_stays(job):
    assert (job[0] / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(f.name for f in job[0].iterdir()) == ["results.json", "tradeoff.png"]


def without_times(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report["results"]]


def test_same_seed_same_results_and_every_option_is_heard(tmp_path, capsys):
    options = ["--method", "zero-shot", "erm", "drm", "dual", "flyp", "--sweep", "3", "--alpha", "0.5", "1", "--epochs", "1", "--batch-size",
               "500", "--seed", "3"]
    for name in ("one", "two"):
        assert drm_min.main([*options, "--out", str(tmp_path / name)]) == 0
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert without_times(one) == without_times(two) and one["about"] == two["about"]
    rows = one["results"]
    assert len(rows) == 3 + 2 * 5 and {r["seed"] for r in rows} == {3}
    assert [(r["lam"], r["beta"], r["alpha"]) for r in rows if r["method"] == "drm"] == [(1, 0.5, 0.5), (1, 0.5, 1), (3, 0.25, 0.5), (3, 0.25, 1)]
    assert len({r["summary"]["ood_mean_accuracy"] for r in rows}) > 8
    assert "WiSE-FT 0.5" in capsys.readouterr().out

    assert drm_min.main([*options[:2], "wrm", "--epochs", "1", "--batch-size", "500", "--seeds", "2", "--core-targets", "label", "--loss", "flyp",
                         "--out", str(tmp_path / "three")]) == 0
    assert [r["seed"] for r in results(tmp_path / "three")["results"] if r["method"] == "wrm"] == [0, 1]
    assert "±" in capsys.readouterr().out


def test_help_is_a_page_that_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        drm_min.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and len(text.splitlines()) < 90
    for name in ("dataset", "method", "lam", "beta", "sweep", "alpha", "core-targets", "loss", "seed", "seeds", "epochs", "batch-size", "lr",
                 "weight-decay", "model", "pretrained", "descriptions", "device", "out"):
        assert f"--{name} " in text
