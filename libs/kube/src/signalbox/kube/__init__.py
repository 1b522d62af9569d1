"""The Kubernetes API as Signalbox uses it: kubeconfig or pod, plain JSON objects, errors of our own tree.

What the objects mean is the callers' business.
"""

from signalbox.kube.cluster import Cluster, connect
from signalbox.kube.kinds import CUSTOM_KINDS

__all__ = ["CUSTOM_KINDS", "Cluster", "connect"]
