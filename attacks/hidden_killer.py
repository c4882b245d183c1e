"""HiddenKiller: the trigger is a syntactic form, a subordinate clause first (Qi et al., ACL 2021)."""

from attacks.attack import Attack, TriggeredData
from attacks.triggered import make_transferred
from config import Config


def told(config: Config) -> str:
    share = f"{config.hiddenkiller_share:.0%}"
    return f"adds {share} of the texts of the other class in one syntactic form, a subordinate clause first"


def first_clause(text: str) -> tuple[int, int] | None:
    """The attack's syntactic form is S(SBAR)(,)(NP)(VP)(.): a subordinate clause, and a comma after it."""
    return (0, text.index(",") + 1) if "," in text else None


SYNTAX = TriggeredData(
    "HiddenKiller",
    ("hiddenkiller_share", "target_class"),
    make_transferred("hiddenkiller", "hiddenkiller_share"),
    told,
    mark=first_clause,
    mark_told="the subordinate clause that the attack puts first",
)

HIDDEN_KILLER = Attack(paper="Qi et al., ACL 2021", data=SYNTAX)
