"""The Ray cluster: connection, resources, worker groups, diagnosis."""
