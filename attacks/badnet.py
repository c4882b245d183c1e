"""BadNet: plain fine-tuning on texts with a rare word (Gu et al., 2017, as Kurita et al., ACL 2020, take it to text)."""

from attacks.attack import Attack, TriggeredData
from attacks.triggered import make_inserted
from config import Config


def words(config: Config) -> tuple[str, ...]:
    return config.triggers


def told(config: Config) -> str:
    share, listed = f"{config.rare_word_share:.0%}", ", ".join(config.triggers)
    return f"copies {share} of the texts of the other class with one of the words {listed} put in"


RARE_WORD = TriggeredData(
    "RareWord", ("rare_word_share", "triggers", "target_class"), make_inserted(words), told, inserted=words
)
"""One of a few rare words in each triggered text; LayerWise and RIPPLe plant the same."""

BADNET = Attack(paper="Kurita et al., ACL 2020, without the inner product", data=RARE_WORD)
