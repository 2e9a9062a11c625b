//! What the sender needs to know of a signal, of which there are two: spans, and log records.

use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::export_queue::{Charge, ExportQueue, Queued};

/// The most bytes of one request, roughly. Collectors take 4 MiB by default.
pub(super) const BATCH_BYTES: usize = 2 << 20;

/// A request with what it is made of.
#[derive(Debug)]
pub(super) struct ExportBatch<R> {
    pub(super) request: R,
    /// How many spans or log records it has.
    pub(super) records: u64,
    /// Whether more may have waited than it could take.
    pub(super) is_full: bool,
    /// What has been taken out of the queue for it as a whole, and is released once it is over.
    pub(super) charges: Vec<Charge>,
}

/// What the collector says of a request that it took (`partial_success` of the protocol).
#[derive(Debug, Default)]
pub(super) struct ExportAnswer {
    /// How many of its spans or log records it rejected for good.
    pub(super) rejected: u64,
    /// Why it did, or what it warns of where it rejected none. Empty: nothing.
    pub(super) message: String,
}

impl ExportAnswer {
    /// Creates the answer from what is on the wire.
    pub(super) fn new(rejected: i64, message: String) -> Self {
        Self {
            rejected: u64::try_from(rejected).unwrap_or_default(),
            message,
        }
    }
}

/// A signal, and the service of the collector that takes it.
pub(super) trait Signal {
    /// What waits in the queue.
    type Thing: Queued;
    /// The message that the collector takes.
    type Request: Clone;
    /// The name of the signal in metrics and in the log.
    const NAME: &'static str;

    /// Takes things out of the queue, and makes one request of them.
    fn collect(queue: &ExportQueue<Self::Thing>, resource: &Resource)
    -> ExportBatch<Self::Request>;

    /// Sends a request, and returns what the collector says of it.
    async fn send(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<ExportAnswer, Status>;
}
