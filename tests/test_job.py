"""The main job, run as a reader runs it."""
import io
import json
import subprocess
import sys

import pytest

import describe
import drm_min


@pytest.fixture(scope="module", autouse=True)
def small_world():
    """In this process, a quarter of the toy images will do; the default job below runs in its own, with all of them."""
    whole = drm_min.load_data

    def few(split):
        n = len(split.labels) // 4
        return split.take(drm_min.torch.arange(n))

    def load_data(config, seed):
        data = whole(config, seed)
        return data._replace(train=few(data.train), val=few(data.val), tests={k: few(v) for k, v in data.tests.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drm_min, "load_data", load_data)
        yield


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The default job, in another folder than the repository's: (folder, finished process)."""
    folder = tmp_path_factory.mktemp("job")
    done = subprocess.run([sys.executable, describe.ROOT / "drm_min.py", "--dataset", "toy", "--device", "cpu"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "toy", done


def test_default_job_shows_what_the_readme_says(job):
    rows = {drm_min.row_name(r): r["summary"] for r in results(job[0])["results"]}
    domains = {drm_min.row_name(r): r["domains"] for r in results(job[0])["results"]}
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
    assert {"torch", "open_clip", "model", "pretrained", "descriptions", "prompts_sha256"} <= set(report["about"])
    assert len(report["about"]["prompts_sha256"]) == 64
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
    lams = {drm_min.row_name(r): (r["lam"], r["beta"]) for r in report["results"]}
    assert lams["ERM"] == (0, 1) and lams["WRM"] == (None, 0) and lams["DRM, lambda 1"] == (1, 0.5)


def test_picture_is_written_and_no_temporary_file_stays(job):
    assert (job[0] / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert not [f for f in job[0].rglob("*") if f.suffix in (".tmp", ".old")]
    assert {"results.json", "tradeoff.png", "drm-lambda-1-seed-0"} <= {f.name for f in job[0].iterdir()}


def without_times(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report["results"]]


def test_same_seed_same_results(tmp_path, capsys):
    options = ["--method", "zero-shot", "erm", "drm", "dual", "flyp", "--sweep", "3", "--alpha", "0.5", "1", "--epochs", "1", "--batch-size",
               "500", "--seed", "3", "--device", "cpu"]
    for name in ("one", "two"):
        assert drm_min.main([*options, "--out", str(tmp_path / name)]) == 0
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert without_times(one) == without_times(two) and one["about"] == two["about"]
    rows = one["results"]
    assert len(rows) == 3 + 2 * 5 and {r["seed"] for r in rows} == {3}
    assert [(r["lam"], r["beta"], r["alpha"]) for r in rows if r["method"] == "drm"] == [(1, 0.5, 0.5), (1, 0.5, 1), (3, 0.25, 0.5), (3, 0.25, 1)]
    assert len({r["summary"]["ood_mean_accuracy"] for r in rows}) > 8
    assert "WiSE-FT 0.5" in capsys.readouterr().out


SHORT = ["--epochs", "1", "--batch-size", "500", "--device", "cpu"]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Runs a short job -> its rows, printed table lines aside."""
    def run(*options):
        folder = tmp_path_factory.mktemp("short")
        assert drm_min.main([*SHORT, *options, "--out", str(folder)]) == 0
        assert (folder / "tradeoff.png").stat().st_size > 10000
        return results(folder)["results"]
    return run


def test_every_option_is_heard(short):
    base = short("--method", "drm")[0]
    for options in (["--lam", "2"], ["--beta", "0.9"], ["--core-targets", "label"], ["--core-targets", "normalized"], ["--core-targets", "onehot"],
                    ["--core-targets", "oracle"], ["--loss", "flyp"], ["--seed", "1"], ["--lr", "1e-4"], ["--weight-decay", "5"], ["--alpha", "0.5"]):
        [row] = short("--method", "drm", *options)
        assert row["summary"] != base["summary"], options
    assert short("--method", "drm", "--beta", "0.9")[0]["beta"] == 0.9


@pytest.mark.parametrize("methods", [["zero-shot"], ["dual"], ["flyp"], ["wrm"], ["erm", "wrm"]])
def test_any_choice_of_methods_makes_a_table_and_a_picture(short, methods, capsys):
    rows = short("--method", *methods)
    assert [r["method"] for r in rows] == (["zero-shot"] * 3 if methods == ["zero-shot"] else methods)
    assert capsys.readouterr().out.count("\n| ") >= len(rows)


def report_of(*rows):
    """A report with rows (method, seed, lam, alpha, validation accuracy, accuracies of two domains)."""
    results = [dict(method=m, seed=s, lam=lam, beta=0.5, alpha=alpha, validation=dict(accuracy=val), core_targets=None,
                    domains={"id": dict(accuracy=a, log_loss=0.5, n=10), "ood": dict(accuracy=b, log_loss=1.0, n=10)},
                    summary=dict(id_accuracy=a, ood_mean_accuracy=b, ood_worst_accuracy=b, worst_log_loss=1.0))
               for m, s, lam, alpha, val, a, b in rows]
    return dict(results=results, config=dict(seeds=len({r["seed"] for r in results}), dataset="x"), about=dict(ceilings={}, metrics=("accuracy", "accuracy")))


def cells(line):
    return [c.strip() for c in line.strip("|").split("|")]


def test_table_by_hand():
    lines = drm_min.table(report_of(
        ("erm", 0, 0, 0.5, 0.80, 0.80, 0.50), ("erm", 0, 0, 0.7, 0.90, 0.85, 0.50), ("drm", 0, 1, 1.0, 0.9, 0.90, 0.60),
        ("erm", 1, 0, 0.5, 0.90, 0.90, 0.60), ("erm", 1, 0, 0.7, 0.85, 0.85, 0.50), ("drm", 1, 1, 1.0, 0.9, 0.92, 0.64)))
    assert cells(lines[0]) == ["accuracy % (log loss)", "id", "ood", "OOD mean", "OOD worst", "worst log loss", "DRM's lead in OOD mean ± s.e."]
    assert cells(lines[2]) == ["ERM, WiSE-FT 0.5", "85.0 ± 7.1 (0.50 ± 0.00)", "55.0 ± 7.1 (1.00 ± 0.00)", "55.0 ± 7.1", "55.0 ± 7.1",
                               "1.00 ± 0.00", "+7.00 ± 3.00"]  # paired: leads of 10 and 4 points
    assert cells(lines[3])[0] == "ERM, WiSE-FT 0.7 *", "0.875 on validation against 0.85, whatever the test says"
    assert cells(lines[4])[0] == "DRM, lambda 1" and cells(lines[4])[-1] == ""


def test_path_of_lambda_runs_from_erm_over_growing_lambda_to_wrm(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, *a, **k: (drawn.append(list(y)), plot(self, x, y, *a, **k))[1])
    drm_min.plot(report_of(("wrm", 0, None, 1, 0, 0.6, 0.9), ("drm", 0, 3, 1, 0, 0.7, 0.8), ("erm", 0, 0, 1, 0, 0.9, 0.5),
                           ("drm", 0, 0.5, 1, 0, 0.8, 0.7), ("drm", 0, 0.5, 0.5, 0, 0.1, 0.1)), tmp_path / "p.png")
    assert drawn == [pytest.approx([50, 70, 80, 90])] * 2


def test_a_run_that_diverges_ends_in_one_line_and_keeps_the_old_results(tmp_path, capsys):
    (tmp_path / "results.json").write_text("old")
    assert drm_min.main([*SHORT, "--method", "erm", "--lr", "1e9", "--out", str(tmp_path)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("drm_min.py:")]
    assert "--lr 1000000000.0" in line and (tmp_path / "results.json").read_text() == "old"


def test_help_is_a_page_that_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        drm_min.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and len(text.splitlines()) < 90
    for name in ("dataset", "method", "lam", "beta", "sweep", "alpha", "core-targets", "loss", "seed", "seeds", "epochs", "batch-size", "lr",
                 "weight-decay", "model", "pretrained", "descriptions", "device", "out"):
        assert f"--{name} " in text


# -------------------------------------------------------------------------------------------------- what main makes of a run

ROWS = (("erm", 0, 0.0, 0.5, 0.9, 0.9, 0.6), ("erm", 0, 0.0, 1.0, 0.9, 0.9, 0.6))


def test_a_stop_outside_training_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(drm_min, "run", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert drm_min.main(["--out", str(tmp_path)]) == 130 and "--resume" in capsys.readouterr().err


def test_a_terminal_that_knows_no_plus_minus_shows_the_results_all_the_same(monkeypatch, tmp_path):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(drm_min, "run", lambda *args: report_of(*ROWS))
    monkeypatch.setattr(sys, "stdout", screen)
    assert drm_min.main(["--out", str(tmp_path)]) == 0
    screen.flush()
    assert b"| ERM " in screen.buffer.getvalue()


@pytest.mark.parametrize("rows, star", [(ROWS, True), (ROWS[1:], False)])
def test_the_star_is_explained_where_a_row_has_one(monkeypatch, tmp_path, capsys, rows, star):
    monkeypatch.setattr(drm_min, "run", lambda *args: report_of(*rows))
    assert drm_min.main(["--out", str(tmp_path), "--alpha", "0.5"]) == 0
    out = capsys.readouterr().out
    assert ("ERM, WiSE-FT 0.5 * " in out, "* of the WiSE-FT weights" in out) == (star, star)


def test_where_no_group_counts_in_a_shifted_domain_there_is_a_table_and_no_picture(monkeypatch, tmp_path, capsys):
    report = report_of(*ROWS[1:])
    report["about"]["metrics"] = ("accuracy", "worst_region_accuracy")
    [row] = report["results"]
    row["domains"]["ood"]["worst_region_accuracy"] = None
    row["summary"] = dict(id_accuracy=0.9, worst_log_loss=1.0)
    monkeypatch.setattr(drm_min, "run", lambda *args: report)
    assert drm_min.main(["--out", str(tmp_path)]) == 0
    assert "| ERM " in capsys.readouterr().out and [f.name for f in tmp_path.iterdir()] == ["results.json"]


def test_weights_at_alpha_0_are_drawn_hollow_and_not_as_if_they_were_trained(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    drawn, errorbar = [], Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda self, *a, **k: (drawn.append(k["markerfacecolor"]), errorbar(self, *a, **k))[1])
    drm_min.plot(report_of(("erm", 0, 0.0, 0.0, 0.9, 0.9, 0.6), ROWS[1]), tmp_path / "p")
    assert drawn == ["white", drm_min.METHODS["erm"][1]] * 2
