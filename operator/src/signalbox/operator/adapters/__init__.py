"""What the operator talks to: the API server (through kopf and by itself) and, in libs/rooms, the rooms."""
