//! How threads share the processes of a pass.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Procfs;
use super::reader::Scratch;
use crate::error::Result;
use crate::observe::pass::{Pass, Sample, Wanted};

/// How many processes pay for one more thread.
const WORTH_A_THREAD: usize = 4;
/// How many processes a thread takes at a time: few, so that all end together.
const CHUNK: usize = 4;

/// The processes to read, which any number of threads share.
pub(super) struct SharedPass<'a> {
    procfs: &'a Procfs,
    pids: Vec<u32>,
    wanted: Wanted,
    /// The first that nobody has taken yet.
    next: AtomicUsize,
    /// How many threads are in [`read`](Self::read).
    readers: AtomicUsize,
    parts: Mutex<Vec<Result<Vec<Sample>>>>,
    /// What was found and had ended before it was read.
    gone: Mutex<Vec<u32>>,
}

impl<'a> SharedPass<'a> {
    /// Of these processes, of which some were read already.
    pub(super) fn new(procfs: &'a Procfs, pids: Vec<u32>, wanted: Wanted, first: Vec<Sample>) -> Self {
        SharedPass {
            procfs,
            pids,
            wanted,
            next: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
            parts: Mutex::new(vec![Ok(first)]),
            gone: Mutex::default(),
        }
    }

    fn part(&self, threads: usize) -> Result<Vec<Sample>> {
        let pids = &self.pids;
        let at_a_time = CHUNK.min(pids.len() / threads / WORTH_A_THREAD).max(1);
        let mut scratch = Scratch::new();
        let mut part = Vec::with_capacity(pids.len() / threads + CHUNK);
        loop {
            let from = self.next.fetch_add(at_a_time, Ordering::SeqCst);
            let Some(chunk) = pids.get(from..pids.len().min(from + at_a_time)).filter(|c| !c.is_empty()) else {
                self.gone.lock().unwrap_or_else(PoisonError::into_inner).append(&mut scratch.gone);
                return Ok(part);
            };
            for &pid in chunk {
                part.extend(self.procfs.sample(pid, self.wanted, &mut scratch)?);
            }
        }
    }
}

impl Pass for SharedPass<'_> {
    fn worth(&self, threads: usize, least: usize) -> usize {
        threads.min(least.max(self.pids.len() / WORTH_A_THREAD))
    }

    fn read(&self, threads: usize) {
        let reading = Reading::of(&self.readers);
        let part = self.part(threads);
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
        drop(reading);
        // Who has not begun yet finds nothing to take. The others are at their last few: to sleep would take longer.
        while self.readers.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    fn gone(&self) -> Vec<u32> {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn samples(&self) -> Result<Vec<Sample>> {
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        let mut samples = Vec::with_capacity(self.pids.len() + 1);
        for part in parts {
            samples.extend(part?);
        }
        // A thousand processes are sorted faster than all their descriptors, which come in order.
        samples.sort_unstable_by_key(|s| s.process.pid);
        Ok(samples)
    }
}

/// Counts as a reader until it is dropped, by a panic as well: others wait.
struct Reading<'a>(&'a AtomicUsize);

impl<'a> Reading<'a> {
    fn of(readers: &'a AtomicUsize) -> Self {
        readers.fetch_add(1, Ordering::SeqCst);
        Reading(readers)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
