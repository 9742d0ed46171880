//! SQLite databases.
