"""The signalbox command, the supervisor behind up, the file watcher."""
