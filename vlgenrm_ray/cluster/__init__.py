"""The Ray cluster: connection, resources, worker groups, diagnosis, and all private Ray API."""
