//! Whether anybody still reads what a command prints.

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::oneshot;

/// Resolves when the other end of standard output is gone, where it is a pipe, a socket or a terminal: a command that
/// prints what happens learns it from a write otherwise, which may be hours away. Never resolves for files.
pub(super) async fn reader_gone() {
    let (tell, told) = oneshot::channel();
    // A thread of its own, since nothing else can wait for it and be left behind when the command ends.
    std::thread::spawn(move || {
        let stdout = std::io::stdout();
        loop {
            let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
            match poll(&mut fds, None) {
                Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => {
                    // Nobody listens when the command is over.
                    let _ = tell.send(());
                    return;
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                // Not one that can be waited for: a write will tell.
                Ok(_) | Err(_) => return,
            }
        }
    });
    if told.await.is_err() {
        std::future::pending::<()>().await;
    }
}
