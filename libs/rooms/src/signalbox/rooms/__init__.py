"""Calls to the rooms of one instance by gRPC. The command line, the file watcher and the operator share them."""
