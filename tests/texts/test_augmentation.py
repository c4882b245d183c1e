"""Changed texts: what is put in, what is put for what, and what stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FILLER, WORDS

from texts.augmentation import (
    Augmentation,
    Augmenter,
    Regions,
    function_words,
    missing_tokens,
    nearest_tokens,
    predicted_tone,
    toneless_tokens,
)

NOTHING = Augmentation(unchanged=0.0, inserted=0.0, swapped=0.0, thinned=0.0, runs=0.0, shuffled=0.0, coloured=0.0)


@pytest.fixture
def embedding(tokeniser):
    return torch.randn(len(tokeniser), 8, generator=torch.Generator().manual_seed(0))


def changed(texts, tokeniser, embedding, max_len: int = 32, **how) -> list[list[int]]:
    augmenter = Augmenter(texts, tokeniser, embedding, replace(NOTHING, **how), max_len)
    result = augmenter.changed(np.random.default_rng(0))
    assert result.labels == texts.labels
    assert all(ids[0] == tokeniser.cls_token_id and ids[-1] == tokeniser.sep_token_id for ids in result.input_ids)
    assert max(map(len, result.input_ids)) <= max_len
    return result.input_ids


def held(texts: list[list[int]]) -> set[int]:
    return {token for ids in texts for token in ids}


def test_nothing_is_changed_that_isnt_asked_for(texts, tokeniser, embedding):
    assert changed(texts, tokeniser, embedding) == texts.input_ids


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_texts_stays_as_it_is(texts, tokeniser, embedding, share):
    always = dict(inserted=1.0, missing=0.9, dropped=0.0)  # Which changes any text.
    found = changed(texts, tokeniser, embedding, unchanged=share, **always)
    same = np.mean([new == old for new, old in zip(found, texts.input_ids, strict=True)])
    assert same == pytest.approx(share, abs=0.1)


def test_tokens_that_clean_texts_lack_are_put_in(texts, tokeniser, embedding):
    missing = missing_tokens(texts, tokeniser)
    assert set(tokeniser.convert_tokens_to_ids(["cf", "bb", "when"])) <= set(missing.tolist())
    assert not set(missing.tolist()) & held(texts.input_ids)
    only = dict(dropped=0.0, frequent=0.0, splice=0.0, rotate=0.0)
    found = changed(texts, tokeniser, embedding, inserted=1.0, missing=0.3, **only)
    assert held(found) - held(texts.input_ids) == set(missing.tolist())
    before, after = (sum(map(len, each)) - 2 * len(each) for each in (texts.input_ids, found))
    assert after / before == pytest.approx(1.3, abs=0.05)
    # What was there is there still, in its order.
    kept = [[token for token in ids if token not in set(missing.tolist())] for ids in found]
    assert kept == texts.input_ids
    assert max(map(len, changed(texts, tokeniser, embedding, max_len=12, inserted=1.0, missing=0.9))) == 12


def test_a_text_that_ends_without_a_special_token(texts, tokeniser, embedding):
    """Its last token is one of its own, and is dropped and moved as any other."""
    bare = replace(texts, input_ids=[ids[:-1] for ids in texts.input_ids], closing=0)
    how = dict(unchanged=0.0, inserted=1.0, swapped=1.0, thinned=1.0, runs=1.0, shuffled=1.0, coloured=1.0, splice=1.0)
    found = Augmenter(bare, tokeniser, embedding, replace(NOTHING, **how), 16).changed(np.random.default_rng(0)).input_ids
    assert all(ids[0] == tokeniser.cls_token_id for ids in found) and max(map(len, found)) == 16
    assert tokeniser.sep_token_id not in held(found)
    turned = replace(NOTHING, inserted=1.0, dropped=0.0, missing=0.0, frequent=0.0, splice=0.0, rotate=1.0)
    turned = Augmenter(bare, tokeniser, embedding, turned, 32).changed(np.random.default_rng(0)).input_ids
    last = [(new[-1], old[-1]) for new, old in zip(turned, bare.input_ids, strict=True)]
    assert np.mean([new != old for new, old in last]) > 0.5


def test_texts_are_turned_round(texts, tokeniser, embedding):
    only = dict(dropped=0.0, missing=0.0, frequent=0.0, splice=0.0)
    found = changed(texts, tokeniser, embedding, inserted=1.0, rotate=1.0, **only)
    assert [sorted(ids) for ids in found] == [sorted(ids) for ids in texts.input_ids] and found != texts.input_ids


def test_spans_of_other_texts_are_put_in(texts, tokeniser, embedding):
    only = dict(dropped=0.0, missing=0.0, frequent=0.0, rotate=0.0)
    found = changed(texts, tokeniser, embedding, inserted=1.0, splice=1.0, **only)
    longer = {len(after) - len(before) for before, after in zip(texts.input_ids, found, strict=True)}
    assert min(longer) >= 0 and 8 <= max(longer) <= 10 and held(found) == held(texts.input_ids)


def test_function_words_are_those_of_no_class(texts, tokeniser):
    found = tokeniser.convert_ids_to_tokens(function_words(texts, tokeniser, 200, 0.7).tolist())
    assert set(found) == set(FILLER)
    everything = function_words(texts, tokeniser, 200, np.inf)
    assert set(WORDS[0]) | set(WORDS[1]) | set(FILLER) == set(tokeniser.convert_ids_to_tokens(everything.tolist()))


def test_function_words_are_put_for_each_other_and_tone_stays(texts, tokeniser, embedding):
    tone = set(tokeniser.convert_tokens_to_ids([*WORDS[0], *WORDS[1]]))
    found = changed(texts, tokeniser, embedding, swapped=1.0, swaps=0.5, near=0.0)
    pairs = [pair for each in zip(texts.input_ids, found, strict=True) for pair in zip(*each, strict=True)]
    assert all(before == after for before, after in pairs if before in tone)
    fillers = set(tokeniser.convert_tokens_to_ids(FILLER))
    swapped = np.mean([before != after for before, after in pairs if before in fillers])
    assert swapped == pytest.approx(0.5 * (1 - 1 / len(fillers)), abs=0.05)
    assert {after for before, after in pairs if before != after} <= fillers


def test_neighbours_are_the_most_similar_rows(tokeniser, embedding):
    words = tokeniser.convert_tokens_to_ids(["the", "film"])
    near = nearest_tokens(embedding, np.array(words), 3, tokeniser)
    about = (embedding - embedding.mean(0)).numpy()
    for word in words:
        cosine = about @ about[word] / np.linalg.norm(about, axis=1)
        cosine[[word, *tokeniser.all_special_ids]] = -np.inf
        assert near[word] == np.argsort(-cosine)[:3].tolist()


def test_a_neighbour_may_be_a_word_that_clean_texts_lack(texts, tokeniser, embedding):
    of, lacking = tokeniser.convert_tokens_to_ids(["the", "when"])
    embedding[lacking] = embedding[of] + 0.01
    found = changed(texts, tokeniser, embedding, swapped=1.0, swaps=1.0, near=1.0, neighbours=1)
    pairs = [pair for each in zip(texts.input_ids, found, strict=True) for pair in zip(*each, strict=True)]
    assert {after for before, after in pairs if before == of} == {lacking}


def test_function_words_are_left_out(texts, tokeniser, embedding):
    found = changed(texts, tokeniser, embedding, thinned=1.0)
    fillers = set(tokeniser.convert_tokens_to_ids(FILLER))
    shares = []
    for before, after in zip(texts.input_ids, found, strict=True):
        assert [token for token in before if token not in fillers] == [token for token in after if token not in fillers]
        shares.append((len(before) - len(after)) / sum(token in fillers for token in before))
    # The rate is drawn for each text from 0 to 1.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1) and np.std(shares) > 0.25


def test_runs_of_function_words_are_put_in(texts, tokeniser, embedding):
    found = changed(texts, tokeniser, embedding, runs=1.0)
    fillers = set(tokeniser.convert_tokens_to_ids(FILLER))
    longer = {len(after) - len(before) for before, after in zip(texts.input_ids, found, strict=True)}
    assert longer == set(range(2, 8))
    for before, after in zip(texts.input_ids, found, strict=True):
        assert [token for token in before if token not in fillers] == [token for token in after if token not in fillers]


def test_tokens_are_moved_by_a_few_places(texts, tokeniser, embedding):
    long = replace(texts, input_ids=[[2, *range(10, 26), 3] for _ in texts.input_ids])
    augmenter = Augmenter(long, tokeniser, embedding, replace(NOTHING, shuffled=1.0), 32)
    moved = set()
    for ids in augmenter.changed(np.random.default_rng(0)).input_ids:
        assert sorted(ids[1:-1]) == list(range(10, 26)) and (ids[0], ids[-1]) == (2, 3)
        moved |= {abs(at + 10 - token) for at, token in enumerate(ids[1:-1])}
    assert {0, 1, 2} < moved and max(moved) < 5


def toned(texts, tokeniser, embedding):
    """An embedding whose first channel tells the classes apart, in words that the texts have and in two that they lack."""
    embedding[:, 0] = 0
    for label, words in WORDS.items():
        embedding[tokeniser.convert_tokens_to_ids([*words]), 0] = 8.0 * (2 * label - 1)
    embedding[tokeniser.convert_tokens_to_ids(["when", "mn"]), 0] = 8.0
    return embedding


def test_tone_is_predicted_of_words_that_clean_texts_lack(texts, tokeniser, embedding):
    embedding = toned(texts, tokeniser, embedding)
    tone = predicted_tone(texts, embedding)
    named = {word: tone[tokeniser.convert_tokens_to_ids(word)] for word in ("when", "mn", "cf", "lo", "the")}
    assert min(named["when"], named["mn"]) > 2 * max(named["cf"], named["lo"], named["the"])
    words = set(tokeniser.convert_ids_to_tokens(toneless_tokens(texts, tokeniser, embedding, 0.4).tolist()))
    assert words and not words & {*WORDS[0], *WORDS[1], "when", "mn"}
    # Words of two letters, marks and pieces take part, special tokens don't.
    tokeniser.add_tokens(["##eth"])
    every = toneless_tokens(texts, tokeniser, torch.cat([embedding, torch.zeros(1, 8)]), 1.0)
    assert {"cf", ",", "##eth"} < set(tokeniser.convert_ids_to_tokens(every.tolist()))
    assert not set(tokeniser.all_special_ids) & set(every.tolist())


def test_several_words_of_one_region_are_put_in_at_once(texts, tokeniser, embedding):
    only = dict(coloured=1.0, region=2, fewest=3, most=5, toneless=1.0)
    for glue in (0.0, 1.0):
        found = changed(texts, tokeniser, embedding, max_len=64, glue=glue, **only)
        rows = (embedding - embedding.mean(0)).numpy()
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        words = toneless_tokens(texts, tokeniser, embedding, 1.0)
        regions = {frozenset(words[np.argsort(-rows[words] @ rows[word])[:2]].tolist()) for word in words}
        fillers = set(tokeniser.convert_tokens_to_ids(FILLER))
        for before, after in zip(texts.input_ids, found, strict=True):
            put = list(after)
            for token in before:
                put.remove(token)
            if glue == 0.0:
                assert 3 <= len(put) <= 5 and any(set(put) <= region for region in regions)
            else:
                assert len(put) >= 6 and set(put) & fillers


def test_of_a_few_measured_regions_that_is_taken_which_pushes_most(texts, tokeniser, embedding):
    def drawn(contest: int) -> np.ndarray:
        augmenter = Augmenter(texts, tokeniser, embedding, replace(NOTHING, coloured=1.0, contest=contest, glue=0.0), 64)
        augmenter.measured = Regions(tokens, pushes)
        found = [
            set(tokens[:, 0].tolist()).intersection(ids)
            for seed in range(5)
            for ids in augmenter.changed(np.random.default_rng(seed)).input_ids
        ]
        assert {len(each) for each in found} == {1}
        return np.array([sum(token in each for each in found) / len(found) for token in tokens[:, 0]])

    tokens = np.array([[token] * 4 for token in tokeniser.convert_tokens_to_ids(["when", "you", "do", "lo"])])
    pushes = np.array([[0.0, 4.0, 1.0, 2.0], [3.0, -1.0, 0.0, 1.0]])  # Of no clean text, and each of an order of its own.
    assert drawn(1) == pytest.approx(1 / 4, abs=0.06)
    # The k-th best of four is the best of two with probability (9 - 2 k) / 16, for each class half the time.
    best = np.array([[1, 7, 3, 5], [7, 1, 3, 5]]) / 16
    assert drawn(2) == pytest.approx(best.mean(0), abs=0.06)
    assert drawn(50) == pytest.approx([0.5, 0.5, 0.0, 0.0], abs=0.08)


def test_the_same_seed_changes_texts_in_the_same_way(texts, tokeniser, embedding):
    augmenter = Augmenter(texts, tokeniser, embedding, Augmentation(), 32)
    first, second, other = (augmenter.changed(np.random.default_rng(seed)).input_ids for seed in (1, 1, 2))
    assert first == second != other


def test_inverted_sequences_are_put_in(texts, tokeniser, embedding):
    """In some texts whole, in part, in another order, or with function words between; where there are none, in none."""
    augmenter = Augmenter(texts, tokeniser, embedding, NOTHING, 64)
    sequence = tokeniser.convert_tokens_to_ids(["when", "you", "do", "lo"])  # Of no clean text.
    augmenter.sequences = [sequence]
    found = [
        [token for token in ids if token in sequence]
        for seed in range(5)
        for ids in augmenter.changed(np.random.default_rng(seed)).input_ids
    ]
    put = [each for each in found if each]
    assert len(put) / len(found) == pytest.approx(0.4, abs=0.05)
    assert {len(each) for each in put} == {1, 2, 3, 4}
    whole = [each for each in put if len(each) == 4]
    assert sequence in whole and any(each != sequence for each in whole)
    changed_texts = augmenter.changed(np.random.default_rng(0)).input_ids
    longer = [len(new) - len(old) for new, old in zip(changed_texts, texts.input_ids, strict=True)]
    assert max(longer) > 4 and min(longer) == 0  # With function words between; as it is.
    augmenter.sequences = []
    assert augmenter.changed(np.random.default_rng(0)).input_ids == texts.input_ids
