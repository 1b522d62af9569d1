"""Admit, Retry and Settle over gRPC: grants, idempotence, and each way to be refused."""


