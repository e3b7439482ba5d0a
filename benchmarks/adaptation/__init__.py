"""What a device gains by adapting to the cloud's corrections."""
