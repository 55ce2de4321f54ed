"""What a deployment leaves open, by its settings, to whoever is on the way: said once, at its start."""

import structlog

from app.settings import HttpSettings

log = structlog.stdlib.get_logger()


def warn_of_open_doors(http: HttpSettings) -> None:
    """Tokens would cross the network as they are."""
    if http.beyond_loopback and not http.ssl_certfile:
        log.warning(
            "http.unencrypted_beyond_loopback",
            host=http.host,
            advice="tokens can be read on the way: give --ssl-certfile, or keep a proxy that speaks TLS in front",
        )
    if http.oauth and http.oauth.unencrypted:
        advice = "its keys can be changed on the way: use https"
        log.warning("oauth.unencrypted", issuer=http.oauth.issuer, advice=advice)
