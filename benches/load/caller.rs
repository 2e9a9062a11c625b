//! A client that sends and takes bytes: the same for every server, and it costs little itself.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Streams of one connection, of which a daemon takes a hundred.
const CALLERS_A_CONNECTION: usize = 64;
const CONNECTIONS: usize = 16;

/// Messages as they are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A question, and what its answer has in it.
#[derive(Clone)]
pub(crate) struct Question {
    path: PathAndQuery,
    message: Bytes,
    holds: Bytes,
    token: Option<MetadataValue<Ascii>>,
}

impl Question {
    pub(crate) fn new(path: &str, message: &impl Message, holds: &str) -> Self {
        Self::raw(path, message.encode_to_vec().into(), holds)
    }

    pub(crate) fn raw(path: &str, message: Bytes, holds: &str) -> Self {
        Self {
            path: path.parse().unwrap(),
            message,
            holds: Bytes::copy_from_slice(holds.as_bytes()),
            token: None,
        }
    }

    /// Asked by whom `token` is of.
    pub(crate) fn by(mut self, token: &str) -> Self {
        self.token = Some(format!("Bearer {token}").parse().unwrap());
        self
    }

    fn request(&self) -> Request<Bytes> {
        let mut request = Request::new(self.message.clone());
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        request
    }
}

/// A client on one connection.
#[derive(Clone)]
pub(crate) struct Caller(Grpc<Channel>);

impl Caller {
    pub(crate) async fn connect(addr: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .unwrap()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await
            .expect("it listens");
        let grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        Self(grpc.max_encoding_message_size(usize::MAX))
    }

    /// So many, on as many connections, or on some that they share.
    pub(crate) async fn several(addr: &str, count: usize) -> Vec<Self> {
        let connections = count.min(CONNECTIONS.max(count.div_ceil(CALLERS_A_CONNECTION)));
        let mut all = Vec::new();
        for _ in 0..connections {
            all.push(Self::connect(addr).await);
        }
        (0..count).map(|i| all[i % connections].clone()).collect()
    }

    /// Asks, and takes the answer.
    pub(crate) async fn ask(&mut self, question: &Question) -> Result<Bytes, Status> {
        self.0
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (request, path) = (question.request(), question.path.clone());
        let answer = self.0.unary(request, path, Raw).await?.into_inner();
        let holds = question.holds.is_empty()
            || answer
                .windows(question.holds.len())
                .any(|it| it == question.holds);
        match holds {
            true => Ok(answer),
            false => Err(Status::data_loss("the answer is not what was asked for")),
        }
    }

    /// Asks, takes the answer as a message, and tells how long that took.
    pub(crate) async fn timed<T: Message + Default>(
        &mut self,
        question: &Question,
    ) -> (Duration, T) {
        let start = Instant::now();
        let answer = self.ask(question).await.unwrap();
        let took = start.elapsed();
        (took, T::decode(answer).unwrap())
    }

    /// Asks for a stream.
    pub(crate) async fn stream(&mut self, question: &Question) -> Streaming<Bytes> {
        self.0.ready().await.unwrap();
        let (request, path) = (question.request(), question.path.clone());
        let answer = self.0.server_streaming(request, path, Raw).await;
        answer.unwrap().into_inner()
    }
}
