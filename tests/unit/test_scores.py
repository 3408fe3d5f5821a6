"""How a network is judged: by class, by the area under the curve, or by number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from plinius.training.scores import area_under_curve, classification, regression


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_classes_are_judged_as_scikit_learn_does(pairs: list[tuple[int, int]]) -> None:
    """Accuracy, confusion, and the recall of every class; None where a class has no record."""
    predicted, actual = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    found = classification(predicted, actual, 4, ("a", "b", "c", "d"))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(actual, predicted))
    confusion = metrics.confusion_matrix(actual, predicted, labels=range(4))
    assert found["confusion"] == confusion.tolist()
    wanted = metrics.recall_score(actual, predicted, labels=range(4), average=None, zero_division=0)
    present = [number in actual for number in range(4)]
    assert found["recall"] == [
        pytest.approx(value) if there else None
        for value, there in zip(wanted, present, strict=True)
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_area_under_the_curve_is_scikit_learns(pairs: list[tuple[int, bool]]) -> None:
    """Also where scores are equal; None where one of the two classes is absent."""
    scores, positive = (np.array(column) for column in zip(*pairs, strict=True))
    found = area_under_curve(scores.astype(float), positive)
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(metrics.roc_auc_score(positive, scores))


def test_numbers_are_judged_as_scikit_learn_does() -> None:
    """Errors and R2 over several columns; no R2 where a column never changes; no accuracy."""
    random = np.random.default_rng(0)
    wanted = random.normal(3, 2, (50, 2))
    given_ = wanted + random.normal(0, 1, (50, 2))
    found = regression(given_, wanted)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(wanted, given_))
    assert found["rmse"] == pytest.approx(np.sqrt(metrics.mean_squared_error(wanted, given_)))
    assert found["r2"] == pytest.approx(metrics.r2_score(wanted, given_))
    assert "accuracy" not in found
    assert regression(given_, np.ones((50, 2)))["r2"] is None
