"""What callers talk to: the HTTP protocol with the relay routes, and the application with the rest."""
