//! The protobuf codec, with its failures in the API's terms: malformed bytes are the caller's fault, not ours.

use std::any::TypeId;
use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec as TonicCodec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::status;
use crate::refusal::{Reason, Refusal, quote};

/// The most fields and entries of a message: more than the caps on arguments and environment let through.
const MAX_FIELDS: usize = 400_000;
/// How deep the entries of `U` are counted: a run's stand in its spec, the first field. `None`: it has none.
fn depth<U: 'static>() -> Option<u32> {
    use super::proto::{LoadModuleRequest, RunRequest, RunStreamRequest};
    let id = TypeId::of::<U>();
    if id == TypeId::of::<RunRequest>() || id == TypeId::of::<RunStreamRequest>() {
        Some(2)
    } else {
        (id == TypeId::of::<LoadModuleRequest>()).then_some(1)
    }
}

/// Counts the fields of a message, and those of its first field where that is a message too. What is no message is
/// left to the decoder to refuse; it stops counting there.
fn count_fields(mut bytes: &[u8], depth: u32) -> usize {
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
            if tag == 1 && depth > 1 {
                count += count_fields(inner, depth - 1);
            }
            bytes = rest;
        } else if skip_field(wire, tag, &mut bytes, DecodeContext::default()).is_err() {
            return count;
        }
    }
    count
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
        // Each repeated entry costs far more than its bytes: a message that is all entries would take thirty times its
        // size. Counted on the bytes, before anything is made of them.
        if depth::<U>().is_some_and(|depth| count_fields(buf.chunk(), depth) > MAX_FIELDS) {
            return Err(status::from(&Refusal::new(
                Reason::MalformedRequest,
                format!("the message has more than {MAX_FIELDS} fields and entries"),
            )));
        }
        self.0.decode(buf).map_err(|error| {
            let why = quote(error.message());
            status::from(&Refusal::new(
                Reason::MalformedRequest,
                format!("the request is not the message that this method takes: {why}"),
            ))
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
