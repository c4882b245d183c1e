"""Texts and encoders that look odd."""
