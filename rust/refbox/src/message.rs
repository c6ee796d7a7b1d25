//! The messages from the box's first processes to their supervisor. Each is one line of JSON, over a pipe that the payload
//! does not have.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// The sandbox could not be set up.
    Failed(String),
    /// The next call is the payload's exec.
    Started,
    /// That exec failed, because of the program.
    NotExecutable(String),
    /// The payload ended: its wait status, microseconds of processor time, bytes of its largest process.
    Ended { status: i32, cpu_us: u64, peak: u64 },
}

/// A write of at most this many bytes to a pipe is atomic (pipe(7), PIPE_BUF).
const ATOMIC: usize = 4096;

/// Sends one message; it is lost if the supervisor is gone.
pub(crate) fn send(pipe: BorrowedFd<'_>, message: &Message) {
    let cut = match message {
        Message::Failed(text) => &Message::Failed(text.chars().take(ATOMIC / 16).collect()),
        Message::NotExecutable(text) => &Message::NotExecutable(text.chars().take(ATOMIC / 16).collect()),
        other => other,
    };
    let mut line = serde_json::to_vec(cut).expect("a message has string keys only");
    line.push(b'\n');
    let _ = rustix::io::write(pipe, &line);
}

/// Removes the complete lines from the buffer.
pub(crate) fn take(buffer: &mut Vec<u8>) -> Vec<Message> {
    let whole = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines: Vec<u8> = buffer.drain(..whole).collect();
    lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_when_they_are_complete() {
        let mut buffer = b"\"started\"\n{\"ended\":{\"status\":9,\"cpu_us\":5,\"peak\":7}}\n{\"fai".to_vec();
        assert_eq!(take(&mut buffer), [Message::Started, Message::Ended { status: 9, cpu_us: 5, peak: 7 }]);
        assert_eq!(buffer, b"{\"fai");
        buffer.extend(b"led\":\"mount: x\"}\n");
        assert_eq!(take(&mut buffer), [Message::Failed("mount: x".to_owned())]);
    }
}
