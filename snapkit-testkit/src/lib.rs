//! Conformance suites and doubles.
