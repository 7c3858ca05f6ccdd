"""Sample quality, from encoder features."""
