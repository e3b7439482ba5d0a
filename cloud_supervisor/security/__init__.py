"""Identity and transport: tokens, certificates, TLS, and the caller that they name."""
