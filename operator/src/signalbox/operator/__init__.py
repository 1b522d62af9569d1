"""The operator: reconciles custom resources into the rooms and reports back in their status."""
