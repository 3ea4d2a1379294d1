//! Pure data structures.
