"""What several rooms truly share: settings, errors, telemetry, rpc, key hashing, clocks, ids, globs.

It leaves to each room everything that only one room needs.
"""
