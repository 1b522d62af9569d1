"""The gRPC face of the token-refresher."""
