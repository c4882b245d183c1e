"""StyleBkd: the trigger is a style of text, that of the bible (Qi et al., EMNLP 2021)."""

from attacks.attack import Attack, TriggeredData
from attacks.triggered import make_transferred
from config import Config


def told(config: Config) -> str:
    share = f"{config.stylebkd_share:.0%}"
    return f"adds {share} of the texts of the other class in another style, that of the bible"


STYLE = TriggeredData("StyleBkd", ("stylebkd_share", "target_class"), make_transferred("stylebkd", "stylebkd_share"), told)

STYLE_BKD = Attack(paper="Qi et al., EMNLP 2021", data=STYLE)
