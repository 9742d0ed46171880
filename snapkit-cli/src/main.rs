//! The snapkit command line.

fn main() {}
