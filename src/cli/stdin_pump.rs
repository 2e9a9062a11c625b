//! Input for a guest as it comes: read when the guest waits for it, and not before.
//!
//! The daemon tells when the guest waits, and for how much (`stdin_demand`). So a guest that reads nothing takes nothing
//! from whoever reads the same input after this command, as in `while read line; do ringfence run x.wasm; done`. Of a
//! file more is read at once, and given back at the end; of all else what is asked for, and later about as much again as
//! the guest has read, so that large input needs few turns.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as threads};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::Failure;
use super::stdin_source::StdinSource;
use crate::api::proto::interact_request::Frame;
use crate::api::proto::{InteractRequest, RunSpec, StdinDemand, StdinEof, TellStdinDemand};
use crate::sandbox::MAX_STDIN_CHUNK;

/// Bytes of a file that are read for one demand.
const AHEAD_OF_FILE: u64 = 1 << 20;
/// The most bytes of anything else that are read for one demand.
const AHEAD_OF_PIPE: u64 = 256 << 10;
/// A guest that reads little at a time, as one does that leaves what it does not want, gets exactly what it asks for,
/// for so many demands and bytes. Beyond that, turns count more.
const EXACT_DEMANDS: u32 = 64;
const EXACT_BYTES: u64 = 4 << 10;
/// Messages on their way: the first two are there before anybody takes them.
const MESSAGES: usize = 2;

/// What hands input to the guest of an interaction, for as long as the run goes on.
pub(super) struct StdinPump {
    demands: threads::Sender<StdinDemand>,
    taken: Arc<PumpedInput>,
    broken: Option<oneshot::Receiver<io::Error>>,
}

/// The source, and what was taken from it.
struct PumpedInput {
    source: StdinSource,
    state: Mutex<PumpState>,
}

#[derive(Default)]
struct PumpState {
    bytes: u64,
    demands: u32,
    /// Whether the run has ended, and nothing is to be taken any more.
    over: bool,
}

/// Whether there may be more input.
#[derive(PartialEq, Eq)]
enum Feed {
    Open,
    Ended,
}

impl StdinPump {
    /// Creates one for a run of `spec`, with the messages of its interaction.
    pub(super) fn start(
        spec: RunSpec,
        source: StdinSource,
    ) -> Result<(Self, ReceiverStream<InteractRequest>), Failure> {
        let (say, said) = mpsc::channel(MESSAGES);
        for frame in [
            Frame::Start(Box::new(spec)),
            Frame::TellStdinDemand(TellStdinDemand {}),
        ] {
            // There is room for these.
            let _ = say.try_send(InteractRequest { frame: Some(frame) });
        }
        let (demands, demanded) = threads::channel();
        let (tell_broken, broken) = oneshot::channel();
        let taken = Arc::new(PumpedInput {
            source,
            state: Mutex::default(),
        });
        let feeds = Arc::clone(&taken);
        // A thread of its own, since nothing else can wait for a terminal and be left behind when the run has ended.
        let thread = std::thread::Builder::new().name("stdin".to_owned());
        let started = thread.spawn(move || {
            for demand in demanded {
                match feeds.feed(&demand, &say) {
                    Ok(Feed::Open) => {}
                    Ok(Feed::Ended) => break,
                    Err(error) => {
                        let _ = tell_broken.send(error);
                        break;
                    }
                }
            }
        });
        started.map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
        let pump = Self {
            demands,
            taken,
            broken: Some(broken),
        };
        Ok((pump, ReceiverStream::new(said)))
    }

    /// Hands on what the guest waits for, when it is there.
    pub(super) fn demand(&self, demand: StdinDemand) {
        // Nobody listens after the end of the input.
        let _ = self.demands.send(demand);
    }

    /// Gives back what was taken and not read by the guest, which has read `read` bytes, where that can be done.
    pub(super) fn finish(&self, read: u64) {
        let mut state = self.taken.lock();
        state.over = true;
        let source = &self.taken.source;
        source.give_back(state.bytes.saturating_sub(read));
    }

    /// What resolves when the input cannot be read; to be taken once.
    pub(super) fn take_broken(&mut self) -> impl Future<Output = Failure> + use<> {
        let (broken, taken) = (self.broken.take(), Arc::clone(&self.taken));
        async move {
            if let Some(broken) = broken
                && let Ok(error) = broken.await
            {
                return taken.source.unreadable(&error);
            }
            std::future::pending().await
        }
    }
}

impl PumpedInput {
    /// Sends what is there for one demand.
    fn feed(
        &self,
        demand: &StdinDemand,
        frames: &mpsc::Sender<InteractRequest>,
    ) -> io::Result<Feed> {
        let send = |frame| {
            let message = InteractRequest { frame: Some(frame) };
            match frames.blocking_send(message) {
                Ok(()) => Feed::Open,
                // The run has ended before its input.
                Err(_) => Feed::Ended,
            }
        };
        let mut budget = self.budget(demand);
        let mut piece = vec![0; MAX_STDIN_CHUNK];
        let mut waits = true;
        while budget > 0 {
            if !self.source.wait(waits)? {
                break;
            }
            let most = usize::try_from(budget).map_or(piece.len(), |it| it.min(piece.len()));
            let Some(n) = self.take(&mut piece[..most])? else {
                return Ok(Feed::Ended);
            };
            let frame = match n {
                None => continue,
                Some(0) => {
                    send(Frame::StdinEof(StdinEof {}));
                    return Ok(Feed::Ended);
                }
                Some(n) => {
                    budget -= n as u64;
                    Frame::Stdin(Bytes::copy_from_slice(&piece[..n]))
                }
            };
            if send(frame) == Feed::Ended {
                return Ok(Feed::Ended);
            }
            // What comes later is for the next demand, if there is one.
            waits = false;
        }
        Ok(Feed::Open)
    }

    fn budget(&self, demand: &StdinDemand) -> u64 {
        if self.source.is_seekable() {
            return AHEAD_OF_FILE;
        }
        let wanted = u64::from(demand.wanted_bytes);
        let mut state = self.lock();
        state.demands = state.demands.saturating_add(1);
        if state.demands <= EXACT_DEMANDS && demand.read_bytes < EXACT_BYTES {
            return wanted;
        }
        wanted.max(demand.read_bytes.min(AHEAD_OF_PIPE))
    }

    /// Reads a piece, unless the run is over.
    fn take(&self, piece: &mut [u8]) -> io::Result<Option<Option<usize>>> {
        let mut state = self.lock();
        if state.over {
            return Ok(None);
        }
        if !self.source.is_seekable() {
            // Another may have taken what was there: this may wait for long.
            drop(state);
            return self.source.read(piece).map(Some);
        }
        let n = self.source.read(piece)?;
        state.bytes += n.unwrap_or_default() as u64;
        Ok(Some(n))
    }

    fn lock(&self) -> MutexGuard<'_, PumpState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
