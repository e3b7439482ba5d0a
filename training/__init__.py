"""Making a better drafter: the device's model learns from the large model's own answers."""
