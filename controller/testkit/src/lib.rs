//! Network namespaces, traffic and generators for tests and the lab
