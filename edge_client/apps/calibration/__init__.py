"""`chaperone calibrate`: fit a gate to a pair of models and a workload."""
