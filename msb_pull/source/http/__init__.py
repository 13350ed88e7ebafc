"""HTTP: sockets, TLS, proxies, redirects, retries. Nothing here knows registries."""
