"""What several rooms truly share: settings, errors, telemetry, rpc, key hashing, clocks."""
