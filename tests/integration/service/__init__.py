"""Tests of one running service. A package, so that the service ends with them: it holds CPUs that others need."""
