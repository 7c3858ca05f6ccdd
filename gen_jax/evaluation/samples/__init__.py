"""Sample quality, by the features of an encoder."""
