//! Detection of whether anybody still reads what a command prints.

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::oneshot;

/// Waits until the other end of standard output is gone, where that is a pipe, a socket or a
/// terminal. A command that prints what happens would otherwise learn of it from a write, which may
/// be hours away. For a file the wait never ends.
pub(super) async fn stdout_reader_gone() {
    let (tell, told) = oneshot::channel();
    // The wait has a thread of its own, because nothing else can wait for it and be left behind
    // when the command ends.
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
                // This output cannot be waited for, so a write will tell.
                Ok(_) | Err(_) => return,
            }
        }
    });
    if told.await.is_err() {
        std::future::pending::<()>().await;
    }
}
