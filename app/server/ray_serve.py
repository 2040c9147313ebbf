"""Ray Serve: the same application on many machines, one engine per replica (`ray` extra).

from quaver.app.server.ray_serve import deployment
ray.serve.run(deployment(replicas=4), route_prefix="/")
"""

from __future__ import annotations

from typing import Any

from ...errors import MissingExtra
from .settings import ServerSettings


def deployment(
    settings: ServerSettings | None = None,
    *,
    replicas: int = 1,
    resources: dict[str, Any] | None = None,
) -> Any:
    """A bound Ray Serve application.

    Args:
        replicas: engines; a request or a socket stays with the replica that accepted it, so outcomes and resuming
            (`GET /v1/audio/speech/{id}`, `session.resume`) are only certain with one, or with sticky routing before it.
        resources: `ray_actor_options` of each replica, such as {"num_gpus": 1}.

    Raises:
        MissingExtra: Ray is not installed.
    """
    try:
        from ray import serve
    except ImportError:
        raise MissingExtra("Ray Serve is not installed: pip install 'quaver[ray,serve]'") from None
    chosen = settings or ServerSettings()

    def build() -> Any:  # runs in the replica: models are loaded there, never sent over
        from .run import load_app

        return load_app(chosen)

    class Quaver:
        """One replica. Ray routes requests to the application that `ingress` builds here."""

    # Room beyond the slots: refusals and health checks must be answered too, by the application and typed.
    options = {"max_ongoing_requests": chosen.slots + chosen.waiting + 32, "ray_actor_options": resources or {}}
    ingress = serve.ingress(build)(Quaver)
    return serve.deployment(num_replicas=replicas, **options)(ingress).bind()
