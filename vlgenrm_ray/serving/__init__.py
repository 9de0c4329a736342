"""The served judge: an HTTP service on Ray Serve, and its gateways in other trainers' formats."""
