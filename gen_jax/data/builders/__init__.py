"""tensorflow-datasets builders of our own data sets."""
