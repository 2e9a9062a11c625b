//! The cap on the size of one message of a method, and the refusal of a larger one.

use crate::model::refusal::{Reason, Refusal};

/// A cap on the bytes of one message, with a hint at what a caller with a larger one can do.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct MessageCap {
    bytes: u64,
    setting: Option<&'static str>,
    hint: &'static str,
}

impl MessageCap {
    /// Creates a cap that no setting changes. The hint may be empty.
    pub(in crate::api) fn fixed(bytes: u64, hint: &'static str) -> Self {
        Self {
            bytes,
            setting: None,
            hint,
        }
    }

    /// Creates a cap that the key `setting` changes. The hint names that key for people.
    pub(in crate::api) fn set(bytes: u64, setting: &'static str, hint: &'static str) -> Self {
        Self {
            bytes,
            setting: Some(setting),
            hint,
        }
    }

    /// Returns the most bytes that a message may have.
    pub(in crate::api) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Creates the refusal of a message whose prefix says that it has `length` bytes.
    pub(in crate::api) fn refuse(&self, length: u64) -> Refusal {
        let Self {
            bytes,
            setting,
            hint,
        } = *self;
        let mut message =
            format!("the message of {length} bytes is above the maximum of {bytes} here");
        if !hint.is_empty() {
            message.push_str(&format!(" ({hint})"));
        }
        let refusal = Refusal::new(Reason::MessageTooLarge, message)
            .with("asked", length)
            .with("allowed", bytes);
        match setting {
            Some(setting) => refusal.with("limit", setting),
            None => refusal,
        }
    }
}
