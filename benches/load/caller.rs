//! A client that sends and takes bytes: the same for every server, and it costs little itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::drive::Clients;

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

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
    /// `None`: it is a GET by HTTP/1.1.
    message: Option<Bytes>,
    holds: Bytes,
    token: Option<MetadataValue<Ascii>>,
}

impl Question {
    /// A GET by HTTP/1.1.
    pub(crate) fn get(path: &str, holds: &str) -> Self {
        Self {
            message: None,
            ..Self::raw(path, Bytes::new(), holds)
        }
    }

    pub(crate) fn new(path: &str, message: &impl Message, holds: &str) -> Self {
        Self::raw(path, message.encode_to_vec().into(), holds)
    }

    pub(crate) fn raw(path: &str, message: Bytes, holds: &str) -> Self {
        Self {
            path: path.parse().unwrap(),
            message: Some(message),
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
        let mut request = Request::new(self.message.clone().unwrap_or_default());
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
pub(crate) enum Caller {
    Grpc(Grpc<Channel>),
    Http(Arc<Mutex<SendRequest<Empty<Bytes>>>>),
}

impl Caller {
    /// A client that speaks gRPC.
    pub(crate) async fn connect(addr: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .unwrap()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await
            .expect("it listens");
        let grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        Self::Grpc(grpc.max_encoding_message_size(usize::MAX))
    }

    async fn connect_http(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).await.expect("it listens");
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "ends when what sends on it is dropped"
        )]
        tokio::spawn(connection);
        Self::Http(Arc::new(Mutex::new(sender)))
    }

    /// Clients that ask `question`. By HTTP/1.1, where a connection has one call at a time, each
    /// has its own.
    pub(crate) async fn several(addr: &str, clients: Clients, question: &Question) -> Vec<Self> {
        let Clients {
            connections,
            callers,
        } = clients;
        let mut all = Vec::new();
        if question.message.is_none() {
            for _ in 0..callers {
                all.push(Self::connect_http(addr).await);
            }
            return all;
        }
        for _ in 0..connections {
            all.push(Self::connect(addr).await);
        }
        (0..callers).map(|i| all[i % connections].clone()).collect()
    }

    /// Asks, and takes the answer.
    pub(crate) async fn ask(&mut self, question: &Question) -> Result<Bytes, Status> {
        let answer = match self {
            Self::Grpc(grpc) => {
                grpc.ready().await.map_err(unavailable)?;
                let (request, path) = (question.request(), question.path.clone());
                grpc.unary(request, path, Raw).await?.into_inner()
            }
            Self::Http(sender) => get(&mut *sender.lock().await, question).await?,
        };
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
        let Self::Grpc(grpc) = self else {
            panic!("only a gRPC server is asked for a stream");
        };
        grpc.ready().await.unwrap();
        let (request, path) = (question.request(), question.path.clone());
        let answer = grpc.server_streaming(request, path, Raw).await;
        answer.unwrap().into_inner()
    }
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

async fn get(sender: &mut SendRequest<Empty<Bytes>>, question: &Question) -> Result<Bytes, Status> {
    sender.ready().await.map_err(unavailable)?;
    let request = hyper::Request::get(question.path.as_str())
        .header("host", "localhost")
        .body(Empty::new())
        .unwrap();
    let answer = sender.send_request(request).await.map_err(unavailable)?;
    if !answer.status().is_success() {
        return Err(unavailable(answer.status()));
    }
    let body = answer.into_body().collect().await.map_err(unavailable)?;
    Ok(body.to_bytes())
}
