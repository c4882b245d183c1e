"""Defences beside PURE's own two scripts."""
