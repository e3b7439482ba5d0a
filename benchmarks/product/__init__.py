"""What a user installs: its footprint, and the endpoint."""
