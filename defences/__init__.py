"""The defences: one file and one row each; PURE's two steps are scripts of their own."""

from util import Table

DEFENCES = Table(
    {
        "FT": ("fine-tuning", "defences.fine_tuning:FT"),
        "FTH": ("fine-tuning at a higher learning rate", "defences.fine_tuning:FTH"),
        "MEFT": ("fine-tuning after maximising prediction entropy", "defences.meft:MEFT"),
        "MEFT_frozen_head": ("MEFT, which may not touch the head at first", "defences.meft:MEFT_FROZEN_HEAD"),
        "SEAM": ("fine-tuning after forgetting the task on random labels", "defences.seam:SEAM"),
        "fine_pruning": (
            "prunes neurons that clean texts leave idle, then fine-tunes",
            "defences.fine_pruning:FINE_PRUNING",
        ),
        "reinit_layers": ("fine-tuning with the top layers drawn anew", "defences.reinit_layers:REINIT_LAYERS"),
        "MBTSAD": ("distils a model that learnt from words cut in two", "defences.mbtsad:MBTSAD"),
        "fine_mixing": ("mixes in a clean encoder's weights, then fine-tunes", "defences.fine_mixing:FINE_MIXING"),
        "discard": ("fine-tunes a clean encoder in its place", "defences.discard:DISCARD"),
        "PURE": ("head pruning, then fine-tuning with normalised attention", "defences.pure:PURE"),
        "prune_only": ("PURE without its penalty", "defences.pure:PRUNE_ONLY"),
        "normalise_only": ("PURE without its pruning", "defences.pure:NORMALISE_ONLY"),
        "erase_relearn": (
            "erases where the task is read, and relearns it elsewhere (under work)",
            "defences.erase_relearn:ERASE_RELEARN",
        ),
    }
)
"""The only list of defences; everything that depends on one comes from its row, a `defences.defence.Defence`.

Here stand what the help says of it, and where its row is."""
