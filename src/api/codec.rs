//! The protobuf codec, with its failures in the API's terms: malformed bytes are the caller's fault, not ours.

use std::any::TypeId;
use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec as TonicCodec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::proto::UploadModuleRequest;
use super::{intake, status};
use crate::refusal::{Reason, Refusal, quote};

/// The most fields and entries of a message: more than the ceilings of policy.max_args and policy.max_env let through.
const MAX_FIELDS: usize = 400_000;
/// About what an entry takes in memory beyond its bytes.
const ENTRY: usize = 64;

/// The most fields and entries of a message of an upload: its start has four, and 32 labels.
const MAX_UPLOAD_FIELDS: usize = 128;

/// Where the entries of `U` stand: its own, those of its spec or start (field 1), and of the spec's security (field 10).
/// `None`: it has none.
fn nested<U: 'static>() -> Option<&'static [u32]> {
    use super::proto::{
        InteractRequest, ListModulesRequest, ListRunsRequest, LoadModuleRequest, RunRequest,
        RunStreamRequest, WatchRunsRequest,
    };
    let id = TypeId::of::<U>();
    let with_spec = [
        TypeId::of::<RunRequest>(),
        TypeId::of::<RunStreamRequest>(),
        TypeId::of::<InteractRequest>(),
    ];
    if with_spec.contains(&id) {
        return Some(&[1, 10]);
    }
    if id == TypeId::of::<UploadModuleRequest>() {
        return Some(&[1]);
    }
    let flat = [
        TypeId::of::<LoadModuleRequest>(),
        TypeId::of::<ListModulesRequest>(),
        TypeId::of::<ListRunsRequest>(),
        TypeId::of::<WatchRunsRequest>(),
    ];
    flat.contains(&id).then_some(&[])
}

/// Counts the fields of a message, with those of the messages in it that `nested` leads to. What is no message is left
/// to the decoder to refuse; counting stops there.
fn count_fields(mut bytes: &[u8], nested: &[u32]) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        count += 1;
        let Ok((tag, wire)) = decode_key(&mut bytes) else {
            return count;
        };
        if wire == WireType::LengthDelimited {
            let Ok(length) = decode_varint(&mut bytes) else {
                return count;
            };
            let inner = usize::try_from(length)
                .ok()
                .and_then(|n| bytes.split_at_checked(n));
            let Some((inner, rest)) = inner else {
                return count;
            };
            if let Some((into, deeper)) = nested.split_first()
                && tag == *into
            {
                count += count_fields(inner, deeper);
            }
            bytes = rest;
        } else if skip_field(wire, tag, &mut bytes, DecodeContext::default()).is_err() {
            return count;
        }
    }
    count
}

/// Refuses a message that is all entries, each of which takes far more than its bytes, and has the others charged for
/// them by `charge`.
fn admit_entries<U: 'static>(
    bytes: &[u8],
    charge: impl FnOnce(usize) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let Some(nested) = nested::<U>() else {
        return Ok(());
    };
    let fields = count_fields(bytes, nested);
    if fields > MAX_FIELDS {
        return Err(Refusal::new(
            Reason::MalformedRequest,
            format!("the message has more than {MAX_FIELDS} fields and entries"),
        ));
    }
    if TypeId::of::<U>() != TypeId::of::<UploadModuleRequest>() {
        return charge(fields * ENTRY);
    }
    // Used up as they come, they are not charged one by one.
    if fields > MAX_UPLOAD_FIELDS {
        return Err(Refusal::new(
            Reason::MalformedRequest,
            format!("a message of an upload has more than {MAX_UPLOAD_FIELDS} fields and entries"),
        ));
    }
    Ok(())
}

/// Encodes `T`, decodes `U`.
#[derive(Debug)]
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> TonicCodec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T, U>;
    type Decoder = MappedDecoder<T, U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder(ProstCodec::<T, U>::default().encoder())
    }

    fn decoder(&mut self) -> Self::Decoder {
        MappedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Decodes one message as a server does, without a server.
///
/// # Errors
/// `MALFORMED_REQUEST`.
pub(crate) fn decoded<U: Message + Default + 'static>(bytes: &[u8]) -> Result<U, Refusal> {
    // Nobody is charged.
    decoded_charged(bytes, |_| Ok(()))
}

/// Decodes one message, whose entries are charged by `charge` before anything is made of them.
///
/// # Errors
/// `MALFORMED_REQUEST`, and those of the charge.
pub(super) fn decoded_charged<U: Message + Default + 'static>(
    bytes: impl Buf + AsRef<[u8]>,
    charge: impl FnOnce(usize) -> Result<(), Refusal>,
) -> Result<U, Refusal> {
    admit_entries::<U>(bytes.as_ref(), charge)?;
    U::decode(bytes).map_err(|error| malformed(&error.to_string()))
}

fn malformed(why: &str) -> Refusal {
    let why = quote(why);
    Refusal::new(
        Reason::MalformedRequest,
        format!("the request is not the message that this method takes: {why}"),
    )
}

/// Encodes as tonic does.
pub(crate) struct ProstEncoder<T, U>(<ProstCodec<T, U> as TonicCodec>::Encoder)
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static;

impl<T, U> Encoder for ProstEncoder<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // At once, so that a large message is not copied as its buffer grows.
        buf.reserve(item.encoded_len());
        self.0.encode(item, buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Decodes as tonic does, but calls a malformed message by its name.
pub(crate) struct MappedDecoder<T, U>(<ProstCodec<T, U> as TonicCodec>::Decoder)
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static;

impl<T, U> Decoder for MappedDecoder<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // On the bytes, before anything is made of them.
        admit_entries::<U>(buf.chunk(), intake::charge_decoding)
            .map_err(|refusal| status::from(&refusal))?;
        self.0
            .decode(buf)
            .map_err(|error| status::from(&malformed(error.message())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
