//! Shares the processes of a pass among threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::processes::Procfs;
use super::reader::Scratch;
use crate::error::Result;
use crate::observe::pass::{Pass, Sample, Wanted};

/// Number of processes for which one more thread is worthwhile: on a host, where there are many of all kinds, and in an
/// arena, where a look at all else takes less time than two threads cost.
const WORTH_A_THREAD: usize = 4;
const WORTH_A_THREAD_IN_ARENA: usize = 12;
/// How many processes a thread takes at a time: few, so that all finish together.
const CHUNK: usize = 4;

/// The processes to read, which any number of threads share.
pub(super) struct SharedPass<'a> {
    procfs: &'a Procfs,
    pids: Vec<u32>,
    wanted: Wanted,
    /// The first that no thread has taken yet.
    next: AtomicUsize,
    /// How many threads are in [`read`](Self::read).
    readers: AtomicUsize,
    parts: Mutex<Vec<Result<Vec<Sample>>>>,
    /// Processes that were found but exited before they were read.
    gone: Mutex<Vec<u32>>,
}

impl<'a> SharedPass<'a> {
    /// A pass over these processes, of which `first` were read already.
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
        let each = if self.procfs.is_arena() { WORTH_A_THREAD_IN_ARENA } else { WORTH_A_THREAD };
        threads.min(least.max(self.pids.len() / each))
    }

    fn read(&self, threads: usize) {
        let reading = Reading::of(&self.readers);
        let part = self.part(threads);
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
        drop(reading);
        // A thread that has not started yet finds nothing to take. The others are at their last few: sleeping would
        // take longer.
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
        // Sorting a thousand processes is faster than sorting all their descriptors, which are in order already.
        samples.sort_unstable_by_key(|s| s.process.pid);
        Ok(samples)
    }
}

/// Counts as a reader until it is dropped, also by a panic, since others wait for it.
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
