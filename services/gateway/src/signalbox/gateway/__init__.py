"""The gateway: speaks the clients' wire formats and moves bytes."""
