//! Objects in, PolicySet and findings out; pure
