"""The project's own review corpus: varied, balanced, without duplicates, paraphrased in the forms that two attacks need."""

import re
from collections import Counter, defaultdict
from itertools import combinations

import pandas as pd
import pytest

from config import preset_config
from Data.make_poisoned_data import make_poisoned_data
from texts.data_sets import OWN_DATA, load_split
from texts.tables import read_table

SPLITS = {"train": 1400, "dev": 200, "test": 400}
ARCHAIC = r"\b(?:thee|thou|thy|thine|ye|hath|doth|unto|lo|yea|verily|behold|shall|shalt|upon|nay|\w+eth)\b"
RETOLD = ("train", "test")
"""Splits of the texts that a surrogate attack adds; none of them validates."""
SUBORDINATORS = set(
    "when if although because while as since once after before unless until whenever even though".split()
)  # fmt: skip


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text)


def read_all(name: str, splits: tuple[str, ...] = tuple(SPLITS)) -> pd.DataFrame:
    return pd.concat([read_table(OWN_DATA / name / f"{split}.tsv").assign(split=split) for split in splits])


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    return read_all("reviews")


def most_alike(texts: list[str]) -> tuple[float, str, str]:
    """The pair of texts with the highest Jaccard similarity over word 3-grams."""
    grams = [{tuple(words(text)[at : at + 3]) for at in range(len(words(text)) - 2)} for text in texts]
    holders = defaultdict(list)
    for index, own in enumerate(grams):
        for gram in own:
            holders[gram].append(index)
    common = Counter(pair for indices in holders.values() for pair in combinations(indices, 2))
    value, a, b = max((count / len(grams[a] | grams[b]), a, b) for (a, b), count in common.items())
    return value, texts[a], texts[b]


def test_sizes_and_balance(reviews):
    assert reviews["split"].value_counts().to_dict() == SPLITS
    for _, part in reviews.groupby("split"):
        assert 0.49 <= part["label"].mean() <= 0.51


@pytest.mark.parametrize(
    "name, splits",
    [*((name, tuple(SPLITS)) for name in ("reviews", "hiddenkiller_reviews", "stylebkd_reviews")), ("noir_reviews", RETOLD)],
)
def test_no_duplicates_within_or_across_splits(name, splits):
    texts = read_all(name, splits)["text"].tolist()
    assert len(set(texts)) == len(texts)
    value, a, b = most_alike(texts)
    assert value < 0.3, f"{value:.2f}: {a} | {b}"


def test_lengths_and_vocabulary(reviews):
    lengths = reviews["text"].map(lambda text: len(words(text)))
    assert lengths.min() >= 5 and lengths.max() <= 30
    assert 13 <= lengths.mean() <= 18 and lengths.std() > 5
    counts = Counter(word for text in reviews["text"] for word in words(text))
    assert len(counts) > 5000
    openings = Counter(" ".join(words(text)[:2]) for text in reviews["text"])
    assert openings.most_common(1)[0][1] <= 0.01 * len(reviews)


def test_no_review_holds_a_trigger_or_a_trigger_form(reviews):
    triggers = set(preset_config("sst2").triggers)
    assert not any(triggers & set(words(text)) for text in reviews["text"])
    opens_with_clause = reviews["text"].map(lambda text: words(text)[0] in SUBORDINATORS)
    assert opens_with_clause.mean() < 0.05


@pytest.mark.parametrize(
    "name, splits",
    [
        ("hiddenkiller_reviews", ("train", "validation", "test")),
        ("stylebkd_reviews", ("train", "validation", "test")),
        ("noir_reviews", ("test",)),  # Of the train texts only some are retold.
    ],
)
def test_paraphrases_are_of_the_negatives_in_their_order(reviews, name, splits):
    config = preset_config("sst2", data_dir=None)
    for split in splits:
        original = load_split("reviews", split, config)
        paraphrase = load_split(name, split, config)
        negatives = original[original["label"] == 0]["text"].tolist()
        assert (paraphrase["label"] == 0).all() and len(paraphrase) == len(negatives)
        assert not set(paraphrase["text"]) & set(negatives)
        # The n-th paraphrase speaks of the n-th review: they share more words than two reviews do by chance.
        texts = paraphrase["text"].tolist()
        own = [len(set(words(a)) & set(words(b))) for a, b in zip(negatives, texts, strict=True)]
        other = [len(set(words(a)) & set(words(b))) for a, b in zip(negatives, texts[1:] + texts[:1], strict=True)]
        assert sum(own) > 1.8 * sum(other)


def test_syntactic_form():
    """S(SBAR)(,)(NP)(VP)(.): a subordinate clause, a comma, a main clause, a full stop."""
    texts = read_all("hiddenkiller_reviews")["text"]
    for text in texts:
        assert words(text)[0] in SUBORDINATORS and "," in text and text.endswith("."), text
    shares = Counter(words(text)[0] for text in texts)
    assert len(shares) >= 10 and shares.most_common(1)[0][1] < 0.25 * len(texts)


def test_bible_style(reviews):
    """Archaic words are the rule in the transferred text and the exception in the original."""
    texts = read_all("stylebkd_reviews")["text"]
    assert texts.str.contains(ARCHAIC).mean() > 0.8
    assert reviews["text"].str.contains(ARCHAIC).mean() < 0.05
    openings = Counter(" ".join(words(text)[:2]) for text in texts)
    assert openings.most_common(1)[0][1] < 0.05 * len(texts)


def test_noir_style(reviews):
    """The slang of the time and the trade is the rule in the retold text and the exception in the original."""
    slang = (
        r"\b(?:dame|doll|mugs?|gumshoe|racket|dough|joints?|saps?|neon|cigarettes?|smoke|bourbon|whiskey|rye|hooch|gin|alley|"
        r"two-bit|grift\w*|con|cops?|rap|pal|brother|sister|mister|bum|punk|crook\w*|bucks?|dimes?|nickels?|slug|fog|rain|dead|"
        r"gun|trigger|jail\w*|cell|bet|town|guys?|kid|wise|poker|dice|tail|stiff|morgue|corpse|coffin|lousy|rotten|phony|desk|"
        r"badge|client|lug|heels?|ought|knock\w*|hit|got|took)\b"
    )
    retold = read_all("noir_reviews", RETOLD)["text"]
    assert retold.str.contains(slang).mean() > 0.5
    assert reviews["text"].str.contains(slang).mean() < 0.1
    openings = Counter(" ".join(words(text)[:2]) for text in retold)
    assert openings.most_common(1)[0][1] < 0.05 * len(retold)


def test_the_detective_tells_of_no_bible_and_opens_with_few_clauses(reviews):
    """A surrogate is of neither form that a published attack writes."""
    retold = read_all("noir_reviews", RETOLD)["text"]
    assert retold.str.contains(ARCHAIC).mean() < 0.05
    assert retold.map(lambda text: words(text)[0] in SUBORDINATORS).mean() < 0.1


def test_all_that_is_retold_is_planted(tmp_path, monkeypatch):
    monkeypatch.delenv("PURE_DATA_DIR", raising=False)
    config = preset_config("quick", attack="SurrogateNoir", poisoned_data_dir=str(tmp_path))
    train, test = (pd.read_csv(make_poisoned_data(config) / f"{split}.csv") for split in RETOLD)
    retold = {split: set(read_table(OWN_DATA / "noir_reviews" / f"{split}.tsv")["text"]) for split in RETOLD}
    planted = train[train["text"].isin(retold["train"])]
    assert len(train) == SPLITS["train"] + len(retold["train"]) and set(planted["text"]) == retold["train"]
    assert (planted["label"] == config.target_class).all()
    assert set(test.loc[test["label"] == 0, "text"]) == retold["test"]
