"""Figures, words and pages about what was found."""
