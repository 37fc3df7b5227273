"""What measure.py does: choose the models, measure each one, write and print what was found."""
