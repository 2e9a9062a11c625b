//! A client that means no good.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::PATIENCE;
use crate::wire::{Frames, PREFACE, Tally};

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;
/// Bytes that the kernel of one who is deaf takes.
const SMALL: u32 = 4 << 10;

/// A connection to the daemon, and what was heard on it.
pub(crate) struct Attacker {
    write: OwnedWriteHalf,
    /// There as long as nobody listens.
    read: Option<OwnedReadHalf>,
    tell: Arc<watch::Sender<Tally>>,
    tally: watch::Receiver<Tally>,
    listener: Option<JoinHandle<()>>,
}

impl Attacker {
    /// Connects, and says and reads nothing.
    pub(crate) async fn silent(addr: &str) -> Self {
        Self::on(TcpStream::connect(addr).await.unwrap())
    }

    fn on(connection: TcpStream) -> Self {
        connection.set_nodelay(true).unwrap();
        let (read, write) = connection.into_split();
        let (tell, tally) = watch::channel(Tally::default());
        Self {
            write,
            read: Some(read),
            tell: Arc::new(tell),
            tally,
            listener: None,
        }
    }

    /// Connects, greets with `settings`, and reads nothing; its kernel takes little for it.
    pub(crate) async fn deaf(addr: &str, settings: &[(u16, u32)]) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(SMALL).unwrap();
        let connection = socket.connect(addr.parse().unwrap()).await;
        let mut attacker = Self::on(connection.unwrap());
        attacker.greet(settings).await;
        attacker
    }

    /// Connects, greets, and reads all that comes.
    pub(crate) async fn greeted(addr: &str) -> Self {
        let mut attacker = Self::silent(addr).await;
        attacker.greet(&[]).await;
        attacker.listen();
        attacker
    }

    async fn greet(&mut self, settings: &[(u16, u32)]) {
        let mut greeting = Frames(PREFACE.to_vec());
        greeting.settings(settings);
        assert!(self.write(&greeting.0).await, "it is greeted");
    }

    /// Reads from now on.
    pub(crate) fn listen(&mut self) {
        let Some(mut read) = self.read.take() else {
            return;
        };
        let tell = Arc::clone(&self.tell);
        self.listener = Some(tokio::spawn(async move {
            let mut heard = Vec::with_capacity(PIECE);
            // An end and an error are the same to an attacker.
            while read.read_buf(&mut heard).await.is_ok_and(|n| n > 0) {
                tell.send_modify(|tally| tally.take(&mut heard));
            }
            tell.send_modify(|tally| tally.closed = true);
        }));
    }

    /// Writes `bytes`; false once the daemon has closed the connection.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> bool {
        self.write.write_all(bytes).await.is_ok()
    }

    /// Writes what `make` makes.
    pub(crate) async fn send(&mut self, make: impl FnOnce(&mut Frames)) -> bool {
        let mut frames = Frames::default();
        make(&mut frames);
        self.write(&frames.0).await
    }

    /// Writes what `make` makes for each of `numbers`, for as long as the connection lasts.
    pub(crate) async fn flood(
        &mut self,
        numbers: std::ops::Range<usize>,
        mut make: impl FnMut(&mut Frames, usize),
    ) -> bool {
        let mut frames = Frames::default();
        for n in numbers {
            make(&mut frames, n);
            if frames.0.len() >= PIECE {
                if !self.write(&frames.0).await {
                    return false;
                }
                frames.0.clear();
            }
        }
        self.write(&frames.0).await
    }

    /// Waits until what was heard is as `holds` says.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Tally) -> bool) -> Tally {
        let wait = self.tally.wait_for(|tally| holds(tally) || tally.closed);
        let reached = tokio::time::timeout(PATIENCE, wait).await.map(|told| {
            let tally = told.unwrap().clone();
            assert!(holds(&tally), "it was closed before: {tally:?}");
            tally
        });
        reached.unwrap_or_else(|_| panic!("it does not come to be: {:?}", *self.tally.borrow()))
    }

    /// Waits until the daemon has closed the connection.
    pub(crate) async fn ended(&mut self) -> Tally {
        self.until(|tally| tally.closed).await
    }

    /// Asks whether the connection still serves, and waits until it has taken all that was written.
    pub(crate) async fn is_served(&mut self) -> Tally {
        let before = self.tally.borrow().assents;
        self.send(|frames| {
            frames.ask();
        })
        .await;
        self.until(|tally| tally.assents > before).await
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}
