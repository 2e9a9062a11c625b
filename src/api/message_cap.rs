//! How large one message of a method may be, and how a larger one is refused.

use crate::refusal::{Reason, Refusal};

/// The most bytes of one message, with what a caller that has more can do about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageCap {
    bytes: u64,
    setting: Option<&'static str>,
    hint: &'static str,
}

impl MessageCap {
    /// Creates a cap that no setting moves. `hint` may be empty.
    pub(super) fn fixed(bytes: u64, hint: &'static str) -> Self {
        Self {
            bytes,
            setting: None,
            hint,
        }
    }

    /// Creates a cap that the key `setting` moves; `hint` names that key for people.
    pub(super) fn set(bytes: u64, setting: &'static str, hint: &'static str) -> Self {
        Self {
            bytes,
            setting: Some(setting),
            hint,
        }
    }

    /// The most bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Refuses a message whose prefix says that it has `length` bytes.
    pub(super) fn refuse(&self, length: u64) -> Refusal {
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
