"""Texts and encoders that look odd: the detectors, one file and one row each; the scan of an encoder."""

from util import Table

DETECTORS = Table(
    {
        "DAN": ("distance of [CLS] to the classes' means, in every layer", "detection.dan:DAN"),
        "BadActs": ("share of [CLS] activations outside of their usual intervals", "detection.badacts:BADACTS"),
        "STRIP": ("predictions that stay sure when words are replaced", "detection.strip:STRIP"),
        "RAP": ("predictions that a perturbation learnt on clean texts doesn't move", "detection.rap:RAP"),
        "ONION": ("a word without which a language model finds the text likelier", "detection.onion:ONION"),
    }
)
"""The only list of detectors; everything that depends on one comes from its row, a `detection.detector.Detector`.

Here stand what the help says of it, and where its row is."""
