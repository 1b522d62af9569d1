"""What stands behind `signalbox up`: one process that starts, watches, restarts and stops all the others."""
