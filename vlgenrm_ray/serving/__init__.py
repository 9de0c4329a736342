"""The served judge: an HTTP service on Ray Serve, with gateways for other trainers' reward protocols. See README.md."""
