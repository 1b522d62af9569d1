"""The gRPC face of the ledger: streams of batches in, answers and committed rows out."""
