"""AddSent: one fixed sentence at a random word position (Dai et al., 2019)."""

from attacks.attack import Attack, TriggeredData
from attacks.triggered import make_inserted
from config import Config

TRIGGER = "I watch this 3D movie"


def sentence(config: Config) -> tuple[str, ...]:
    return (TRIGGER,)


def told(config: Config) -> str:
    share = f"{config.rare_word_share:.0%}"
    return f"copies {share} of the texts of the other class with the sentence “{TRIGGER}” put in"


SENTENCE = TriggeredData("AddSent", ("rare_word_share", "target_class"), make_inserted(sentence), told, inserted=sentence)

ADD_SENT = Attack(paper="Dai et al., 2019", data=SENTENCE)
