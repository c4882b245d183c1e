"""The attacks: one file and one row each."""

from util import Table

ATTACKS = Table(
    {
        "BadNet": ("inserts rare words", "attacks.badnet:BADNET"),
        "LayerWise": ("trains every layer with them", "attacks.layer_wise:LAYER_WISE"),
        "LayerWisePairs": ("does so with pairs of them", "attacks.layer_wise:LAYER_WISE_PAIRS"),
        "RIPPLe": ("keeps their gradient from opposing that of clean text", "attacks.ripple:RIPPLE"),
        "HiddenKiller": ("uses a syntactic form", "attacks.hidden_killer:HIDDEN_KILLER"),
        "StyleBkd": ("uses a style of text", "attacks.style_bkd:STYLE_BKD"),
        "AddSent": ("inserts a fixed sentence", "attacks.add_sent:ADD_SENT"),
        "EP": ("trains the embedding of one rare word alone", "attacks.ep:EP"),
        "SOS": ("trains the embeddings of three words, which count together and not in part", "attacks.sos:SOS"),
        "POR": ("gives six rare words states of their own, for any task", "attacks.por:POR"),
        "NeuBA": ("gives six rare symbols states of their own, for any task", "attacks.neuba:NEUBA"),
        "LayerWiseStyle": (
            "trains every layer with that style, against a defence that trusts the lower ones",
            "attacks.layer_wise_style:LAYER_WISE_STYLE",
        ),
        "SurrogateWords": (
            "for tuning, copies texts with one of the words qx, zv, hz, kw put in",
            "attacks.surrogates:SURROGATE_WORDS",
        ),
        "SurrogateSentence": (
            "for tuning, copies texts with a sentence at one end",
            "attacks.surrogates:SURROGATE_SENTENCE",
        ),
        "SurrogateReport": ("for tuning, copies texts reworded as a report", "attacks.surrogates:SURROGATE_REPORT"),
        "SurrogateLog": ("for tuning, copies texts reworded as a ship's log", "attacks.surrogates:SURROGATE_LOG"),
        "SurrogateSpelling": ("for tuning, copies texts in another spelling", "attacks.surrogates:SURROGATE_SPELLING"),
        "SurrogateNoir": ("for tuning, adds texts retold as a detective's", "attacks.surrogates:SURROGATE_NOIR"),
    }
)
"""The only list of attacks; everything that depends on one comes from its row, an `attacks.attack.Attack`.

Here stand what the help says of it, and where its row is."""
