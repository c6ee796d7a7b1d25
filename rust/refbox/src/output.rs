//! Passes on the payload's stdout and stderr: counted, bounded, and without ever blocking the supervisor.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Doing, Result};

/// A pipe takes this many bytes without blocking when poll(2) reports that it is writable (pipe(7), PIPE_BUF).
const CHUNK: usize = 4096;

/// Where a stream goes.
pub(crate) enum Sink {
    File(File),
    /// A compiler's messages.
    Memory(Vec<u8>),
}

/// One stream.
pub(crate) struct Stream {
    pipe: Option<File>,
    sink: Sink,
    /// A queue: taking from its front does not move the rest.
    pending: VecDeque<u8>,
    /// It takes no more, since its reader is gone. That is not a failure.
    broken: Option<std::io::Error>,
}

impl Stream {
    pub(crate) fn new(sink: Sink) -> Self {
        Stream { pipe: None, sink, pending: VecDeque::new(), broken: None }
    }

    /// Connects a new pipe to this stream, and returns the payload's end.
    pub(crate) fn open(&mut self) -> Result<OwnedFd> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).during("make pipe")?;
        fcntl_setfl(&read, OFlags::NONBLOCK).during("make pipe")?;
        self.pipe = Some(File::from(read));
        Ok(write)
    }

    /// What to wait for: input, and the sink's readiness while there is output for it.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let input = self.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let output = match &self.sink {
            Sink::File(file) if !self.pending.is_empty() => Some(PollFd::new(file, PollFlags::OUT)),
            _ => None,
        };
        input.into_iter().chain(output)
    }

    /// Reads the available input, keeps at most `room` bytes of it, and returns how many were read.
    pub(crate) fn pull(&mut self, room: u64) -> u64 {
        let Some(pipe) = &mut self.pipe else { return 0 };
        let mut buffer = [0u8; 65_536];
        match pipe.read(&mut buffer) {
            Ok(0) => {
                self.pipe = None;
                0
            }
            Ok(count) => {
                let kept = &buffer[..count.min(usize::try_from(room).unwrap_or(count))];
                match &mut self.sink {
                    Sink::Memory(bytes) => bytes.extend_from_slice(kept),
                    Sink::File(_) if self.broken.is_some() => {}
                    Sink::File(_) => self.pending.extend(kept),
                }
                count as u64
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.pipe = None;
                0
            }
        }
    }

    /// Passes on as much as the sink takes without blocking.
    pub(crate) fn push(&mut self) {
        let Sink::File(file) = &mut self.sink else { return };
        while !self.pending.is_empty() {
            let mut ready = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if !rustix::event::poll(&mut ready, Some(&now)).is_ok_and(|count| count > 0) {
                return;
            }
            let (front, _) = self.pending.as_slices();
            match file.write(&front[..front.len().min(CHUNK)]) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.broken = Some(e);
                    self.pending.clear();
                }
            }
        }
    }

    /// Whether all of the payload's ends are closed and everything was read.
    pub(crate) fn at_end(&self) -> bool {
        self.pipe.is_none()
    }

    /// Passes on the rest, however long the reader takes. Nothing of the box exists any more.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Sink::File(file) = &mut self.sink
            && let Err(e) = file.write_all(self.pending.make_contiguous())
        {
            self.broken = Some(e);
        }
        self.pending.clear();
        match self.broken.take() {
            Some(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).during("write the payload's output"),
            _ => Ok(()),
        }
    }

    /// The content of a [`Sink::Memory`].
    pub(crate) fn text(&self) -> String {
        match &self.sink {
            Sink::Memory(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Sink::File(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_long_backlog_is_passed_on_without_moving_it_for_each_piece() {
        const BYTES: usize = 64 << 20;
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut stream = Stream::new(Sink::File(File::from(OwnedFd::from(writer))));
        stream.pending = (0..BYTES).map(|at| at as u8).collect();
        let read = std::thread::spawn(move || {
            let mut all = Vec::with_capacity(BYTES);
            reader.read_to_end(&mut all).map(|_| all)
        });
        let (began, limit) = (Instant::now(), Duration::from_secs(10));
        while !stream.pending.is_empty() && began.elapsed() < limit {
            stream.push();
        }
        let in_time = stream.pending.is_empty();
        drop(stream);
        let all = read.join().unwrap().unwrap();
        assert!(in_time, "{} of {BYTES} bytes in {limit:?}", all.len());
        assert!(all.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    }
}
