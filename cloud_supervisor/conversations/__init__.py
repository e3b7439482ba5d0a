"""One generation in the cloud: frames in, forwards between, frames out."""
