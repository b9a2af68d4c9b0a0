"""The table, the pictures, and what is printed, of reports made by hand."""

import io
import re
import sys
import warnings

import pytest
from conftest import run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import drm_min
from support import report


def report_of(*rows, domains=("id", "ood")):
    """A report with rows (method, seed, lam, alpha, validation accuracy, accuracies of two domains).

    A row may end in an estimator.
    """
    results = []
    for method, seed, lam, alpha, val, a, b, *estimator in rows:
        row = dict(method=method, seed=seed, lam=lam, beta=0.5, alpha=alpha, core_targets=None, seconds=1.0)
        row["estimator"] = estimator[0] if estimator else None
        measured = [dict(accuracy=a, log_loss=0.5, n=10), dict(accuracy=b, log_loss=1.0, n=10)]
        summary = dict(id_accuracy=a, ood_mean_accuracy=b, ood_worst_accuracy=b, worst_log_loss=1.0)
        row |= dict(validation=dict(accuracy=val), domains=dict(zip(domains, measured)), summary=summary)
        results.append(row)
    config = dict(seeds=len({row["seed"] for row in results}), dataset="x")
    return dict(results=results, config=config, about=dict(ceilings={}, metrics=("accuracy", "accuracy")))


ROWS = (("erm", 0, 0.0, 0.5, 0.9, 0.9, 0.6), ("erm", 0, 0.0, 1.0, 0.9, 0.9, 0.6))


@pytest.fixture
def printed(monkeypatch, tmp_path, capsys):
    """main, where a run gives the report -> what it prints."""

    def run(report, *words):
        monkeypatch.setattr(drm_min, "run", lambda config, out: report)
        assert drm_min.main(["--out", str(tmp_path), *words]) == 0
        return capsys.readouterr().out

    return run


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_table_by_hand():
    lines = report.table(
        report_of(
            ("erm", 0, 0, 0.5, 0.80, 0.80, 0.50),
            ("erm", 0, 0, 0.7, 0.90, 0.85, 0.50),
            ("drm", 0, 1, 1.0, 0.9, 0.90, 0.60),
            ("erm", 1, 0, 0.5, 0.90, 0.90, 0.60),
            ("erm", 1, 0, 0.7, 0.85, 0.85, 0.50),
            ("drm", 1, 1, 1.0, 0.9, 0.92, 0.64),
        )
    )
    measured = ["id", "ood", "OOD mean", "OOD worst", "worst log loss", "models"]
    assert cells(lines[0]) == ["accuracy % (log loss)", *measured, "DRM's lead in OOD mean ± s.e."]
    domains = ["85.0 ± 7.1 (0.50 ± 0.00)", "55.0 ± 7.1 (1.00 ± 0.00)"]
    shifted = ["55.0 ± 7.1", "55.0 ± 7.1", "1.00 ± 0.00"]
    # paired: leads of 10 and 4 points
    assert cells(lines[2]) == ["ERM, WiSE-FT 0.5", *domains, *shifted, "1", "+7.00 ± 3.00"]
    starred = "0.875 on validation against 0.85, whatever the test says"
    assert cells(lines[3])[0] == "ERM, WiSE-FT 0.7 *", starred
    assert cells(lines[4])[0] == "DRM, lambda 1" and cells(lines[4])[-1] == ""


def columns(made):
    """Of a table its first and its `models` column."""
    heading, _, *rows = map(cells, report.table(made))
    return [(row[0], row[heading.index("models")]) for row in rows]


def test_only_an_ensemble_is_of_two_models_and_a_line_says_what_that_means():
    one = ("erm", "erm-mixed", "dual", "flyp")
    rows = [(method, 0, 1, 1.0, 0.9, 0.9, 0.6) for method in one]
    rows += [
        ("drm", 0, 1, 1.0, 0.9, 0.9, 0.6, "posterior"),
        ("wrm", 0, None, 1.0, 0.9, 0.9, 0.6, "posterior"),
    ]
    names = ["ERM", "ERM, both heads mixed", "dual one-hot, lambda 1", "FLYP", "DRM, lambda 1", "WRM"]
    assert columns(report_of(*rows)) == [(name, "1") for name in names]
    assert not [line for line in report.notes(report_of(*rows)) if line.startswith("models:")]
    two = report_of(*rows, ("ensemble", 0, 0, 1.0, 0.9, 0.9, 0.6), ("ensemble", 0, 0, 0.5, 0.9, 0.9, 0.6))
    assert [row for row in columns(two) if row[1] != "1"] == [
        ("ERM + zero-shot concept head", "2"),
        ("ERM + zero-shot concept head, WiSE-FT 0.5 *", "2"),
    ]
    [said] = [line for line in report.notes(two) if line.startswith("models:")]
    assert "how many are kept" in said


def test_models_stands_before_the_lead_of_drm():
    rows = [(m, seed, 1, 1.0, 0.9, 0.9, 0.6) for seed in (0, 1) for m in ("ensemble", "drm")]
    heading, _, first, second = map(cells, report.table(report_of(*rows)))
    assert heading[-2:] == ["models", "DRM's lead in OOD mean ± s.e."]
    assert first[-2:] == ["2", "+0.00 ± 0.00"] and second[-2:] == ["1", ""]


def test_rows_of_several_estimators_are_told_apart_and_each_has_a_best_of_its_own():
    made = report_of(
        ("erm", 0, 0, 1.0, 0.9, 0.9, 0.6),
        *(("wrm", 0, None, 1.0, 0.9, 0.9, 0.6, estimator) for estimator in ("softmax", "label")),
        ("drm", 0, 1, 0.5, 0.7, 0.9, 0.6, "softmax"),
        ("drm", 0, 1, 0.8, 0.8, 0.9, 0.6, "softmax"),
        ("drm", 0, 1, 0.5, 0.6, 0.9, 0.6, "label"),
        ("drm", 0, 1, 0.8, 0.5, 0.9, 0.6, "label"),
        ("dual", 0, 1, 1.0, 0.9, 0.9, 0.6, "onehot"),
    )
    drm = [f"DRM, lambda 1, {end}" for end in ("softmax, WiSE-FT 0.5", "softmax, WiSE-FT 0.8 *")]
    drm += [f"DRM, lambda 1, {end}" for end in ("label, WiSE-FT 0.5 *", "label, WiSE-FT 0.8")]
    names = ["ERM", "WRM, softmax", "WRM, label", *drm, "dual one-hot, lambda 1"]
    assert [name for name, _ in columns(made)] == names
    assert report.estimators_of(made["results"]) == ["softmax", "label"]


def test_a_bar_in_the_name_of_a_domain_broke_the_table(printed):
    made = report_of(*ROWS, domains=("by|day", "night|"))
    lines = report.table(made)
    assert {len(cells(line)) for line in lines} == {7} and len({len(line) for line in lines}) == 1
    assert cells(lines[0])[1:3] == [r"by\|day", r"night\|"]
    assert lines == [line for line in printed(made).splitlines() if line.startswith("|")]


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: {"plot": the y of each line, "errorbar": the filling of each marker}."""
    calls, plot, errorbar = {"plot": [], "errorbar": []}, Axes.plot, Axes.errorbar

    def note_plot(self, x, y, *args, **kwargs):
        calls["plot"].append(list(y))
        return plot(self, x, y, *args, **kwargs)

    def note_errorbar(self, *args, **kwargs):
        calls["errorbar"].append(kwargs["markerfacecolor"])
        return errorbar(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", note_plot)
    monkeypatch.setattr(Axes, "errorbar", note_errorbar)
    return calls


def test_path_of_lambda_runs_from_erm_over_growing_lambda_to_wrm(drawn):
    figure = report.plot_tradeoff(
        report_of(
            ("wrm", 0, None, 1, 0, 0.6, 0.9),
            ("drm", 0, 3, 1, 0, 0.7, 0.8),
            ("erm", 0, 0, 1, 0, 0.9, 0.5),
            ("drm", 0, 0.5, 1, 0, 0.8, 0.7),
            ("drm", 0, 0.5, 0.5, 0, 0.1, 0.1),
        )
    )
    assert isinstance(figure, Figure) and drawn["plot"] == [pytest.approx([50, 70, 80, 90])] * 2


def test_the_path_of_lambda_is_that_of_the_first_estimator_and_the_others_stand_beside_it(drawn):
    figure = report.plot_tradeoff(
        report_of(
            ("erm", 0, 0, 1, 0, 0.9, 0.5),
            ("ensemble", 0, 0, 1, 0, 0.2, 0.2),
            ("wrm", 0, None, 1, 0, 0.6, 0.9, "softmax"),
            ("wrm", 0, None, 1, 0, 0.3, 0.3, "label"),
            ("drm", 0, 1, 1, 0, 0.7, 0.8, "softmax"),
            ("drm", 0, 1, 1, 0, 0.4, 0.4, "label"),
        )
    )
    assert drawn["plot"] == [pytest.approx([50, 80, 90])] * 2
    for axes in figure.axes:
        said = [text.get_text() for text in axes.texts]
        assert said.count("label") == 2 and "softmax" not in said
        assert {"λ = 0", "λ = 1", "λ = ∞"} <= {*said}


def test_weights_at_alpha_0_are_drawn_hollow_and_not_as_if_they_were_trained(drawn):
    report.plot_tradeoff(report_of(("erm", 0, 0.0, 0.0, 0.9, 0.9, 0.6), ROWS[1]))
    assert drawn["errorbar"] == ["white", report.METHODS["erm"][1]] * 2


@pytest.mark.parametrize("name", ["\u7d20\u63cf", "photos \U0001f98a", "\ud55c\uad6d"])
def test_signs_that_the_font_lacks_were_boxes_and_warnings_in_the_picture(tmp_path, capsys, name):
    """Ideograms, an emoji, Hangul: the picture says which domain of the table it is; Greek stays."""
    row = ("erm", 0, 0.0, 1.0, 0.9, 0.5, 0.5)
    figure = report.plot_tradeoff(report_of(row, domains=("\u03b1\u03b2\u00e9", name)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "p", format="png")
    assert [line for line in capsys.readouterr().err.splitlines() if f"{name} domain 2," in line]
    labels = [axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes]
    assert "`domain 2`" in labels[1] and "`\u03b1\u03b2\u00e9`" in labels[1]


def test_a_domain_with_dollars_is_no_mathematics(tmp_path):
    row = ("erm", 0, 0.0, 1.0, 0.9, 0.5, 0.5)
    figure = report.plot_tradeoff(report_of(row, domains=("i$d_$", "a$\\foo$")))
    figure.savefig(tmp_path / "p", format="png")
    assert (tmp_path / "p").read_bytes().startswith(b"\x89PNG")


def test_a_terminal_that_knows_no_plus_minus_shows_the_results_all_the_same(monkeypatch, tmp_path):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(drm_min, "run", lambda config, out: report_of(*ROWS))
    monkeypatch.setattr(sys, "stdout", screen)
    assert drm_min.main(["--out", str(tmp_path)]) == 0
    screen.flush()
    assert b"| ERM " in screen.buffer.getvalue()


@pytest.mark.parametrize("rows, star", [(ROWS, True), (ROWS[1:], False)])
def test_the_star_is_explained_where_a_row_has_one(printed, rows, star):
    out = printed(report_of(*rows), "--alpha", "0.5")
    assert ("ERM, WiSE-FT 0.5 * " in out, "* of the WiSE-FT weights" in out) == (star, star)


def test_where_no_group_counts_in_a_shifted_domain_there_is_a_table_and_no_picture(printed, tmp_path):
    made = report_of(*ROWS[1:])
    made["about"]["metrics"] = ("accuracy", "worst_region_accuracy")
    [row] = made["results"]
    row["domains"]["ood"]["worst_region_accuracy"] = None
    row["summary"] = dict(id_accuracy=0.9, worst_log_loss=1.0)
    assert "| ERM " in printed(made) and [f.name for f in tmp_path.iterdir()] == ["results.json"]


def test_history_has_a_panel_for_each_loss_that_its_trainings_have(world, tmp_path):
    for method, select, titles in (
        ("erm", "last", ["loss", "ERM term"]),
        ("wrm", "last", ["loss", "WRM term"]),
        ("drm", "best", ["loss", "ERM term", "WRM term", "validation"]),
    ):
        out = tmp_path / method
        figure = report.plot_history(run(out, world, method=method, select=select), out)
        assert [axes.get_title() for axes in figure.axes] == titles
        for axes in figure.axes:
            [line] = axes.lines
            n = 2 if axes.get_title() == "validation" else 4
            assert len(line.get_xdata()) == n and line.get_xdata()[-1] == 2  # epochs


@pytest.mark.parametrize(
    "methods", [("erm",), ("ensemble",), ("erm-mixed",), ("ensemble", "erm-mixed", "erm")]
)
def test_a_training_has_one_history_however_many_rows_are_read_of_it(world, tmp_path, methods):
    made = run(tmp_path, world, method=methods)
    assert [name for name, _ in report.histories_of(made, tmp_path)] == ["ERM, seed 0"]


def test_an_evaluation_into_the_folder_of_a_training_read_its_history(tmp_path):
    """A damaged one ended an --eval-only, which has no history of its own, in a traceback."""
    folder = tmp_path / "erm-seed-0" / "model"
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("no history")
    made = report_of(("erm", 0, 0, 1.0, 0.9, 0.9, 0.6))
    made["config"]["eval_only"] = True
    assert report.histories_of(made, tmp_path) == {}
    made["config"]["eval_only"] = False
    with pytest.raises((KeyError, ValueError)):  # it was read
        report.histories_of(made, tmp_path)
