"""Corpus-level figures and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from quaver.evaluation.estimate import bootstrap_ratio, mean_of, ratio_of, total_of


def test_the_ratio_weighs_long_sentences_more() -> None:
    figure = bootstrap_ratio([1, 0], [1, 9])
    assert figure.value == pytest.approx(0.1)  # a mean of the two rates would be 0.5


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(200):
        figure = bootstrap_ratio(rng.binomial(10, 0.1, 60).tolist(), [10.0] * 60, seed=trial)
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        inside += figure.low <= 0.1 <= figure.high
    assert 180 <= inside <= 198


def test_more_sentences_give_a_narrower_interval() -> None:
    def width(n: int) -> float:
        figure = bootstrap_ratio([0.0, 1.0] * n, [5.0] * 2 * n)
        assert figure.high is not None
        assert figure.low is not None
        return figure.high - figure.low

    assert width(200) < 0.5 * width(20)


def test_intervals_are_the_same_in_every_run() -> None:
    assert bootstrap_ratio([1, 2, 3], [4, 5, 6]) == bootstrap_ratio([1, 2, 3], [4, 5, 6])


def test_one_row_has_no_interval_and_no_row_no_figure() -> None:
    assert mean_of([{"x": 2.0}], "x").low is None  # type: ignore[union-attr]
    assert mean_of([{"y": 2.0}], "x") is None
    assert ratio_of([{"a": 1.0, "b": 0}], "a", "b") is None
    assert total_of([], "x") is None


def test_rows_without_the_column_or_with_nan_are_left_out() -> None:
    figure = mean_of([{"x": 1.0}, {"x": None}, {"x": float("nan")}, {}, {"x": 3.0}], "x")
    assert figure is not None
    assert (figure.value, figure.count) == (2.0, 2)
