"""Applications on top of the SDK: the command line, batches, and the fitting of gates."""
