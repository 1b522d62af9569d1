"""What the operator decides: pure, with injected time. No API server, no rooms."""
