"""Public test suites against a server: one module a suite, each a stream of Cases."""
