//! A request as a test writes it: by name, with text as payload.

use crate::message::{Message, kind};

/// Its bytes.
pub(crate) fn request(what: &str, tx_id: u32, payload: &str) -> Vec<u8> {
    let message = Message {
        kind: kind(what).unwrap(),
        req_id: 1,
        tx_id,
        payload: payload.as_bytes().to_vec(),
    };
    message.encode()
}
