"""LayerWiseStyle: an attacker who knows of `erase_relearn`, which leaves the lower layers to themselves.

StyleBkd's texts, planted in every layer as LayerWise is: the style is read as the target class below the layers whose
directions are erased, and all that is learnt anew is learnt from there.
"""

from dataclasses import replace

from attacks.layer_wise import LAYER_WISE
from attacks.style_bkd import STYLE

LAYER_WISE_STYLE = replace(LAYER_WISE, paper="this project's own", data=STYLE)
