from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.evaluate import EXAMPLES, SHOWN, image_queries, text_queries, truth
from trainers.tasks.retrieval import chance, recall, retrieval


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_recall_against_a_sorted_list(seed: int, queries: int, answers: int) -> None:
    numbers = np.random.default_rng(seed)
    scores = numbers.permutation(queries * answers).reshape(queries, answers).astype(np.float32)
    right = numbers.random((queries, answers)) < 0.2
    right[:, 0] = True
    found = recall(scores, right)
    for cut in (1, 5, 10):
        hits = 0
        for query in range(queries):
            ranked = sorted(range(answers), key=lambda answer: -scores[query, answer])
            hits += any(right[query, answer] for answer in ranked[:cut])
        assert found.reached[cut] == pytest.approx(hits / queries)


def test_a_constant_score_earns_nothing() -> None:
    right = np.eye(30, dtype=bool)
    assert set(recall(np.zeros((30, 30)), right).reached.values()) == {0.0}


@pytest.mark.parametrize(("right", "answers", "cut"), [(1, 5, 2), (2, 6, 3), (3, 6, 5), (2, 4, 10), (1, 6, 1)])
def test_chance_against_all_rankings(right: int, answers: int, cut: int) -> None:
    rankings = list(permutations(range(answers)))
    hits = sum(any(answer < right for answer in ranking[:cut]) for ranking in rankings)
    assert chance(right, answers, cut) == pytest.approx(hits / len(rankings))


def test_random_scores_reach_chance() -> None:
    numbers = np.random.default_rng(0)
    right = numbers.random((3000, 60)) < 0.03
    right[:, 0] = True
    found = recall(numbers.random(right.shape), right)
    for cut in (1, 5, 10):
        assert found.reached[cut] == pytest.approx(found.chance[cut], abs=0.03)


def test_both_ways_and_shared_texts() -> None:
    texts, keys = ["a cat", "a dog"], ["0", "1", "2"]
    right = truth(texts, 3, ("a cat", "a dog", "a cat"), np.array([0, 1, 2]))
    assert right.tolist() == [[True, False, True], [False, True, False]]
    scores = np.array([[0.1, 0.2, 0.9], [0.5, 0.4, 0.3]])
    values = retrieval(scores, right)
    assert values["t2i_r1"] == 0.5
    assert values["i2t_r1"] == pytest.approx(2 / 3)
    assert (values["texts"], values["images"]) == (2, 3)
    text, image = text_queries(texts, keys, scores, right)[0], image_queries(texts, keys, scores, right)[1]
    assert text.model_dump() == {"text": "a cat", "top": ["2", "1", "0"], "right": ["0", "2"]}
    assert image.model_dump() == {"image": "1", "top": ["a dog", "a cat"], "right": ["a dog"]}


@given(st.integers(0, 10**6), st.integers(1, EXAMPLES), st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_examples_are_what_recall_counts(seed: int, few: int, many: int) -> None:
    """Where there are no more queries than examples, also where scores are the same: best first by a sorted list."""
    numbers = np.random.default_rng(seed)
    for texts, images in ((few, many), (many, few)):
        scores = numbers.integers(0, 4, (texts, images)).astype(np.float32)
        right = numbers.random(scores.shape) < 0.2
        right[0, :] = right[:, 0] = True
        captions, keys = [f"text {row:02d}" for row in range(texts)], [f"{column:08d}" for column in range(images)]
        if texts == few:
            found: list[Any] = text_queries(captions, keys, scores, right)
            queries, answers, values, truths = captions, keys, scores, right
            asked = [example.text for example in found]
        else:
            found = image_queries(captions, keys, scores, right)
            queries, answers, values, truths = keys, captions, scores.T, right.T
            asked = [example.image for example in found]
        assert asked == queries
        hits = [bool(set(example.top) & set(example.right)) for example in found]
        assert np.mean(hits) == pytest.approx(recall(values, truths).reached[SHOWN])
        for row, example in enumerate(found):
            places = sorted(range(len(answers)), key=lambda place, row=row: (-values[row, place], truths[row, place]))
            assert example.top == [answers[place] for place in places[:SHOWN]]
            assert example.right == [answers[place] for place in range(len(answers)) if truths[row, place]]


@given(st.integers(EXAMPLES, 400), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_examples_stand_at_even_steps_whatever_the_scores(many: int, seed: int) -> None:
    names = [f"{number:08d}" for number in range(many)]
    chosen = []
    for scores in (np.zeros((many, many), np.float32), np.random.default_rng(seed).random((many, many), np.float32)):
        right = np.eye(many, dtype=bool)
        chosen.append([int(query.text) for query in text_queries(names, names, scores, right)])
        chosen.append([int(query.image) for query in image_queries(names, names, scores, right)])
    assert chosen == chosen[:1] * 4
    assert (chosen[0][0], chosen[0][-1], len(chosen[0])) == (0, many - 1, EXAMPLES)
    assert np.ptp(np.diff(chosen[0])) <= 1
