"""The parts of a training run. Each optional one is an object that does nothing where it is off: see docs/design.md."""
