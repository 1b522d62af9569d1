"""The token-refresher: owns every credential and hands out short-lived ones."""
