"""Options of a cluster: those of `trimtab serve`, and how many engines there are."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.server.commands.serve.config import ServeConfig

ENGINE, INGRESS = "Engine", "Ingress"
"""Names of the deployments, by which Ray's configuration changes their options."""


@dataclass(frozen=True)
class ClusterConfig(ServeConfig):
    """As `trimtab serve`, by engines in processes of their own behind one address, which is Ray's: host, port
    and the certificate are its proxy's options.

    min_replicas: engines that there always are.
    max_replicas: engines that there are at most, when requests wait.
    """

    min_replicas: int = 1
    max_replicas: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_replicas <= self.max_replicas or not self.max_replicas:
            raise ValueError(
                f"min_replicas must be 0 to max_replicas, got {self.min_replicas} of {self.max_replicas}"
            )
        if self.tls_certificate is not None:
            raise ValueError("tls_certificate is not for a cluster, where Ray's proxy listens; leave it out")
        if self.access.heads_dir is not None:
            raise ValueError("heads_dir is not for a cluster, whose engines load all heads when they start")
