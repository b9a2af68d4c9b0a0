"""What notebooks/record.py recorded: it is of this repository, and docs/results.md says no more."""

import json
import re
import statistics

import pytest
from conftest import ROOT

from notebooks import helpers, record
from notebooks.helpers import SHIFTED
from support import report

RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")
TABLES = [name for name in record.RUNS if name != "sweep"]  # that one is a picture


def cells(line):
    return [cell.strip(" *") for cell in line.strip().strip("|").split("|")]


def table_after(words):
    """The first table of docs/results.md after these words, as cells, without the line under its heading."""
    assert RESULTS.count(words) == 1, f"the page says {RESULTS.count(words)} times: {words}"
    first = re.search(r"(?:^\|.*\n)+", RESULTS.split(words)[1], re.MULTILINE)
    heading, _, *lines = map(cells, first.group().splitlines())
    return heading, lines


@pytest.mark.parametrize("name", record.RUNS)
def test_runs_were_recorded_with_what_the_repository_holds(name):
    recorded = helpers.load_run(name)
    assert recorded["recorded"] == record.inputs()["sha256"], f"run python notebooks/record.py {name}"
    assert {row["seed"] for row in recorded["results"]} == set(helpers.SEEDS)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_results_is_what_its_command_printed(name):
    heading, lines = table_after("`python drm_min.py " + " ".join(record.RUNS[name]) + "`")
    printed, _, *rows = map(cells, report.table(helpers.load_run(name)))
    assert heading == printed and len(lines) >= 10
    assert [line for line in lines if line not in rows] == []
    assert {"ERM", "ERM + zero-shot concept head", "ERM, both heads mixed"} <= {line[0] for line in lines}


def test_the_table_of_three_clips_is_what_was_recorded():
    heading, lines = table_after("`python notebooks/record.py clips`")
    printed, _, *rows = map(cells, record.clips_table())
    assert heading == printed and lines == rows


def test_the_table_of_descriptions_is_what_was_recorded():
    rows, (_, lines) = helpers.load()["rows"], table_after("--descriptions descriptions/FILE`")

    def said(training, value, digits=1):
        values = [value(row["splits"]) for row in helpers.pick(rows, training)]
        return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    def ood(splits):
        return 100 * statistics.fmean(splits[d]["accuracy"] for d in SHIFTED)

    def worst(splits):
        return max(splits[d]["log_loss"] for d in ("same site", *SHIFTED))

    for line, drm, wrm in zip(
        lines, ("drm-1", "shuffled", "context"), ("wrm", "wrm-shuffled", "wrm-context")
    ):
        in_distribution = said(drm, lambda splits: 100 * splits["same site"]["accuracy"])
        assert line[2:6] == [in_distribution, said(drm, ood), said(drm, worst, 2), said(wrm, ood)]


def test_results_say_what_was_recorded_of_lambda_with_another_beta():
    said = RESULTS.split("with `--beta 0.5` the OOD mean is")[1].split("([notebook 5]")[0]
    numbers = []
    for training in ("drm-3", "drm-10"):
        for beta in (0.5, None):
            rows = [row["splits"] for row in helpers.pick(helpers.load()["rows"], training, beta)]
            of_seeds = [100 * statistics.fmean(splits[d]["accuracy"] for d in SHIFTED) for splits in rows]
            numbers.append(f"{statistics.fmean(of_seeds):.1f}")
    assert re.findall(r"\d\d\.\d", said) == numbers


def leads(recorded, row, others, key="ood_mean_accuracy"):
    """{name: lead of a row over another in points, paired by seed, and its standard error}."""
    grouped = report.by_name(recorded["results"])
    found = {}
    for name in others:
        gaps = [
            100 * (a - b) for a, b in zip(report.column(grouped[row], key), report.column(grouped[name], key))
        ]
        found[name] = statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    return found


def test_the_default_core_targets_do_what_results_say():
    """In points of OOD mean, paired by seed, beyond two standard errors where one is said to be ahead."""
    clear, fog = helpers.load_run("rivals"), helpers.load_run("targets-fog")
    rows = report.by_name(clear["results"])
    behind = [name for name in rows if name[:3] in ("ERM", "WRM", "dua", "FLY") or "WiSE-FT" in name]
    behind.remove("ERM + zero-shot concept head")
    assert all(mean > 2 * se for mean, se in leads(clear, "DRM, lambda 1", behind).values())
    drm = "DRM, lambda 1, posterior"
    others = leads(fog, drm, ["DRM, lambda 1, softmax", "ERM", "ERM, both heads mixed"])
    (ahead, se), (of_erm, _), (of_mixed, se_mixed) = others.values()
    assert ahead > 2 * se and of_erm > -1 and of_mixed < -2 * se_mixed
    for run, wrm in ((clear, "WRM"), (fog, "WRM, posterior")):
        [(gain, se)] = leads(run, wrm, ["zero-shot, concept head"]).values()
        assert gain > 2 * se
    practical = [f"DRM, lambda 1, {name}" for name in ("softmax", "normalized", "label", "bootstrap")]
    assert min(mean for mean, _ in leads(helpers.load_run("targets"), drm, practical).values()) > -0.5


def test_results_say_what_was_recorded_of_wrm_alone_with_more_trust():
    said = RESULTS.split("`posterior` is a family")[1].split("\n- ")[0]
    for dataset in ("toy", "toy-fog"):
        values = helpers.load_trust()[dataset, "wrm"][0.8]
        assert f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}" in said


def test_recorded_trust_has_every_seed_and_its_ends():
    made = json.loads((record.FOLDER / "trust.json").read_text(encoding="utf-8"))
    assert len(made) == 2 * 2 * len(record.TRUSTS) * len(helpers.SEEDS)
    for curve in helpers.load_trust().values():
        assert list(curve) == sorted({0.0, helpers.TRUST, *record.TRUSTS} | ({1.0} & set(curve)))
        assert all(len(values) == len(helpers.SEEDS) for values in curve.values())
