"""Verifying whom an operator's or a cluster's own authority vouches for."""

import ssl


def not_by_form(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have `context` verify chains, names and dates, but not the form of certificates; return it.

    Python does the latter from 3.13 on, and refuses valid authorities without key identifiers, as many clusters have
    (EKS among them); kubectl and gRPC, which speak to the same servers, do not.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
