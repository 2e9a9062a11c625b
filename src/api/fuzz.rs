//! The fuzzing entry point of the decoders. It takes a message from its bytes to what it asks for,
//! with the functions that the server uses.

use tonic::{Code, Status};

use super::codec::decoded;
use super::layers::call_deadline::CallTiming;
use super::{decode, decode_runs, decode_stats, proto};
use crate::model::limits::OutputMode;
use crate::model::policy::Policy;
use crate::model::refusal::Refusal;
use crate::model::request::{Digest, RunId};

/// Decodes `bytes` as each message that a client sends, and checks that a client can read every
/// refusal.
///
/// # Panics
/// If a client cannot, or if a spec and its clone have different fingerprints.
pub(crate) fn message(bytes: &[u8], policy: &Policy) {
    judge(spec(bytes, policy, OutputMode::Captured));
    judge(spec(bytes, policy, OutputMode::Streamed));
    judge(decoded(bytes).and_then(|message| decode::load(message, policy).map(drop)));
    judge(decoded(bytes).and_then(|message| decode::page(message).map(drop)));
    judge(decoded(bytes).and_then(|message| decode_runs::run_page(message).map(drop)));
    judge(decoded(bytes).and_then(|message| {
        let proto::WatchRunsRequest { states, labels } = message;
        decode_runs::selector(states, labels).map(drop)
    }));
    judge(decoded(bytes).and_then(|message| decode_runs::cancel_runs(message).map(drop)));
    judge(decoded(bytes).and_then(|message| decode_runs::delete_runs(message).map(drop)));
    judge(decoded(bytes).and_then(|message| decode_stats::stats_watch(message).map(drop)));
    judge(decoded(bytes).and_then(|message| {
        let proto::GetStatsRequest { history } = message;
        decode_stats::stats_history(history).map(drop)
    }));
    judge(decoded(bytes).and_then(|message| {
        let proto::UploadModuleRequest { frame } = message;
        match frame {
            Some(proto::upload_module_request::Frame::Start(start)) => {
                decode::upload(start).map(drop)
            }
            Some(proto::upload_module_request::Frame::Chunk(_)) | None => Ok(()),
        }
    }));
    judge(decoded(bytes).and_then(|message| {
        let proto::GetModuleRequest { digest } = message;
        Digest::parse("digest", &digest).map(drop)
    }));
    judge(decoded(bytes).and_then(|message| {
        let proto::GetRunRequest { run_id } = message;
        RunId::parse("run_id", &run_id).map(drop)
    }));
    judge(decoded(bytes).and_then(|message| decode::sent_input(message).map(drop)));
    if let Ok(value) = http::HeaderValue::try_from(bytes) {
        let mut headers = http::HeaderMap::new();
        headers.insert("grpc-timeout", value);
        judge(CallTiming::now(&headers).response_deadline().map(drop));
    }
}

fn spec(bytes: &[u8], policy: &Policy, delivery: OutputMode) -> Result<(), Refusal> {
    let proto::InteractRequest { frame } = decoded(bytes)?;
    if let Some(proto::interact_request::Frame::Start(start)) = frame {
        let spec = decode::spec(Some(*start), policy, delivery)?;
        decode::interactive(&spec)?;
    }
    let proto::RunRequest { spec } = decoded(bytes)?;
    let spec = decode::spec(spec, policy, delivery)?;
    // Idempotency keys rely on equal specs having equal fingerprints.
    let of = Digest::of(bytes);
    assert_eq!(spec.fingerprint(of), spec.clone().fingerprint(of));
    Ok(())
}

/// Checks that a refusal blames the caller, and that it fits into the headers that clients accept.
fn judge(result: Result<(), Refusal>) {
    let Err(refusal) = result else {
        return;
    };
    let status: Status = Status::from(&refusal);
    assert_ne!(status.code(), Code::Internal, "{status:?}");
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) && *byte != b'%';
    let message: usize = status
        .message()
        .bytes()
        .map(|byte| if plain(&byte) { 1 } else { 3 })
        .sum();
    let encoded = message + status.details().len().div_ceil(3) * 4;
    assert!(encoded < 4096, "{encoded} bytes of error");
}
