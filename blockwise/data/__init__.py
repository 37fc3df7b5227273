"""What data/*/prepare.py share: reading sources, writing a data set."""
