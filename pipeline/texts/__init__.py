"""Texts: cleaned, cut into words, and counted over a whole corpus."""
