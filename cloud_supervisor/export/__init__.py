"""Pull weights and convert them into the models of a pair."""
