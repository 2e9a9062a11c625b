//! The protobuf codec. It limits the number of a message's entries before it decodes them, and
//! reports malformed bytes in the terms of the API, as the caller's fault.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec as TonicCodec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::methods::{ApiMessage, EntryRule};
use crate::model::refusal::{Reason, Refusal, quote};
use crate::run::RequestCharge;

/// The most fields and entries of a message. This is more than the ceilings of `policy.max_args`
/// and `policy.max_env` let through.
const MAX_FIELDS: usize = 400_000;
/// The memory that an entry takes beyond its own bytes, in bytes, approximately.
const ENTRY: usize = 64;

/// The most fields and entries of a message of an upload, whose start has four fields and 32
/// labels.
const MAX_UPLOAD_FIELDS: usize = 128;

tokio::task_local! {
    /// The charge of the request that is being decoded.
    pub(super) static DECODING_CHARGE: Option<RequestCharge>;
}

/// Charges the request that is being decoded for the memory that its entries take beyond their
/// bytes.
///
/// # Errors
/// The refusal of [`RequestCharge::add`].
pub(super) fn charge_decoding(bytes: usize) -> Result<(), Refusal> {
    let charged = DECODING_CHARGE.try_with(|current| match current {
        Some(charge) => charge.add(bytes),
        None => Ok(()),
    });
    // Outside a request there is nobody to charge: a client decodes answers.
    charged.unwrap_or(Ok(()))
}

/// Counts the fields of a message, and those of the messages inside it that the path `nested` leads
/// to, which has the numbers of the fields to follow at each level. Counting stops at bytes that
/// are no message; the decoder refuses them.
fn count_fields(mut bytes: &[u8], nested: &[&[u32]]) -> usize {
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
                && into.contains(&tag)
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

/// Refuses a message with too many entries, since each takes far more memory than its bytes, and
/// charges the entries of any other message with `charge`.
fn admit_entries<U: ApiMessage>(
    bytes: &[u8],
    charge: impl FnOnce(usize) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    match U::ENTRIES {
        EntryRule::Uncounted => Ok(()),
        EntryRule::Charged(nested) => {
            let fields = count_fields(bytes, nested);
            if fields > MAX_FIELDS {
                return Err(too_many_fields("the message", MAX_FIELDS));
            }
            charge(fields * ENTRY)
        }
        EntryRule::Few(nested) => match count_fields(bytes, nested) > MAX_UPLOAD_FIELDS {
            true => Err(too_many_fields("a message of an upload", MAX_UPLOAD_FIELDS)),
            false => Ok(()),
        },
    }
}

/// Creates the refusal of a message that has more than `most` fields and entries.
fn too_many_fields(message: &str, most: usize) -> Refusal {
    let message = format!("{message} has more than {most} fields and entries");
    Refusal::new(Reason::MalformedRequest, message)
}

/// The codec that encodes messages of type `T` and decodes those of type `U`.
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
    U: ApiMessage + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = PresizedEncoder<T, U>;
    type Decoder = MappedDecoder<T, U>;

    fn encoder(&mut self) -> Self::Encoder {
        PresizedEncoder(ProstCodec::<T, U>::default().encoder())
    }

    fn decoder(&mut self) -> Self::Decoder {
        MappedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Decodes one message as the server does, but outside of a server.
///
/// # Errors
/// `MALFORMED_REQUEST` if the bytes are not such a message, or if it has too many entries.
pub(crate) fn decoded<U: ApiMessage>(bytes: &[u8]) -> Result<U, Refusal> {
    // Outside of a server, nobody is charged.
    decoded_charged(bytes, |_| Ok(()))
}

/// Decodes one message, whose entries `charge` charges before any memory is allocated for them.
///
/// # Errors
/// `MALFORMED_REQUEST` as for [`decoded`], and the errors of `charge`.
pub(super) fn decoded_charged<U: ApiMessage>(
    bytes: impl Buf + AsRef<[u8]>,
    charge: impl FnOnce(usize) -> Result<(), Refusal>,
) -> Result<U, Refusal> {
    admit_entries::<U>(bytes.as_ref(), charge)?;
    U::decode(bytes).map_err(|error| malformed(&error.to_string()))
}

/// Creates the refusal of bytes that cannot be decoded, for the reason `why`.
fn malformed(why: &str) -> Refusal {
    let why = quote(why);
    Refusal::new(
        Reason::MalformedRequest,
        format!("the request is not the message that this method takes: {why}"),
    )
}

/// An encoder that works as tonic's does, but reserves room for the whole message first.
pub(crate) struct PresizedEncoder<T, U>(<ProstCodec<T, U> as TonicCodec>::Encoder)
where
    T: Message + Send + 'static,
    U: ApiMessage + Send + 'static;

impl<T, U> Encoder for PresizedEncoder<T, U>
where
    T: Message + Send + 'static,
    U: ApiMessage + Send + 'static,
{
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // Reserved at once, so that a large message is not copied as its buffer grows.
        buf.reserve(item.encoded_len());
        self.0.encode(item, buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// A decoder that works as tonic's does, but limits and charges entries first, and refuses a
/// malformed message as `MALFORMED_REQUEST`.
pub(crate) struct MappedDecoder<T, U>(<ProstCodec<T, U> as TonicCodec>::Decoder)
where
    T: Message + Send + 'static,
    U: ApiMessage + Send + 'static;

impl<T, U> Decoder for MappedDecoder<T, U>
where
    T: Message + Send + 'static,
    U: ApiMessage + Send + 'static,
{
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The entries are counted in the encoded bytes, before anything is decoded.
        admit_entries::<U>(buf.chunk(), charge_decoding)?;
        self.0
            .decode(buf)
            .map_err(|error| Status::from(&malformed(error.message())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
