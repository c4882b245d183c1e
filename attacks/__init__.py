"""The attacks: one file and one row each."""

from attacks.add_sent import ADD_SENT
from attacks.attack import Attack
from attacks.badnet import BADNET
from attacks.ep import EP
from attacks.hidden_killer import HIDDEN_KILLER
from attacks.layer_wise import LAYER_WISE
from attacks.ripple import RIPPLE
from attacks.sos import SOS
from attacks.style_bkd import STYLE_BKD
from attacks.surrogates import SURROGATE_REPORT, SURROGATE_SENTENCE, SURROGATE_WORDS

ATTACKS: dict[str, Attack] = {
    "BadNet": BADNET,
    "LayerWise": LAYER_WISE,
    "RIPPLe": RIPPLE,
    "HiddenKiller": HIDDEN_KILLER,
    "StyleBkd": STYLE_BKD,
    "AddSent": ADD_SENT,
    "EP": EP,
    "SOS": SOS,
    "SurrogateWords": SURROGATE_WORDS,
    "SurrogateSentence": SURROGATE_SENTENCE,
    "SurrogateReport": SURROGATE_REPORT,
}
"""The only list of attacks; everything that depends on one comes from its row."""
