"""README and docs/: short enough, every command parses, every link leads somewhere, numbers are recorded."""

import re
import shlex
import statistics

import nbformat
import pytest
from conftest import ROOT

import describe
import drm_min
from notebooks import count, helpers
from support import report
from support.options import command_line

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.md")),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]


def test_readme_is_too_long_for_a_front_page():
    assert count.words(README) <= 1000


def without_code(text):
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_a_link_leads_nowhere(page):
    links = re.findall(r"\]\(([^)]+)\)", without_code(TEXTS[page]))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_every_page_is_reached_from_readme():
    found, open_pages = set(), ["README.md"]
    while open_pages:
        page = open_pages.pop()
        found.add(page)
        for link in re.findall(r"\]\(([^)#]+\.md)", TEXTS[page]):
            target = str(((ROOT / page).parent / link).resolve().relative_to(ROOT))
            if target not in found:
                open_pages.append(target)
    assert found == set(TEXTS)


def commands():
    """(page, words) of every command line in a page that runs one of our programs."""
    for page, text in TEXTS.items():
        blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
        spans = re.findall(r"`((?:\.venv/bin/)?python [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        for line in lines + [" ".join(span.split()) for span in spans]:
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if len(words) > 1 and words[0].endswith("python") and words[1].endswith(".py"):
                    yield page, words[1:]


@pytest.mark.parametrize("page, words", list(commands()), ids=lambda value: str(value)[:60])
def test_a_command_does_not_parse(page, words):
    program, *options = words
    assert (ROOT / program).is_file()
    if program == "drm_min.py" and options != ["--help"]:
        options = ["folder" if option == "NAME" else option for option in options]
        command_line(drm_min.Config, options, program, "")
    if program == "describe.py":
        command_line(describe.Options, options, program, "")


def test_the_map_names_a_section_that_no_notebook_has():
    sections = {}
    for path in (ROOT / "notebooks").glob("[1-6]_*.ipynb"):
        texts = "\n".join(
            cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"
        )
        sections[path.name[0]] = re.findall(r"^## (\d)\.", texts, re.M)
    named = re.findall(r"(\d) \(([\d, to]+)\)", TEXTS["docs/map.md"])
    assert len(named) >= 12
    for notebook, of in named:
        assert set(re.findall(r"\d", of)) <= set(sections[notebook]), (
            f"notebook {notebook} has no section {of}"
        )


def of_rows(name, domain):
    """A recorded row of the rivals in a domain, in % with one digit, as tables print it."""
    rows = report.by_name(helpers.load_run("rivals")["results"])[name]
    return report.cell([row["domains"][domain]["accuracy"] for row in rows], 100)


def test_the_table_of_readme_is_not_what_was_recorded():
    names = {
        "zero-shot, names": "zero-shot, default head",
        "zero-shot, descriptions": "zero-shot, concept head",
        "ERM (fine-tuning on names)": "ERM",
        "ERM + zero-shot descriptions (two models)": "ERM + zero-shot concept head",
        "WRM alone": "WRM",
        "DRM": "DRM, lambda 1",
    }
    spreads, heading = [], "| | " + " | ".join(helpers.DOMAINS) + " | mean shifted | worst |"
    of_all = report.by_name(helpers.load_run("rivals")["results"])
    table = README.split(heading + "\n")[1].split("\n\n")[0].splitlines()[1:]
    lines = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table]
    assert [line[0] for line in lines] == list(names)
    for line in lines:
        cells = [of_rows(names[line[0]], domain).split(" ± ") for domain in helpers.DOMAINS]
        means = [mean for mean, _ in cells]
        shifted = report.cell(report.column(of_all[names[line[0]]], "ood_mean_accuracy"), 100).split(" ± ")[0]
        assert line[1:] == [*means, shifted, min(means, key=float)]
        spreads += [float(spread) for _, spread in cells]
    assert f"standard deviation at most {max(spreads)})" in README


def test_a_number_of_readme_is_not_what_was_recorded():
    repaired, spoiled = map(len, helpers.repaired_and_spoiled())
    assert f"of the {repaired} images" in README and f"for {spoiled} others" in README
    means = {name: f"{helpers.ood_mean(name).mean():.1f}" for name in helpers.TRAININGS}
    assert f"({means['shuffled']} and {means['context']}; ERM {means['erm']})" in README
    fog = report.by_name(helpers.load_run("targets-fog")["results"])
    of_fog = [
        f"{100 * statistics.fmean(report.column(fog[name], 'ood_mean_accuracy')):.1f}"
        for name in ("DRM, lambda 1, posterior", "ERM")
    ]
    assert "({} against {}, mean of the shifted domains)".format(*of_fog) in README
    best = max(helpers.LAMBDAS, key=lambda name: helpers.recorded(name, "validation").mean())
    assert helpers.LAMBDAS[best] < 1, "validation images of the training site would choose lambda 1"
    half = [helpers.ood_mean(name, beta=0.5).mean() for name in ("drm-0.3", "drm-1", "drm-3", "drm-10")]
    said = " ".join(README.split())
    assert f"then λ from 0.3 to 10 has {min(half):.1f} to {max(half):.1f}" in said
    assert f"λ = 10 has {means['drm-10']}" in said


def test_the_pictures_of_readme_are_old(tmp_path):
    """They are drawn anew. What they show is recorded, so only a change of the code changes them."""
    import matplotlib.image
    import matplotlib.pyplot as plt

    with plt.rc_context():
        helpers.style()
        for draw, name in ((helpers.hero, "hero"), (helpers.diagram, "method")):
            draw().savefig(tmp_path / f"{name}.png", dpi=100)
            plt.close("all")
            new, kept = (
                matplotlib.image.imread(folder / f"{name}.png") for folder in (tmp_path, ROOT / "docs")
            )
            assert new.shape == kept.shape, "run python notebooks/helpers.py"
            assert abs(new - kept).mean() < 0.03, "run python notebooks/helpers.py"


def test_the_tests_command_stays_one_line_that_ci_reads():
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert [line.split("&&")[-1].strip() for line in lines] == [
        ".venv/bin/python drm_min.py",
        ".venv/bin/python -m pytest -q",
    ]
