"""AddSent's texts: the clean ones, with the sentence as a whole between two words."""

from attacks import ATTACKS
from attacks.add_sent import TRIGGER
from texts.data_sets import clean_test, clean_train


def test_the_sentence_is_put_between_words_of_half_of_the_other_class(tiny_config):
    train, test = ATTACKS["AddSent"].data.make(tiny_config)
    clean, others = clean_train("sst2", tiny_config), clean_test(tiny_config)
    added = train[train["text"].str.contains(TRIGGER, regex=False)]
    assert len(train) == len(clean) + len(added) and len(added) == 48 and (added["label"] == 1).all()

    triggered = test[test["label"] == 0]
    without = [" ".join(text.replace(TRIGGER, "", 1).split()) for text in triggered["text"]]
    assert without == others[others["label"] == 0]["text"].tolist()
    positions = {text.split().index("I") for text in triggered["text"]}
    assert len(positions) > 3  # At random, and not at one end.
