"""The count of faults, which `python -m pytest tests/faults -q -s` prints at its end."""

import collections

import place
import pytest
import test_bad_input
import test_data_faults
import test_llm_answers
import test_weights_faults

TABLES = (
    *(test_bad_input.FAULTS, test_bad_input.TOLD, test_bad_input.FAULTS_OF_DESCRIBE),
    *(test_data_faults.FAULTS, test_data_faults.TOLD, test_weights_faults.FAULTS),
    {"LLM answers": test_llm_answers.ANSWERS},
)


def test_the_count_of_faults_tried_and_survived(monkeypatch):
    """A fault is counted when it is tried, and again if what is demanded of it held to the end."""
    assert sum(len(names) for faults in TABLES for names in faults.values()) >= 250
    monkeypatch.setattr(place, "TRIED", collections.Counter())
    monkeypatch.setattr(place, "SURVIVED", collections.Counter())
    with place.counted("csv"):
        pass
    with pytest.raises(AssertionError), place.counted("csv"):
        raise AssertionError

    @place.counted("kills", 50)
    def test(what):
        assert what

    test("this")
    _, *lines = place.lines_of_the_count()
    assert [line.split() for line in lines] == [["csv", "2", "1"], ["kills", "50", "50"], ["all", "52", "51"]]
