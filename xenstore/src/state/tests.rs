//! What a stream says and what comes of it.
